package mdexport

import java.io.File
import java.io.FileInputStream
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.channels.FileChannel
import org.json.JSONObject

/** The metadata that md-export wrote to a `.tflite` file: names and their values as text. */
fun metadataOf(file: File): Map<String, String> {
    val bytes = FileInputStream(file).use { it.channel.map(FileChannel.MapMode.READ_ONLY, 0, file.length()) }
    bytes.order(ByteOrder.LITTLE_ENDIAN)
    val model = Table(bytes, bytes.getInt(0))
    val entry = model.tables(MODEL_METADATA).first { it.text(METADATA_NAME) == NAME }
    val buffer = model.tables(MODEL_BUFFERS)[bytes.getInt(entry.field(METADATA_BUFFER))]
    // A quantized file keeps long buffers behind the tables.
    val behind = buffer.field(BUFFER_OFFSET)
    val text = if (behind == 0) buffer.text(BUFFER_DATA) else
        buffer.text(bytes.getLong(behind).toInt(), bytes.getLong(buffer.field(BUFFER_SIZE)).toInt())
    val values = JSONObject(text)
    return values.keys().asSequence().associateWith { values.getString(it) }
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

// Fields are numbered as in LiteRT's schema.fbs.
private const val NAME = "md_export"
private const val MODEL_BUFFERS = 4
private const val MODEL_METADATA = 6
private const val METADATA_NAME = 0
private const val METADATA_BUFFER = 1
private const val BUFFER_DATA = 0
private const val BUFFER_OFFSET = 1
private const val BUFFER_SIZE = 2
