package mdexport

import android.app.Activity
import android.os.Bundle
import android.view.View
import android.widget.AdapterView
import android.widget.ArrayAdapter
import android.widget.Button
import android.widget.EditText
import android.widget.ImageView
import android.widget.LinearLayout
import android.widget.ProgressBar
import android.widget.ScrollView
import android.widget.Spinner
import android.widget.TextView
import java.util.Random
import java.util.concurrent.Executors

/** A prompt, a choice of styles (exports in the app's folder `models`), and the picture. */
class MainActivity : Activity() {
    private val worker = Executors.newSingleThreadExecutor()
    private lateinit var prompt: EditText
    private lateinit var negative: EditText
    private lateinit var seed: EditText
    private lateinit var styles: Spinner
    private lateinit var generate: Button
    private lateinit var progress: ProgressBar
    private lateinit var told: TextView
    private lateinit var picture: ImageView

    /** Used by the worker alone. */
    private var generator: Generator? = null

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        setContentView(screen())
        val models = getExternalFilesDir("models")
        inBackground("looking for exports") {
            val exports = models?.let(Export::all).orEmpty()
            check(exports.isNotEmpty()) { "no export in $models; copy a folder there that md-export tflite wrote" }
            runOnUiThread { styles.adapter = ArrayAdapter(this, android.R.layout.simple_spinner_dropdown_item, exports) }
        }
    }

    override fun onDestroy() {
        worker.shutdownNow()
        super.onDestroy()
    }

    private fun screen(): View {
        prompt = EditText(this).apply { setText("a large red circle on the left, white background") }
        negative = EditText(this).apply { hint = "Negative prompt"; visibility = View.GONE }
        seed = EditText(this).apply { setText("0"); inputType = android.text.InputType.TYPE_CLASS_NUMBER }
        styles = Spinner(this).apply {
            onItemSelectedListener = object : AdapterView.OnItemSelectedListener {
                override fun onItemSelected(parent: AdapterView<*>, view: View?, position: Int, id: Long) =
                    open(parent.getItemAtPosition(position) as Export)

                override fun onNothingSelected(parent: AdapterView<*>) = Unit
            }
        }
        generate = Button(this).apply { text = "Generate"; setOnClickListener { generate() } }
        progress = ProgressBar(this, null, android.R.attr.progressBarStyleHorizontal)
        told = TextView(this)
        picture = ImageView(this).apply { adjustViewBounds = true }
        val column = LinearLayout(this).apply {
            orientation = LinearLayout.VERTICAL
            setPadding(32, 32, 32, 32)
            listOf(prompt, negative, styles, seed, generate, progress, told, picture).forEach { view ->
                addView(view, LinearLayout.LayoutParams.MATCH_PARENT, LinearLayout.LayoutParams.WRAP_CONTENT)
            }
        }
        return ScrollView(this).apply { addView(column); fitsSystemWindows = true }
    }

    private fun open(export: Export) = inBackground("reading ${export.folder.name}") {
        val opened = Generator(export)
        generator = opened
        runOnUiThread {
            progress.max = opened.constants.steps.size
            negative.visibility = if (opened.constants.isGuided) View.VISIBLE else View.GONE
            negative.setText(export.negative)
        }
    }

    private fun generate() {
        val (words, unwanted) = prompt.text.toString() to negative.text.toString()
        val random = Random(seed.text.toString().toLongOrNull() ?: 0)
        inBackground("generating") {
            val made = checkNotNull(generator) { "choose a style first" }.picture(
                words,
                unwanted,
                draw = { count -> FloatArray(count) { random.nextGaussian().toFloat() } },
                progress = { step ->
                    if (Thread.currentThread().isInterrupted) throw InterruptedException()
                    runOnUiThread { progress.progress = step }
                },
            )
            runOnUiThread {
                picture.setImageBitmap(made)
                progress.progress = progress.max
            }
        }
    }

    /** Runs [work] on the worker; an exception becomes the text on the screen. */
    private fun inBackground(what: String, work: () -> Unit) {
        told.text = what
        generate.isEnabled = false
        worker.execute {
            val fault = runCatching(work).exceptionOrNull()
            runOnUiThread {
                told.text = fault?.toString().orEmpty()
                generate.isEnabled = true
            }
        }
    }
}
