// FOLDER WORDS NOISE OUT: token ids, separated by commas; big-endian floats; the pixels, big-endian.
import java.io.DataOutputStream
import java.io.File
import java.nio.ByteBuffer
import mdexport.Generator

fun main(arguments: Array<String>) {
    val (folder, words, noise, out) = arguments
    val floats = ByteBuffer.wrap(File(noise).readBytes()).asFloatBuffer()
    val ids = words.split(",").map { it.toInt() }.toIntArray()
    val picture = Generator(File(folder)).picture(ids, FloatArray(floats.remaining()) { floats.get(it) })
    DataOutputStream(File(out).outputStream().buffered()).use { stream -> picture.pixels.forEach { stream.writeInt(it) } }
}
