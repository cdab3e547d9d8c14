import Foundation
import XCTest

@testable import MDExportKit

/// examples/testdata/vectors.json, which md-export computed.
struct Vectors: Decodable {
    struct Tokens: Decodable {
        let prompt: String
        let ids: [Int32]
    }

    struct Walk: Decodable {
        let notes: [String: String]
        let noise: [Float]
        let fresh: [[Float]]
        let timesteps: [Float]
        let samples: [[Float]]
        let outputs: [[Float]]
        let withoutPrompt: [[Float]]
        let latent: [Float]
    }

    let textLength: Int
    let tokens: [Tokens]
    let samplers: [Walk]
    let image: [Float]
    let pixels: [[UInt8]]
}

final class VectorTests: XCTestCase {
    static let repository = (0..<5).reduce(URL(fileURLWithPath: #filePath)) { url, _ in url.deletingLastPathComponent() }

    func vectors() throws -> Vectors {
        let decoder = JSONDecoder()
        decoder.keyDecodingStrategy = .custom { path in
            // Names of metadata are not translated.
            let name = path.last!.stringValue
            let inNotes = path.dropLast().last?.stringValue == "notes"
            return Key(stringValue: inNotes ? name : ["text_length": "textLength", "without_prompt": "withoutPrompt"][name] ?? name)!
        }
        let file = Self.repository.appendingPathComponent("examples/testdata/vectors.json")
        return try decoder.decode(Vectors.self, from: Data(contentsOf: file))
    }

    func testTokens() throws {
        let vectors = try vectors()
        let tokenizer = try Tokenizer(folder: Self.repository.appendingPathComponent("golden/nano/tokenizer"))
        let special = try Constants(notes: vectors.samplers[0].notes).special
        XCTAssertGreaterThan(vectors.tokens.count, 5)
        for wanted in vectors.tokens {
            let ids = tokenizer.ids(wanted.prompt, length: vectors.textLength, special: special)
            XCTAssertEqual(ids, wanted.ids, wanted.prompt)
        }
    }

    func testEverySampler() throws {
        let vectors = try vectors()
        XCTAssertEqual(vectors.samplers.count, 9)
        for wanted in vectors.samplers {
            let constants = try Constants(notes: wanted.notes)
            XCTAssertEqual(constants.steps.count, wanted.outputs.count)
            var (call, fresh) = (0, wanted.fresh[...])
            let latent = constants.sample(noise: wanted.noise, fresh: { fresh.removeFirst() }) { samples, timestep in
                defer { call += 1 }
                XCTAssertEqual(timestep, wanted.timesteps[call])
                assertClose(Array(samples.prefix(wanted.noise.count)), wanted.samples[call])
                return constants.isGuided ? wanted.withoutPrompt[call] + wanted.outputs[call] : wanted.outputs[call]
            }
            assertClose(latent, wanted.latent)
            XCTAssertTrue(fresh.isEmpty)
        }
    }

    func testPixels() throws {
        let vectors = try vectors()
        let constants = try Constants(notes: vectors.samplers[0].notes)
        XCTAssertEqual(constants.pixels(vectors.image), vectors.pixels.flatMap { $0 + [255] })
    }

    func testMissingMetadataIsAnError() throws {
        var notes = try vectors().samplers[1].notes
        notes["b"] = "0.5"
        XCTAssertThrowsError(try Constants(notes: notes))
        notes["b"] = nil
        XCTAssertThrowsError(try Constants(notes: notes)) { XCTAssertTrue("\($0)".contains("no usable b")) }
    }

    func testNoise() {
        var noise = Noise(seed: 1)
        let values = noise.draw(20_000)
        let mean = values.reduce(0, +) / Float(values.count)
        let variance = values.reduce(0) { $0 + ($1 - mean) * ($1 - mean) } / Float(values.count)
        XCTAssertEqual(mean, 0, accuracy: 0.03)
        XCTAssertEqual(variance, 1, accuracy: 0.03)
        var (same, other) = (Noise(seed: 1), Noise(seed: 2))
        XCTAssertEqual(same.draw(3), Array(values[..<3]))
        XCTAssertNotEqual(other.draw(3), Array(values[..<3]))
    }

    private func assertClose(_ made: [Float], _ wanted: [Float], line: UInt = #line) {
        XCTAssertEqual(made.count, wanted.count, line: line)
        for (one, other) in zip(made, wanted) {
            XCTAssertEqual(one, other, accuracy: 1e-5 * max(1, abs(other)), line: line)
        }
    }
}

private struct Key: CodingKey {
    let stringValue: String
    var intValue: Int? { nil }

    init?(stringValue: String) {
        self.stringValue = stringValue
    }

    init?(intValue: Int) {
        nil
    }
}
