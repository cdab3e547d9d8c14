package mdexport

import java.io.File
import org.json.JSONObject

/** A folder that md-export wrote, by what its `manifest.json` says that this sample needs. */
class Export(val folder: File) {
    private val manifest = JSONObject(File(folder, "manifest.json").readText())
    private val artifacts = manifest.getJSONArray("artifacts").let { all ->
        (0 until all.length()).map { all.getJSONObject(it) }.associate { it.getString("component") to it.getString("file") }
    }

    /** The style: the export's LoRAs, or the recipe where it has none. */
    val name: String = manifest.getJSONArray("loras").let { all ->
        val loras = (0 until all.length()).map { all.getJSONObject(it) }
        val styles = loras.joinToString(" + ") { lora ->
            val scale = lora.getDouble("scale")
            lora.getString("name") + if (scale == 1.0) "" else " × $scale"
        }
        styles.ifEmpty { manifest.getJSONObject("recipe").getString("name") }
    }

    /** The recipe's negative prompt, for a request without one. */
    val negative: String =
        manifest.optJSONObject("steps")?.let { if (it.isNull("negative")) "" else it.getString("negative") }.orEmpty()

    init {
        require(manifest.isNull("styles")) {
            "$folder was exported with --style, and this sample sets no inputs for styles; export each style with --lora"
        }
        require(artifacts.keys == setOf("text_encoder", "unet", "vae_decoder")) {
            "$folder has ${artifacts.keys.joinToString()}; this sample runs text_encoder, unet and vae_decoder: export a " +
                "model of the family of MobileDiffusion or Stable Diffusion, without --chunks"
        }
        require(manifest.getString("target") == "tflite") { "$folder is not for Android; export with md-export tflite" }
    }

    fun file(component: String): File = File(folder, artifacts.getValue(component))

    /** What a spinner shows. */
    override fun toString(): String = name

    companion object {
        /** The export in [folder], or those in its subfolders. */
        fun all(folder: File): List<Export> {
            val folders = listOf(folder) + folder.listFiles().orEmpty().sorted()
            return folders.filter { File(it, "manifest.json").exists() }.map(::Export)
        }
    }
}
