#if canImport(SwiftUI)
    import MDExportCoreML
    import MDExportKit
    import SwiftUI

    /// A prompt, a choice of styles (exports of the folder), and the picture.
    public struct GenerateScreen: View {
        @StateObject private var studio: Studio

        /// - Parameter folder: an export, a joined one, or a folder of several.
        public init(folder: URL) {
            _studio = StateObject(wrappedValue: Studio(folder: folder))
        }

        public var body: some View {
            Form {
                Section {
                    TextField("Prompt", text: $studio.prompt, axis: .vertical)
                    if studio.isGuided {
                        TextField("Negative prompt", text: $studio.negative)
                    }
                    Picker("Style", selection: $studio.style) {
                        ForEach(studio.exports) { Text($0.name).tag(Optional($0.id)) }
                    }
                    LabeledContent("Steps", value: studio.steps.map(String.init) ?? "…")
                    TextField("Seed", value: $studio.seed, format: .number)
                }
                Section {
                    if let step = studio.step {
                        ProgressView(value: step)
                        Button("Cancel", role: .cancel) { studio.cancel() }
                    } else {
                        Button("Generate") { studio.generate() }.disabled(studio.style == nil)
                    }
                    if let fault = studio.fault {
                        Text(fault).foregroundStyle(.red)
                    }
                    if let image = studio.image {
                        Image(image, scale: 1, label: Text(studio.prompt)).resizable().scaledToFit()
                    }
                }
            }
            .onChange(of: studio.style) { _ in studio.open() }
            .onAppear { studio.find() }
        }
    }

    @MainActor
    final class Studio: ObservableObject {
        @Published var prompt = "a large red circle on the left, white background"
        @Published var negative = ""
        @Published var seed: UInt32 = 0
        @Published var style: Export.ID?
        @Published private(set) var exports: [Export] = []
        @Published private(set) var steps: Int?
        @Published private(set) var isGuided = false
        /// Share of the steps that are done; nil while nothing runs.
        @Published private(set) var step: Double?
        @Published private(set) var image: CGImage?
        @Published private(set) var fault: String?
        private let folder: URL
        private var generator: Generator?
        private var task: Task<Void, Never>?

        init(folder: URL) {
            self.folder = folder
        }

        func find() {
            guard exports.isEmpty else { return }
            do {
                exports = try Export.all(in: folder)
                style = exports.first?.id
            } catch {
                fault = "\(error)"
            }
        }

        /// Loads the chosen export; the models of the one before are released.
        func open() {
            task?.cancel()
            (generator, steps, isGuided) = (nil, nil, false)
            run { studio in
                guard let export = studio.exports.first(where: { $0.id == studio.style }) else { return }
                let generator = try Generator(export)
                let constants = try await generator.constants()
                try Task.checkCancellation()
                (studio.generator, studio.steps, studio.isGuided) = (generator, constants.steps.count, constants.isGuided)
                studio.negative = export.manifest.steps?.negative ?? ""
            }
        }

        func generate() {
            run { studio in
                guard let generator = studio.generator else { return }
                let (prompt, negative, seed) = (studio.prompt, studio.negative, UInt64(studio.seed))
                let picture = try await generator.picture(prompt, negative: negative, seed: seed) { number, count in
                    Task { @MainActor in
                        if studio.step != nil { studio.step = Double(number) / Double(count) }
                    }
                }
                studio.image = picture.cgImage
            }
        }

        func cancel() {
            task?.cancel()
        }

        private func run(_ work: @escaping @MainActor (Studio) async throws -> Void) {
            let before = task
            task = Task {
                await before?.value
                (step, fault) = (0, nil)
                defer { step = nil }
                do {
                    try await work(self)
                } catch is CancellationError {
                    // The person asked for it.
                } catch {
                    fault = "\(error)"
                }
            }
        }
    }

    extension Picture {
        var cgImage: CGImage? {
            guard let data = CGDataProvider(data: Data(pixels) as CFData) else { return nil }
            return CGImage(
                width: width, height: height, bitsPerComponent: 8, bitsPerPixel: 32, bytesPerRow: 4 * width,
                space: CGColorSpaceCreateDeviceRGB(),
                bitmapInfo: CGBitmapInfo(rawValue: CGImageAlphaInfo.premultipliedLast.rawValue),
                provider: data, decode: nil, shouldInterpolate: false, intent: .defaultIntent)
        }
    }
#endif
