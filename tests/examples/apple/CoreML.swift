// Stand-ins for what examples/ios uses of Core ML, with the signatures of Apple's documentation
// (developer.apple.com/documentation/coreml). A package is executed by md_export.mil on this machine: ./execute.py,
// started for each call. PYTHON and EXECUTE name the program and the script.
import Foundation

public enum MLComputeUnits: Int { case cpuOnly, cpuAndGPU, all, cpuAndNeuralEngine }

open class MLModelConfiguration: NSObject {
    open var computeUnits: MLComputeUnits = .all
    open var functionName: String?
}

public struct MLShapedArray<Scalar> {
    public let scalars: [Scalar]
    public let shape: [Int]

    public init<Source: Sequence>(scalars: Source, shape: [Int]) where Source.Element == Scalar {
        self.scalars = Array(scalars)
        self.shape = shape
        precondition(self.scalars.count == shape.reduce(1, *))
    }
}

extension MLShapedArray where Scalar == Float {
    public init(converting array: MLMultiArray) {
        precondition(array.dtype == "float32")
        let values = array.data.withUnsafeBytes { Array($0.bindMemory(to: Float.self)) }
        self.init(scalars: values, shape: array.dimensions)
    }
}

public class MLMultiArray: NSObject {
    let data: Data
    let dimensions: [Int]
    let dtype: String

    public convenience init<Scalar>(_ array: MLShapedArray<Scalar>) {
        let data = array.scalars.withUnsafeBytes { Data($0) }
        self.init(data: data, dimensions: array.shape, dtype: Scalar.self == Int32.self ? "int32" : "float32")
    }

    init(data: Data, dimensions: [Int], dtype: String) {
        (self.data, self.dimensions, self.dtype) = (data, dimensions, dtype)
    }
}

open class MLFeatureValue: NSObject {
    public let multiArrayValue: MLMultiArray?

    public init(multiArray value: MLMultiArray) {
        multiArrayValue = value
    }
}

public protocol MLFeatureProvider {
    func featureValue(for featureName: String) -> MLFeatureValue?
}

open class MLDictionaryFeatureProvider: NSObject, MLFeatureProvider {
    let values: [String: MLFeatureValue]

    public init(dictionary: [String: Any]) throws {
        values = dictionary.mapValues { $0 as! MLFeatureValue }
    }

    public func featureValue(for featureName: String) -> MLFeatureValue? { values[featureName] }
}

public struct MLModelMetadataKey: Hashable {
    public static let creatorDefinedKey = MLModelMetadataKey()
}

open class MLModelDescription: NSObject {
    public let metadata: [MLModelMetadataKey: Any]

    init(metadata: [MLModelMetadataKey: Any]) {
        self.metadata = metadata
    }
}

private struct Form: Codable {
    let shape: [Int]
    let dtype: String
}

open class MLModel: NSObject {
    public let modelDescription: MLModelDescription
    private let package: URL
    private let function: String

    /// A copy, as the result of the compiler is another file.
    open class func compileModel(at modelURL: URL) throws -> URL {
        let made = FileManager.default.temporaryDirectory.appendingPathComponent("\(UUID().uuidString).mlmodelc")
        try FileManager.default.copyItem(at: modelURL, to: made)
        return made
    }

    public init(contentsOf url: URL, configuration: MLModelConfiguration) throws {
        package = url
        function = configuration.functionName ?? "-"
        precondition(url.pathExtension == "mlmodelc", "Core ML loads compiled models only")
        let told = try JSONDecoder().decode([String: String].self, from: execute(["describe", url.path]))
        modelDescription = MLModelDescription(metadata: [.creatorDefinedKey: told])
    }

    open func prediction(from input: MLFeatureProvider) throws -> MLFeatureProvider {
        let folder = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(at: folder) }
        let arrays = (input as! MLDictionaryFeatureProvider).values.compactMapValues(\.multiArrayValue)
        for (name, array) in arrays { try array.data.write(to: folder.appendingPathComponent("\(name).in")) }
        let given = arrays.mapValues { Form(shape: $0.dimensions, dtype: $0.dtype) }
        try JSONEncoder().encode(given).write(to: folder.appendingPathComponent("inputs.json"))
        let told = try execute(["predict", package.path, function, folder.path])
        let made = try JSONDecoder().decode([String: Form].self, from: told)
        return try MLDictionaryFeatureProvider(
            dictionary: made.reduce(into: [:]) { values, output in
                let data = try Data(contentsOf: folder.appendingPathComponent("\(output.key).out"))
                let array = MLMultiArray(data: data, dimensions: output.value.shape, dtype: output.value.dtype)
                values[output.key] = MLFeatureValue(multiArray: array)
            })
    }
}

private struct Failed: Error {
    let status: Int32
}

/// Returns what the script prints.
private func execute(_ arguments: [String]) throws -> Data {
    let environment = ProcessInfo.processInfo.environment
    let (process, pipe) = (Process(), Pipe())
    process.executableURL = URL(fileURLWithPath: environment["PYTHON"]!)
    process.arguments = [environment["EXECUTE"]!] + arguments
    process.standardOutput = pipe
    try process.run()
    let told = pipe.fileHandleForReading.readDataToEndOfFile()
    process.waitUntilExit()
    guard process.terminationStatus == 0 else { throw Failed(status: process.terminationStatus) }
    return told
}
