// Stand-ins for what examples/android uses of LiteRT, with the signatures of LiteRT 2's sources
// (github.com/google-ai-edge/LiteRT, litert/kotlin/src/main/kotlin/com/google/ai/edge/litert: Model.kt, TensorBuffer.kt,
// Common.kt). A model is executed by LiteRT's interpreter on this machine: ./execute.py, started for each run.
package com.google.ai.edge.litert

import java.io.DataInputStream
import java.io.DataOutputStream
import java.io.File
import java.nio.file.Files

enum class Accelerator { NONE, CPU, GPU, NPU }

class TensorBuffer internal constructor() : AutoCloseable {
    internal var bits = IntArray(0)
    private var closed = false

    fun writeInt(data: IntArray) { bits = data }

    fun writeFloat(data: FloatArray) { bits = IntArray(data.size) { data[it].toRawBits() } }

    fun readFloat(): FloatArray {
        check(!closed) { "The handle has been destroyed." }
        return FloatArray(bits.size) { Float.fromBits(bits[it]) }
    }

    override fun close() { closed = true }
}

class CompiledModel private constructor(private val file: String) : AutoCloseable {
    class Options(internal val accelerators: Set<Accelerator>) {
        constructor(vararg accelerators: Accelerator) : this(setOf(*accelerators))

        var gpuOptions: GpuOptions? = null
    }

    data class GpuOptions(
        val constantTensorSharing: Boolean? = null,
        val infiniteFloatCapping: Boolean? = null,
        val allowSrcQuantizedFcConvOps: Boolean? = null,
        val precision: Precision? = null,
    ) {
        enum class Precision { DEFAULT, FP16, FP32, FP16_WITH_FP32_ACCUM }
    }

    fun createInputBuffer(inputName: String, signature: String = ""): TensorBuffer = TensorBuffer()

    fun createOutputBuffer(outputName: String, signature: String = ""): TensorBuffer = TensorBuffer()

    fun run(inputs: Map<String, TensorBuffer>, outputs: Map<String, TensorBuffer>, signature: String = "") {
        val folder = Files.createTempDirectory("litert").toFile()
        for ((name, buffer) in inputs) write(File(folder, "$name.in"), buffer.bits)
        val names = outputs.keys.toTypedArray()
        val command = arrayOf(System.getProperty("python"), System.getProperty("execute"), file, signature, folder.path)
        val process = ProcessBuilder(*command, *names).redirectErrorStream(true).start()
        val log = process.inputStream.bufferedReader().readText()
        check(process.waitFor() == 0) { log }
        for ((name, buffer) in outputs) buffer.bits = read(File(folder, "$name.out"))
        folder.deleteRecursively()
    }

    override fun close() = Unit

    companion object {
        fun create(filePath: String, options: Options = Options(Accelerator.CPU)): CompiledModel = CompiledModel(filePath)

        private fun write(file: File, bits: IntArray) =
            DataOutputStream(file.outputStream().buffered()).use { out -> bits.forEach { out.writeInt(it) } }

        private fun read(file: File): IntArray =
            DataInputStream(file.inputStream().buffered()).use { from -> IntArray((file.length() / 4).toInt()) { from.readInt() } }
    }
}
