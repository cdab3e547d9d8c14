// Run this kit in Core ML on this Mac and write the folder results/.
//
//     swiftc -O main.swift -o run
//     ./run [all|cpuOnly|cpuAndGPU|cpuAndNeuralEngine]
//
// In an app for iPhone, call runKit with the kit's folder and a folder that the app may write.
// Needs macOS 13 or iOS 16.

import CoreML
import Foundation

struct Tensor: Decodable {
    let name: String
    let shape: [Int]
    let dtype: String
    let file: String
}

struct Case: Decodable {
    let name: String
    let inputs: [Tensor]
    let outputs: [Tensor]
}

struct Component: Decodable {
    let component: String
    let file: String
    let cases: [Case]
}

struct Kit: Decodable {
    let manifest_sha256: String
    let golden_cases: Int
    let components: [Component]
}

struct Device: Encodable {
    let schema = 1
    let manifest_sha256: String
    let golden_cases: Int
    let device: String
    let os: String
    let driver: String
    let runtime: String
    let backend: String
    let date: String
}

struct KitError: Error, CustomStringConvertible {
    let description: String
}

let units: [String: MLComputeUnits] = [
    "all": .all, "cpuOnly": .cpuOnly, "cpuAndGPU": .cpuAndGPU, "cpuAndNeuralEngine": .cpuAndNeuralEngine,
]

/// Reads raw values; every Apple device is little-endian, as the kit is.
func scalars<Scalar>(_ url: URL, _ zero: Scalar) throws -> [Scalar] {
    let data = try Data(contentsOf: url)
    var values = [Scalar](repeating: zero, count: data.count / MemoryLayout<Scalar>.stride)
    _ = values.withUnsafeMutableBytes { data.copyBytes(to: $0) }
    return values
}

func input(_ tensor: Tensor, in kit: URL) throws -> MLMultiArray {
    let url = kit.appendingPathComponent(tensor.file)
    switch tensor.dtype {
    case "float32":
        return MLMultiArray(MLShapedArray<Float>(scalars: try scalars(url, Float(0)), shape: tensor.shape))
    case "int32":
        return MLMultiArray(MLShapedArray<Int32>(scalars: try scalars(url, Int32(0)), shape: tensor.shape))
    default:
        throw KitError(description: "\(tensor.name) is \(tensor.dtype); this program passes float32 and int32")
    }
}

func runComponent(_ part: Component, _ backend: MLComputeUnits, kit: URL, results: URL) throws {
    var model = kit.appendingPathComponent("files").appendingPathComponent(part.file)
    if model.pathExtension == "mlpackage" {
        model = try MLModel.compileModel(at: model)
    }
    let configuration = MLModelConfiguration()
    configuration.computeUnits = backend
    let loaded = try MLModel(contentsOf: model, configuration: configuration)
    for one in part.cases {
        var features: [String: MLFeatureValue] = [:]
        for tensor in one.inputs {
            features[tensor.name] = MLFeatureValue(multiArray: try input(tensor, in: kit))
        }
        let made = try loaded.prediction(from: MLDictionaryFeatureProvider(dictionary: features))
        let folder = results.appendingPathComponent(part.component).appendingPathComponent(one.name)
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        for tensor in one.outputs {
            guard let array = made.featureValue(for: tensor.name)?.multiArrayValue else {
                throw KitError(description: "the model gives no array \(tensor.name)")
            }
            // Core ML may give float16, and rows with gaps between them.
            let values = MLShapedArray<Float>(converting: array).scalars
            let data = values.withUnsafeBytes { Data($0) }
            try data.write(to: folder.appendingPathComponent("\(tensor.name).bin"))
        }
    }
}

func system(_ name: String) -> String {
    var size = 0
    guard sysctlbyname(name, nil, &size, nil, 0) == 0, size > 0 else { return "unknown" }
    var text = [CChar](repeating: 0, count: size)
    guard sysctlbyname(name, &text, &size, nil, 0) == 0 else { return "unknown" }
    return String(cString: text)
}

/// Runs all packages of a kit; what keeps one from running is written in place of its outputs.
func runKit(_ kit: URL, _ backend: String, to results: URL) throws {
    guard let chosen = units[backend] else {
        throw KitError(description: "\(backend) is none of \(units.keys.sorted().joined(separator: ", "))")
    }
    guard !FileManager.default.fileExists(atPath: results.path) else {
        throw KitError(description: "\(results.path) exists; nothing was changed. Move it away first")
    }
    let content = try JSONDecoder().decode(Kit.self, from: Data(contentsOf: kit.appendingPathComponent("kit.json")))
    try FileManager.default.createDirectory(at: results, withIntermediateDirectories: true)
    for part in content.components {
        print(part.component)
        do {
            try runComponent(part, chosen, kit: kit, results: results)
        } catch {
            let folder = results.appendingPathComponent(part.component)
            try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
            try "\(error)\n".write(to: folder.appendingPathComponent("failed.txt"), atomically: true, encoding: .utf8)
            print("\(part.component) did not run: \(error)")
        }
    }
    #if os(macOS)
    let model = system("hw.model")
    #else
    let model = system("hw.machine")
    #endif
    let version = ProcessInfo.processInfo.operatingSystemVersionString
    let device = Device(
        manifest_sha256: content.manifest_sha256, golden_cases: content.golden_cases, device: "Apple \(model)",
        os: version, driver: "of the system", runtime: "Core ML of the system", backend: backend,
        date: ISO8601DateFormatter().string(from: Date()))
    let encoder = JSONEncoder()
    encoder.outputFormatting = .prettyPrinted
    try encoder.encode(device).write(to: results.appendingPathComponent("device.json"))
}

let here = URL(fileURLWithPath: FileManager.default.currentDirectoryPath)
do {
    try runKit(here, CommandLine.arguments.dropFirst().first ?? "all", to: here.appendingPathComponent("results"))
    print("results: copy this folder to the computer with the export, and run: md-export device-report OUT results")
} catch {
    FileHandle.standardError.write(Data("error: \(error)\n".utf8))
    exit(1)
}
