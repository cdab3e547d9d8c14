package mdexport

/**
 * What an artifact tells an app in its metadata, so that the next checkpoint needs no new code; docs/android.md and
 * docs/sampling.md of md-export describe each field.
 */
class Constants(private val notes: Map<String, String>) {
    /** Constants of one UNet call. */
    class Step(
        val timestep: Float,
        val a: Float,
        val b: Float,
        val scale: Float,
        val noise: Float,
        val earlier: Float,
        val x0OfX: Float,
        val x0OfOutput: Float,
    )

    val steps: List<Step>
    val start = floats("start", missing = 1f)[0]
    val guidance = floats("guidance", missing = 1f)[0]
    val scalingFactor = floats("scaling_factor")[0]

    /** `[1, C, h, w]` of the noise, and how many values that is. */
    val latentShape = text("latent_shape").split(",").map { it.toInt() }
    val latentLength = latentShape.reduce(Int::times)
    val imageWidth = text("image_size").split("x").first().toInt()
    val imageHeight = text("image_size").split("x").last().toInt()
    val imageScale = floats("image_scale")[0]
    val imageOffset = floats("image_offset")[0]
    val textLength = text("text_length").toInt()
    val special = SpecialTokens(
        text("bos_token_id").toInt(), text("eos_token_id").toInt(), text("pad_token_id").toInt(),
    )

    /** Names of the component's inputs, and of its output. */
    val inputs = notes["inputs"].orEmpty().split(",")
    val output = notes["outputs"].orEmpty()

    /** Whether unconditional text embeddings are zeros instead of those of the empty prompt. */
    val zerosForEmpty = notes["zeros_for_empty"] == "true"

    /** Whether each UNet call gets two samples: with the empty or negative prompt, then with the prompt. */
    val isGuided get() = guidance > 1

    init {
        val timesteps = floats("timestep")
        val columns = listOf(
            floats("a"), floats("b"), column("scale", 1f), column("noise", 0f), column("earlier", 0f),
            column("x0_of_x", 0f), column("x0_of_output", 0f),
        )
        require(columns.all { it.size == timesteps.size }) { "the metadata has lists of different lengths; export again" }
        steps = timesteps.mapIndexed { i, timestep ->
            val (a, b, scale, noise, earlier) = columns.map { it[i] }
            Step(timestep, a, b, scale, noise, earlier, columns[5][i], columns[6][i])
        }
    }

    private fun column(name: String, missing: Float): List<Float> =
        if (name in notes) floats(name) else floats("timestep").map { missing }

    private fun floats(name: String, missing: Float): List<Float> = if (name in notes) floats(name) else listOf(missing)

    private fun floats(name: String): List<Float> = text(name).split(",").map { it.toFloat() }

    private fun text(name: String): String =
        requireNotNull(notes[name]) { "the metadata has no $name: the file was not written by md-export; export it again" }
}
