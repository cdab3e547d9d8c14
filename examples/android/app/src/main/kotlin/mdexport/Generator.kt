package mdexport

import android.graphics.Bitmap
import com.google.ai.edge.litert.Accelerator
import com.google.ai.edge.litert.CompiledModel
import com.google.ai.edge.litert.TensorBuffer
import java.io.File

/**
 * Makes pictures with the three files of one export; call it off the main thread. Each file is loaded, run and closed in
 * turn: memory holds the largest and not all three, and LiteRT has failed where two models were open on the GPU
 * (github.com/google-ai-edge/LiteRT, issues 5004 and 5264).
 */
class Generator(private val export: Export, private val options: CompiledModel.Options = onGpu()) {
    private val tokenizer = Tokenizer(File(export.folder, "tokenizer"))
    val constants = Constants(metadataOf(export.file("unet")))

    /**
     * One picture.
     *
     * @param negative used with guidance; the recipe's negative prompt by default.
     * @param draw draws that many standard normal values: the noise, then more for each step that adds noise.
     * @param progress called before each UNet call with its number, from 0; an exception from it ends the picture.
     */
    fun picture(
        prompt: String,
        negative: String = export.negative,
        draw: (count: Int) -> FloatArray,
        progress: (step: Int) -> Unit = {},
    ): Bitmap {
        val text = embeddings(prompt, negative)
        var calls = 0
        val latent = Model("unet").use { unet ->
            constants.sample(draw(constants.latentLength), { draw(constants.latentLength) }) { samples, timestep ->
                progress(calls++)
                val given = mapOf(
                    "sample" to samples, "timestep" to floatArrayOf(timestep), "encoder_hidden_states" to text,
                )
                // A recipe may fold the timestep into the weights.
                unet.run(given.filterKeys { it in constants.inputs }, constants.output)
            }
        }
        val image = Model("vae_decoder").use { it.run(mapOf("latent" to latent), "image") }
        val (width, height) = constants.imageWidth to constants.imageHeight
        return Bitmap.createBitmap(constants.pixels(image), width, height, Bitmap.Config.ARGB_8888)
    }

    /** Those of the prompt; with guidance those of the negative or empty prompt before them. */
    private fun embeddings(prompt: String, negative: String): FloatArray = Model("text_encoder").use { encoder ->
        fun encoded(words: String): FloatArray {
            val ids = tokenizer.ids(words, constants.textLength, constants.special)
            return encoder.run(mapOf("input_ids" to ids), "last_hidden_state")
        }
        val text = encoded(prompt)
        when {
            !constants.isGuided -> text
            constants.zerosForEmpty && negative.isEmpty() -> FloatArray(text.size) + text
            else -> encoded(negative) + text
        }
    }

    private inner class Model(component: String) : AutoCloseable {
        private val model = CompiledModel.create(export.file(component).path, options)

        fun run(inputs: Map<String, Any>, output: String): FloatArray {
            val given = inputs.mapValues { (name, value) -> model.createInputBuffer(name, SIGNATURE).filled(value) }
            val made = model.createOutputBuffer(output, SIGNATURE)
            try {
                model.run(given, mapOf(output to made), SIGNATURE)
                return made.readFloat()
            } finally {
                (given.values + made).forEach { it.close() }
            }
        }

        override fun close() = model.close()
    }

    private fun TensorBuffer.filled(value: Any): TensorBuffer {
        if (value is IntArray) writeInt(value) else writeFloat(value as FloatArray)
        return this
    }
}

/**
 * GPU alone: what does not fit on it is an exception and not a slow fallback. Values in half precision, sums in single:
 * sums in half precision, the default, cost the nano UNet 13 dB (docs/lint.md). LiteRT 2.2 or later.
 */
fun onGpu(): CompiledModel.Options {
    val precision = CompiledModel.GpuOptions.Precision.FP16_WITH_FP32_ACCUM
    return CompiledModel.Options(Accelerator.GPU).apply { gpuOptions = CompiledModel.GpuOptions(precision = precision) }
}

private const val SIGNATURE = "main"
