#if canImport(CoreML)
    import CoreML
    import Foundation
    import MDExportKit

    /// A picture: four bytes for each pixel, red, green, blue and alpha.
    public struct Picture: Sendable {
        public let width: Int
        public let height: Int
        public let pixels: [UInt8]
    }

    /// Makes pictures with the packages of one export. The first picture compiles them, which takes a while.
    public actor Generator {
        private let export: Export
        private let units: MLComputeUnits
        private let tokenizer: Tokenizer
        private var loaded: [String: MLModel] = [:]

        public init(_ export: Export, units: MLComputeUnits = .cpuAndNeuralEngine) throws {
            self.export = export
            self.units = units
            tokenizer = try Tokenizer(folder: export.tokenizer)
        }

        /// The constants of the UNet, for the screen: how many steps, and whether it takes a negative prompt.
        public func constants() throws -> Constants {
            try constants(of: try model("unet"))
        }

        /// - Parameters:
        ///   - negative: used with guidance; nil for the recipe's, or the empty prompt.
        ///   - progress: called before each UNet call with its number, from 0, and their count.
        /// - Throws: ExportError, Core ML's errors, and CancellationError between two steps.
        public func picture(
            _ prompt: String, negative: String? = nil, seed: UInt64,
            progress: @Sendable (Int, Int) -> Void = { _, _ in }
        ) throws -> Picture {
            var random = Noise(seed: seed)
            let count = try constants().latentShape.reduce(1, *)
            return try picture(prompt, negative: negative, progress: progress) { random.draw(count) }
        }

        /// As above, with values that `draw` gives: first the noise, then more for each step that adds noise.
        func picture(
            _ prompt: String, negative: String?, progress: @Sendable (Int, Int) -> Void, draw: () -> [Float]
        ) throws -> Picture {
            let unet = try model("unet")
            let constants = try constants(of: unet)
            var text = try embeddings(prompt, constants)
            if constants.isGuided {
                let without = negative ?? export.manifest.steps?.negative ?? ""
                let zeros = constants.zerosForEmpty && without.isEmpty
                text = (zeros ? text.map { _ in 0 } : try embeddings(without, constants)) + text
            }
            let batch = constants.isGuided ? 2 : 1
            var call = 0
            let latent = try constants.sample(noise: draw(), fresh: draw) { samples, timestep in
                try Task.checkCancellation()
                progress(call, constants.steps.count)
                call += 1
                let given = [
                    "sample": array(samples, [batch] + constants.latentShape.dropFirst()),
                    "timestep": array([timestep], [1]),
                    "encoder_hidden_states": array(text, [batch, constants.textLength, text.count / batch / constants.textLength]),
                ]
                // A recipe may fold the timestep into the weights.
                return try run(unet, given.filter { constants.inputs.contains($0.key) }, constants.output)
            }
            let image = try run(model("vae_decoder"), ["latent": array(latent, constants.latentShape)], "image")
            let (width, height) = constants.imageSize
            return Picture(width: width, height: height, pixels: constants.pixels(image))
        }

        private func embeddings(_ prompt: String, _ constants: Constants) throws -> [Float] {
            let ids = tokenizer.ids(prompt, length: constants.textLength, special: constants.special)
            let given = MLMultiArray(MLShapedArray<Int32>(scalars: ids, shape: [1, ids.count]))
            return try run(model("text_encoder"), ["input_ids": given], "last_hidden_state")
        }

        private func array(_ scalars: [Float], _ shape: [Int]) -> MLMultiArray {
            MLMultiArray(MLShapedArray<Float>(scalars: scalars, shape: shape))
        }

        private func run(_ model: MLModel, _ inputs: [String: MLMultiArray], _ output: String) throws -> [Float] {
            let given = try MLDictionaryFeatureProvider(dictionary: inputs.mapValues { MLFeatureValue(multiArray: $0) })
            guard let made = try model.prediction(from: given).featureValue(for: output)?.multiArrayValue else {
                throw ExportError("The model gives no array \(output); export again.")
            }
            // Core ML may give float16, and rows with gaps between them.
            return MLShapedArray<Float>(converting: made).scalars
        }

        /// Metadata of a package; in one with several functions, each key starts with the function's name.
        private func constants(of model: MLModel) throws -> Constants {
            let told = model.modelDescription.metadata[.creatorDefinedKey] as? [String: String] ?? [:]
            let prefix = (export.function.map { "\($0)/" } ?? "") + "md_export."
            let mine = told.filter { $0.key.hasPrefix(prefix) }
            return try Constants(notes: Dictionary(uniqueKeysWithValues: mine.map { ($0.key.dropFirst(prefix.count).description, $0.value) }))
        }

        private func model(_ component: String) throws -> MLModel {
            if let model = loaded[component] { return model }
            let artifact = try export.artifact(component)
            let configuration = MLModelConfiguration()
            configuration.computeUnits = units
            if let function = export.function {
                guard #available(iOS 18, macOS 15, *) else {
                    throw ExportError("Packages with several functions need iOS 18 or macOS 15; use md-export split.")
                }
                configuration.functionName = function
            }
            let package = export.folder.appendingPathComponent(artifact.file)
            let model = try MLModel(contentsOf: try compiled(package, artifact.sha256), configuration: configuration)
            loaded[component] = model
            return model
        }

        /// The package as the device runs it, compiled once and kept by its hash.
        private func compiled(_ package: URL, _ hash: String) throws -> URL {
            let files = FileManager.default
            let caches = try files.url(for: .cachesDirectory, in: .userDomainMask, appropriateFor: nil, create: true)
            let kept = caches.appendingPathComponent("md-export/\(hash).mlmodelc")
            if !files.fileExists(atPath: kept.path) {
                try files.createDirectory(at: kept.deletingLastPathComponent(), withIntermediateDirectories: true)
                try files.moveItem(at: try MLModel.compileModel(at: package), to: kept)
            }
            return kept
        }
    }
#endif
