import Foundation

/// What `manifest.json` says that this sample needs.
public struct Manifest: Decodable, Sendable {
    public struct Recipe: Decodable, Sendable {
        public let name: String
    }

    public struct Artifact: Decodable, Sendable {
        public let component: String
        public let file: String
        public let sha256: String
    }

    public struct Lora: Decodable, Equatable, Sendable {
        public let name: String
        public let scale: Float
    }

    public struct Steps: Decodable, Sendable {
        public let negative: String?
    }

    public let target: String
    public let recipe: Recipe
    public let artifacts: [Artifact]
    public let loras: [Lora]
    /// Nil for one step.
    public let steps: Steps?
    /// LoRAs that an app chooses by inputs of the artifacts; nil if these have none.
    public let styles: [Lora]?
}

/// One model that the app can run: a folder that md-export wrote, or one function of a joined folder.
public struct Export: Identifiable, Sendable {
    public let manifest: Manifest
    /// Folder of the artifacts.
    public let folder: URL
    /// Folder of `vocab.json` and `merges.txt`.
    public let tokenizer: URL
    /// Function of the packages, where `md-export join` wrote several into them.
    public let function: String?

    public var id: String { folder.path + "/" + (function ?? "") }

    /// The style: the function, else the LoRAs, else the recipe.
    public var name: String {
        let loras = manifest.loras.map { $0.scale == 1 ? $0.name : "\($0.name) × \($0.scale)" }
        return function ?? (loras.isEmpty ? manifest.recipe.name : loras.joined(separator: " + "))
    }

    public func artifact(_ component: String) throws -> Manifest.Artifact {
        guard let found = manifest.artifacts.first(where: { $0.component == component }) else {
            throw ExportError("\(name) has no \(component); export that component, too.")
        }
        return found
    }

    /// Finds the export in `folder`, each function of a joined one, or each export in its subfolders.
    public static func all(in folder: URL) throws -> [Export] {
        let joined = folder.appendingPathComponent("join.json")
        if FileManager.default.fileExists(atPath: joined.path) {
            let names = try JSONDecoder().decode(Joined.self, from: Data(contentsOf: joined)).functions
            return try names.map { try Export(folder, beside: folder.appendingPathComponent($0), function: $0) }
        }
        if FileManager.default.fileExists(atPath: folder.appendingPathComponent("manifest.json").path) {
            return [try Export(folder, beside: folder, function: nil)]
        }
        let inside = try FileManager.default.contentsOfDirectory(at: folder, includingPropertiesForKeys: nil)
        let holders = inside.filter { subfolder in
            ["manifest.json", "join.json"].contains {
                FileManager.default.fileExists(atPath: subfolder.appendingPathComponent($0).path)
            }
        }
        guard !holders.isEmpty else {
            throw ExportError("\(folder.path) holds no export; copy a folder there that md-export wrote.")
        }
        return try holders.sorted { $0.path < $1.path }.flatMap(all)
    }

    private init(_ folder: URL, beside: URL, function: String?) throws {
        let data = try Data(contentsOf: beside.appendingPathComponent("manifest.json"))
        manifest = try JSONDecoder().decode(Manifest.self, from: data)
        self.folder = folder
        self.function = function
        tokenizer = beside.appendingPathComponent("tokenizer")
        guard manifest.styles ?? [] == [] else {
            throw ExportError(
                "\(beside.path) was exported with --style, and this sample sets no inputs for styles. Export each style "
                    + "with --lora --unfused, and join them with md-export join.")
        }
        let components = manifest.artifacts.map(\.component)
        guard Set(components) == ["text_encoder", "unet", "vae_decoder"] else {
            throw ExportError(
                "\(beside.path) has \(components.joined(separator: ", ")); this sample runs text_encoder, unet and "
                    + "vae_decoder. Export a model of the family of MobileDiffusion or Stable Diffusion, without --chunks.")
        }
    }
}

private struct Joined: Decodable {
    let functions: [String]
}
