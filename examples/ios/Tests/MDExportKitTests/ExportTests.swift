import Foundation
import XCTest

@testable import MDExportKit

/// Reads a folder that md-export wrote; EXPORT names it (`md-export coreml --fp16 -o ios` writes one).
final class ExportTests: XCTestCase {
    private func folder() throws -> URL {
        guard let path = ProcessInfo.processInfo.environment["EXPORT"] else {
            throw XCTSkip("EXPORT names no folder of md-export")
        }
        return URL(fileURLWithPath: path)
    }

    func testAnExport() throws {
        let found = try Export.all(in: try folder())
        XCTAssertEqual(found.count, 1)
        XCTAssertFalse(found[0].name.isEmpty)
        for component in ["text_encoder", "unet", "vae_decoder"] {
            let file = found[0].folder.appendingPathComponent(try found[0].artifact(component).file)
            XCTAssertTrue(FileManager.default.fileExists(atPath: file.path), file.path)
        }
        XCTAssertThrowsError(try found[0].artifact("controlnet"))
        XCTAssertNoThrow(try Tokenizer(folder: found[0].tokenizer))
    }

    func testAFolderOfExportsAndAJoinedOne() throws {
        let export = try folder()
        let root = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
        defer { try? FileManager.default.removeItem(at: root) }
        for name in ["plain", "joined/size_64", "joined/size_32"] {
            let place = root.appendingPathComponent(name)
            try FileManager.default.createDirectory(at: place, withIntermediateDirectories: true)
            let manifest = export.appendingPathComponent("manifest.json")
            try FileManager.default.copyItem(at: manifest, to: place.appendingPathComponent("manifest.json"))
        }
        let joined = #"{"schema": 1, "functions": ["size_64", "size_32"]}"#
        try joined.write(to: root.appendingPathComponent("joined/join.json"), atomically: true, encoding: .utf8)
        let found = try Export.all(in: root)
        XCTAssertEqual(found.map(\.function), ["size_64", "size_32", nil])
        XCTAssertEqual(found[0].name, "size_64")
        XCTAssertEqual(found[1].folder.lastPathComponent, "joined")
        XCTAssertEqual(found[1].tokenizer.pathComponents.suffix(2), ["size_32", "tokenizer"])
    }

    func testInputsForStylesAreAnError() throws {
        let root = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
        defer { try? FileManager.default.removeItem(at: root) }
        try FileManager.default.createDirectory(at: root, withIntermediateDirectories: true)
        let manifest = try String(contentsOf: folder().appendingPathComponent("manifest.json"), encoding: .utf8)
        let styled = manifest.replacingOccurrences(
            of: #""loras": []"#, with: #""loras": [], "styles": [{"name": "crayon", "scale": 1}]"#)
        XCTAssertNotEqual(styled, manifest)
        try styled.write(to: root.appendingPathComponent("manifest.json"), atomically: true, encoding: .utf8)
        XCTAssertThrowsError(try Export.all(in: root)) { XCTAssertTrue("\($0)".contains("--style")) }
    }

    func testAFolderWithoutExportsIsAnError() {
        XCTAssertThrowsError(try Export.all(in: VectorTests.repository.appendingPathComponent("examples")))
    }
}
