import Foundation

extension Constants {
    /// Samples from noise to the decoder's input, in one step or many. All sums are in `Float`: with `epsilon` and one
    /// step, a and b are 14.6 and the two products nearly cancel.
    ///
    /// - Parameters:
    ///   - noise: values from N(0, 1), as many as `latentShape` has.
    ///   - fresh: draws as many values again, for a sampler that adds noise after a step.
    ///   - unet: computes the UNet's output for its samples (two with guidance) and timestep; both have the same size.
    public func sample(
        noise: [Float], fresh: () -> [Float], unet: (_ samples: [Float], _ timestep: Float) throws -> [Float]
    ) rethrows -> [Float] {
        var x = noise.map { start * $0 }
        var x0 = [Float](repeating: 0, count: x.count)
        for step in steps {
            let sample = x.map { step.scale * $0 }
            let made = try unet(isGuided ? sample + sample : sample, step.timestep)
            if output == "latent" { return made }
            let result = isGuided ? guided(made) : made
            let added = step.noise > 0 ? fresh() : []
            let before = x
            for i in x.indices {
                x[i] = step.a * before[i] + step.b * result[i] + step.earlier * x0[i]
                if step.noise > 0 { x[i] += step.noise * added[i] }
                x0[i] = step.x0OfX * before[i] + step.x0OfOutput * result[i]
            }
        }
        return x.map { $0 / scalingFactor }
    }

    /// u + guidance · (c - u) of the two halves of a batch: without the prompt and with it.
    private func guided(_ outputs: [Float]) -> [Float] {
        let half = outputs.count / 2
        return (0..<half).map { outputs[$0] + guidance * (outputs[half + $0] - outputs[$0]) }
    }

    /// Returns red, green, blue and an opaque alpha for each pixel of the decoder's `[1, 3, H, W]`.
    public func pixels(_ image: [Float]) -> [UInt8] {
        let plane = image.count / 3
        return (0..<plane).flatMap { pixel in
            (0..<3).map { colour in
                let value = image[colour * plane + pixel] * imageScale + imageOffset
                return UInt8((min(max(value, 0), 1) * 255).rounded())
            } + [255]
        }
    }
}

/// Normally distributed values, the same for the same seed (SplitMix64 and Box–Muller). They are not torch's.
public struct Noise {
    private var state: UInt64

    public init(seed: UInt64) {
        state = seed
    }

    public mutating func draw(_ count: Int) -> [Float] {
        (0..<count).map { _ in
            let radius = (-2 * log(1 - uniform())).squareRoot()
            return Float(radius * cos(2 * .pi * uniform()))
        }
    }

    /// The next value in [0, 1).
    private mutating func uniform() -> Double {
        state &+= 0x9E37_79B9_7F4A_7C15
        var bits = state
        bits = (bits ^ (bits >> 30)) &* 0xBF58_476D_1CE4_E5B9
        bits = (bits ^ (bits >> 27)) &* 0x94D0_49BB_1331_11EB
        return Double((bits ^ (bits >> 31)) >> 11) / Double(1 << 53)
    }
}
