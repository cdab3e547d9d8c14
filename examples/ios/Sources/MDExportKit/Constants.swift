/// What an artifact tells an app in its metadata, so that the next checkpoint needs no new code.
///
/// `docs/android.md` and `docs/sampling.md` of md-export describe each field.
public struct Constants: Sendable {
    /// Constants of one UNet call; defaults are those that the metadata leaves out.
    public struct Step: Sendable {
        public let timestep: Float
        public let a: Float
        public let b: Float
        public let scale: Float
        public let noise: Float
        public let earlier: Float
        public let x0OfX: Float
        public let x0OfOutput: Float
    }

    public let steps: [Step]
    public let start: Float
    public let guidance: Float
    public let scalingFactor: Float
    /// `[1, C, h, w]` of the noise.
    public let latentShape: [Int]
    /// Width and height of the picture in pixels.
    public let imageSize: (width: Int, height: Int)
    public let imageScale: Float
    public let imageOffset: Float
    public let textLength: Int
    public let special: SpecialTokens
    /// Names of the component's inputs, and of its output.
    public let inputs: [String]
    public let output: String
    /// Whether unconditional text embeddings are zeros instead of those of the empty prompt.
    public let zerosForEmpty: Bool

    /// Whether each UNet call gets two samples: with the empty or negative prompt, then with the prompt.
    public var isGuided: Bool { guidance > 1 }

    public init(notes: [String: String]) throws {
        let notes = Notes(values: notes)
        let timesteps = try notes.floats("timestep")
        let (a, b) = (try notes.floats("a"), try notes.floats("b"))
        let scale = try notes.floats("scale", missing: 1, count: timesteps.count)
        let noise = try notes.floats("noise", missing: 0, count: timesteps.count)
        let earlier = try notes.floats("earlier", missing: 0, count: timesteps.count)
        let x0OfX = try notes.floats("x0_of_x", missing: 0, count: timesteps.count)
        let x0OfOutput = try notes.floats("x0_of_output", missing: 0, count: timesteps.count)
        guard [a, b, scale, noise, earlier, x0OfX, x0OfOutput].allSatisfy({ $0.count == timesteps.count }) else {
            throw ExportError("The metadata has lists of different lengths; export again.")
        }
        steps = timesteps.indices.map {
            Step(
                timestep: timesteps[$0], a: a[$0], b: b[$0], scale: scale[$0], noise: noise[$0], earlier: earlier[$0],
                x0OfX: x0OfX[$0], x0OfOutput: x0OfOutput[$0])
        }
        start = try notes.floats("start", missing: 1, count: 1)[0]
        guidance = try notes.floats("guidance", missing: 1, count: 1)[0]
        scalingFactor = try notes.floats("scaling_factor")[0]
        latentShape = try notes.integers("latent_shape", separator: ",")
        let size = try notes.integers("image_size", separator: "x")
        imageSize = (size[0], size[size.count - 1])
        imageScale = try notes.floats("image_scale")[0]
        imageOffset = try notes.floats("image_offset")[0]
        textLength = try notes.integers("text_length", separator: ",")[0]
        special = SpecialTokens(
            start: Int32(try notes.integers("bos_token_id", separator: ",")[0]),
            end: Int32(try notes.integers("eos_token_id", separator: ",")[0]),
            padding: Int32(try notes.integers("pad_token_id", separator: ",")[0]))
        inputs = (notes.values["inputs"] ?? "").split(separator: ",").map(String.init)
        output = notes.values["outputs"] ?? ""
        zerosForEmpty = notes.values["zeros_for_empty"] == "true"
    }
}

private struct Notes {
    let values: [String: String]

    func floats(_ name: String) throws -> [Float] {
        try parsed(name, separator: ",") { Float($0) }
    }

    func floats(_ name: String, missing: Float, count: Int) throws -> [Float] {
        values[name] == nil ? Array(repeating: missing, count: count) : try floats(name)
    }

    func integers(_ name: String, separator: Character) throws -> [Int] {
        try parsed(name, separator: separator) { Int($0) }
    }

    private func parsed<Value>(_ name: String, separator: Character, _ parse: (Substring) -> Value?) throws -> [Value] {
        let found = (values[name] ?? "").split(separator: separator).map(parse)
        guard !found.isEmpty, !found.contains(where: { $0 == nil }) else {
            throw ExportError("The metadata has no usable \(name): the file was not written by md-export; export it again.")
        }
        return found.compactMap { $0 }
    }
}

/// A fault of an export, with what to do about it.
public struct ExportError: Error, CustomStringConvertible, Sendable {
    public let description: String

    public init(_ description: String) {
        self.description = description
    }
}
