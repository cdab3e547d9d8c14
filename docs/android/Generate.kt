// A picture from token ids by the three files of `md-export tflite CHECKPOINT -o android`, one UNet step, on LiteRT 2.3:
//     implementation("com.google.ai.edge.litert:litert:2.3.0")
//     implementation("com.google.ai.edge.litert:litert-gpu:2.3.0")
// docs/android.md says what it was checked against. Call it off the main thread.
package mdexport

import android.graphics.Bitmap
import com.google.ai.edge.litert.Accelerator
import com.google.ai.edge.litert.CompiledModel
import com.google.ai.edge.litert.TensorBuffer
import java.io.File
import java.io.FileInputStream
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.channels.FileChannel
import org.json.JSONObject

/** What the exported files say of themselves; floats are written so that they read back exactly. */
class Notes(private val values: JSONObject) {
    val timestep = text("timestep").toFloat()
    val a = text("a").toFloat()
    val b = text("b").toFloat()
    val scalingFactor = text("scaling_factor").toFloat()
    val imageSize = text("image_size").toInt()
    val imageScale = text("image_scale").toFloat()
    val imageOffset = text("image_offset").toFloat()
    val inputs = text("inputs").split(",")
    val output = text("outputs")
    val latentLength = text("latent_shape").split(",").fold(1) { product, size -> product * size.toInt() }

    /** bos, the prompt's ids (cut to fit), eos, and pad up to the length. */
    fun framed(words: IntArray): IntArray {
        val ids = IntArray(text("text_length").toInt()) { text("pad_token_id").toInt() }
        val kept = words.take(ids.size - 2)
        ids[0] = text("bos_token_id").toInt()
        kept.forEachIndexed { index, id -> ids[index + 1] = id }
        ids[kept.size + 1] = text("eos_token_id").toInt()
        return ids
    }

    private fun text(name: String): String = values.getString(name)
}

/** The three files of one export in [folder]. */
class Generator(private val folder: File, private val options: CompiledModel.Options = onGpu()) {
    /**
     * One picture. Each file is loaded, run and closed in turn: memory holds the largest and not all three, and LiteRT
     * has failed where two models were open on the GPU (github.com/google-ai-edge/LiteRT, issues 5004 and 5264).
     *
     * @param words CLIP token ids of the prompt, without the start and end tokens.
     * @param noise standard normal values, as many as `latent_shape` says.
     */
    fun picture(words: IntArray, noise: FloatArray): Bitmap {
        val notes = readNotes(File(folder, "unet.tflite"))
        require(noise.size == notes.latentLength) { "noise must have ${notes.latentLength} values" }
        val text = run("text_encoder", mapOf("input_ids" to notes.framed(words)), "last_hidden_state")
        val given = mapOf(
            "sample" to noise,
            "timestep" to floatArrayOf(notes.timestep),
            "encoder_hidden_states" to text,
        )
        // A recipe may fold the timestep away, or have the UNet end in the latent.
        val out = run("unet", given.filterKeys { it in notes.inputs }, notes.output)
        val latent = if (notes.output == "latent") out else latentOf(noise, out, notes)
        return bitmapOf(run("vae_decoder", mapOf("latent" to latent), "image"), notes)
    }

    private fun run(component: String, inputs: Map<String, Any>, output: String): FloatArray =
        CompiledModel.create(File(folder, "$component.tflite").path, options).use { model ->
            val given = inputs.mapValues { (name, value) -> model.createInputBuffer(name, SIGNATURE).filled(value) }
            val made = model.createOutputBuffer(output, SIGNATURE)
            try {
                model.run(given, mapOf(output to made), SIGNATURE)
                made.readFloat()
            } finally {
                (given.values + made).forEach { it.close() }
            }
        }

    private fun TensorBuffer.filled(value: Any): TensorBuffer {
        if (value is IntArray) writeInt(value) else writeFloat(value as FloatArray)
        return this
    }
}

