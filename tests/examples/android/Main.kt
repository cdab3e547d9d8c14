// Without arguments: run the tests of examples/android. FOLDER PROMPT NEGATIVE DRAWS OUT: make a picture; big-endian
// floats, as many as are drawn; the pixels, big-endian. "-" as NEGATIVE: none given.
import java.io.DataOutputStream
import java.io.File
import java.nio.ByteBuffer
import kotlin.test.Test
import mdexport.Export
import mdexport.ExportTest
import mdexport.Generator
import mdexport.VectorTest

fun main(arguments: Array<String>) {
    if (arguments.isEmpty()) return runTests()
    val (folder, prompt, negative, draws, out) = arguments
    val floats = ByteBuffer.wrap(File(draws).readBytes()).asFloatBuffer()
    val export = Export.all(File(folder)).single()
    println(export.name)
    val picture = Generator(export).picture(
        prompt,
        if (negative == "-") export.negative else negative,
        draw = { count -> FloatArray(count) { floats.get() } },
    )
    check(!floats.hasRemaining()) { "not all noise was drawn" }
    DataOutputStream(File(out).outputStream().buffered()).use { stream -> picture.pixels.forEach { stream.writeInt(it) } }
}

private fun runTests() {
    val methods = listOf(VectorTest::class.java, ExportTest::class.java).flatMap { it.methods.toList() }
    val tests = methods.filter { it.isAnnotationPresent(Test::class.java) }
    tests.forEach { it.invoke(it.declaringClass.getConstructor().newInstance()) }
    println("${tests.size} passed")
}
