package mdexport

import java.io.File
import kotlin.math.abs
import kotlin.math.max
import kotlin.test.Test
import kotlin.test.assertContentEquals
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertTrue
import org.json.JSONArray
import org.json.JSONObject

/** examples/testdata/vectors.json, which md-export computed. */
class VectorTest {
    private val repository = generateSequence(File("").absoluteFile) { it.parentFile }.first { File(it, "golden/nano").exists() }
    private val vectors = JSONObject(File(repository, "examples/testdata/vectors.json").readText())
    private val samplers = objects(vectors.getJSONArray("samplers"))

    @Test
    fun tokens() {
        val tokenizer = Tokenizer(File(repository, "golden/nano/tokenizer"))
        val special = Constants(notes(samplers[0])).special
        val wanted = objects(vectors.getJSONArray("tokens"))
        assertTrue(wanted.size > 5)
        for (one in wanted) {
            val ids = tokenizer.ids(one.getString("prompt"), vectors.getInt("text_length"), special)
            assertContentEquals(numbers(one.getJSONArray("ids")).map { it.toInt() }, ids.toList(), one.getString("prompt"))
        }
    }

    @Test
    fun everySampler() {
        assertEquals(9, samplers.size)
        for (wanted in samplers) {
            val constants = Constants(notes(wanted))
            val (outputs, without) = rows(wanted, "outputs") to rows(wanted, "without_prompt")
            val fresh = rows(wanted, "fresh").toMutableList()
            val noise = numbers(wanted.getJSONArray("noise"))
            var call = 0
            val latent = constants.sample(noise.toFloatArray(), { fresh.removeAt(0).toFloatArray() }) { samples, timestep ->
                assertEquals(numbers(wanted.getJSONArray("timesteps"))[call], timestep)
                assertClose(rows(wanted, "samples")[call], samples.take(noise.size))
                ((if (constants.isGuided) without[call] else emptyList()) + outputs[call++]).toFloatArray()
            }
            assertEquals(outputs.size, call)
            assertTrue(fresh.isEmpty())
            assertClose(numbers(wanted.getJSONArray("latent")), latent.toList())
        }
    }

    @Test
    fun pixels() {
        val made = Constants(notes(samplers[0])).pixels(numbers(vectors.getJSONArray("image")).toFloatArray())
        val bytes = made.map { listOf(it shr 16 and 255, it shr 8 and 255, it and 255) }
        assertEquals(rows(vectors, "pixels").map { row -> row.map { it.toInt() } }, bytes)
        assertTrue(made.all { it ushr 24 == 255 })
    }

    @Test
    fun missingMetadataIsAnError() {
        assertFailsWith<IllegalArgumentException> { Constants(notes(samplers[1]) + ("b" to "0.5")) }
        assertFailsWith<IllegalArgumentException> { Constants(notes(samplers[1]) - "b") }
    }

    private fun objects(array: JSONArray): List<JSONObject> = List(array.length()) { array.getJSONObject(it) }

    private fun numbers(array: JSONArray): List<Float> = List(array.length()) { array.getDouble(it).toFloat() }

    private fun rows(from: JSONObject, name: String): List<List<Float>> =
        from.getJSONArray(name).let { all -> List(all.length()) { numbers(all.getJSONArray(it)) } }

    private fun notes(walk: JSONObject): Map<String, String> =
        walk.getJSONObject("notes").let { notes -> notes.keys().asSequence().associateWith { notes.getString(it) } }

    private fun assertClose(wanted: List<Float>, made: List<Float>) {
        assertEquals(wanted.size, made.size)
        wanted.zip(made).forEach { (one, other) -> assertTrue(abs(one - other) <= 1e-5f * max(1f, abs(one)), "$one, $other") }
    }
}