/**
 * GPU alone: what does not fit on it is an exception and not a slow fallback. Values in half precision, sums in single:
 * sums in half precision, the default, cost the nano UNet 13 dB (docs/lint.md).
 */
fun onGpu(): CompiledModel.Options {
    val precision = CompiledModel.GpuOptions.Precision.FP16_WITH_FP32_ACCUM
    return CompiledModel.Options(Accelerator.GPU).apply { gpuOptions = CompiledModel.GpuOptions(precision = precision) }
}

/** x0 / scaling factor, where x0 = a·noise + b·output: in Float, since the two nearly cancel. */
fun latentOf(noise: FloatArray, output: FloatArray, notes: Notes): FloatArray =
    FloatArray(noise.size) { (notes.a * noise[it] + notes.b * output[it]) / notes.scalingFactor }

/** The decoder's [1, 3, size, size] in [-1, 1] → opaque pixels. */
fun bitmapOf(image: FloatArray, notes: Notes): Bitmap {
    val size = notes.imageSize
    fun byte(plane: Int, pixel: Int): Int {
        val value = image[plane * size * size + pixel] * notes.imageScale + notes.imageOffset
        return Math.round(value.coerceIn(0f, 1f) * 255f)
    }
    val pixels = IntArray(size * size) { (255 shl 24) or (byte(0, it) shl 16) or (byte(1, it) shl 8) or byte(2, it) }
    return Bitmap.createBitmap(pixels, size, size, Bitmap.Config.ARGB_8888)
}

/** The JSON in the buffer of the metadata entry [NAME]; fields are numbered as in LiteRT's schema.fbs. */
fun readNotes(file: File): Notes {
    val bytes = FileInputStream(file).use { it.channel.map(FileChannel.MapMode.READ_ONLY, 0, file.length()) }
    bytes.order(ByteOrder.LITTLE_ENDIAN)
    val model = Table(bytes, bytes.getInt(0))
    val entry = model.tables(MODEL_METADATA).first { it.text(METADATA_NAME) == NAME }
    val buffer = model.tables(MODEL_BUFFERS)[bytes.getInt(entry.field(METADATA_BUFFER))]
    // A quantized file keeps long buffers behind the tables.
    val behind = buffer.field(BUFFER_OFFSET)
    val text = if (behind == 0) buffer.text(BUFFER_DATA) else
        buffer.text(bytes.getLong(behind).toInt(), bytes.getLong(buffer.field(BUFFER_SIZE)).toInt())
    return Notes(JSONObject(text))
}

/** A FlatBuffers table at [at]: its first word leads back to the offsets of its fields. */
private class Table(private val bytes: ByteBuffer, private val at: Int) {
    /** Where field [index] lies; 0 if it is left out. */
    fun field(index: Int): Int {
        val offsets = at - bytes.getInt(at)
        val place = 4 + 2 * index
        val offset = if (place < bytes.getShort(offsets)) bytes.getShort(offsets + place).toInt() else 0
        return if (offset == 0) 0 else at + offset
    }

    fun tables(index: Int): List<Table> {
        val vector = follow(field(index))
        return List(bytes.getInt(vector)) { Table(bytes, follow(vector + 4 + 4 * it)) }
    }

    fun text(index: Int): String = follow(field(index)).let { text(it + 4, bytes.getInt(it)) }

    fun text(start: Int, length: Int): String = String(ByteArray(length) { bytes.get(start + it) }, Charsets.UTF_8)

    private fun follow(position: Int): Int = position + bytes.getInt(position)
}

private const val NAME = "md_export"
private const val SIGNATURE = "main"
private const val MODEL_BUFFERS = 4
private const val MODEL_METADATA = 6
private const val METADATA_NAME = 0
private const val METADATA_BUFFER = 1
private const val BUFFER_DATA = 0
private const val BUFFER_OFFSET = 1
private const val BUFFER_SIZE = 2
