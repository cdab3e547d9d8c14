package mdexport

/**
 * Samples from noise to the decoder's input, in one step or many. All sums are in Float: with `epsilon` and one step, a
 * and b are 14.6 and the two products nearly cancel.
 *
 * @param noise standard normal values, as many as `latent_shape` has.
 * @param fresh draws as many values again, for a sampler that adds noise after a step.
 * @param unet computes the UNet's output for its samples (two with guidance) and timestep; both have the same size.
 */
fun Constants.sample(
    noise: FloatArray,
    fresh: () -> FloatArray,
    unet: (samples: FloatArray, timestep: Float) -> FloatArray,
): FloatArray {
    var x = FloatArray(noise.size) { start * noise[it] }
    var x0 = FloatArray(x.size)
    for (step in steps) {
        val sample = FloatArray(x.size) { step.scale * x[it] }
        val made = unet(if (isGuided) sample + sample else sample, step.timestep)
        // A recipe may have the UNet end in the decoder's input.
        if (output == "latent") return made
        val result = if (isGuided) guided(made) else made
        val added = if (step.noise > 0) fresh() else FloatArray(x.size)
        val (before, estimate) = x to x0
        x = FloatArray(x.size) {
            step.a * before[it] + step.b * result[it] + step.earlier * estimate[it] + step.noise * added[it]
        }
        x0 = FloatArray(x.size) { step.x0OfX * before[it] + step.x0OfOutput * result[it] }
    }
    return FloatArray(x.size) { x[it] / scalingFactor }
}

/** u + guidance · (c - u) of the two halves of a batch: without the prompt and with it. */
private fun Constants.guided(outputs: FloatArray): FloatArray {
    val half = outputs.size / 2
    return FloatArray(half) { outputs[it] + guidance * (outputs[half + it] - outputs[it]) }
}

/** The decoder's `[1, 3, H, W]` as opaque pixels, 0xAARRGGBB. */
fun Constants.pixels(image: FloatArray): IntArray {
    val plane = image.size / 3
    fun byte(colour: Int, pixel: Int): Int {
        val value = image[colour * plane + pixel] * imageScale + imageOffset
        return Math.round(value.coerceIn(0f, 1f) * 255f)
    }
    return IntArray(plane) { (255 shl 24) or (byte(0, it) shl 16) or (byte(1, it) shl 8) or byte(2, it) }
}
