package mdexport

import java.io.File
import kotlin.io.path.createTempDirectory
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith

class ExportTest {
    private val folder = createTempDirectory().toFile()

    @Test
    fun stylesAndFiles() {
        write("""[{"name": "crayon.safetensors", "scale": 0.5}, {"name": "line.safetensors", "scale": 1.0}]""")
        val export = Export.all(folder).single()
        assertEquals("crayon.safetensors × 0.5 + line.safetensors", export.name)
        assertEquals(File(folder, "unet.tflite"), export.file("unet"))
        assertEquals("blurry", export.negative)
        write("[]")
        assertEquals("tflite-fp16", Export(folder).name)
    }

    @Test
    fun whatTheSampleDoesNotRunIsAnError() {
        write("[]", more = """, "styles": [{"name": "crayon", "scale": 1.0}]""")
        assertFailsWith<IllegalArgumentException> { Export(folder) }
        write("[]", decoder = "vae_encoder")
        assertFailsWith<IllegalArgumentException> { Export(folder) }
    }

    private fun write(loras: String, decoder: String = "vae_decoder", more: String = "") {
        val files = listOf("text_encoder", "unet", decoder).joinToString { """{"component": "$it", "file": "$it.tflite"}""" }
        val text = """{"target": "tflite", "recipe": {"name": "tflite-fp16"}, "artifacts": [$files], "loras": $loras,
            "steps": {"negative": "blurry"}$more}"""
        File(folder, "manifest.json").writeText(text)
    }
}
