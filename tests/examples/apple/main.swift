// EXPORTS STYLE PROMPT NEGATIVE DRAWS OUT: raw floats, as many as are drawn; the bytes of the pixels. "-" as NEGATIVE: none given.
// Compiled with examples/ios/Sources/MDExportCoreML/Generator.swift.
import Foundation
import MDExportKit

let arguments = CommandLine.arguments
let export = try Export.all(in: URL(fileURLWithPath: arguments[1])).first { $0.name == arguments[2] }!
let generator = try Generator(export)
let constants = try await generator.constants()
let draws = try Data(contentsOf: URL(fileURLWithPath: arguments[5])).withUnsafeBytes { Array($0.bindMemory(to: Float.self)) }

final class Drawn: @unchecked Sendable {
    var left: ArraySlice<Float>

    init(_ values: [Float]) {
        left = values[...]
    }
}

let drawn = Drawn(draws)
let count = constants.latentShape.reduce(1, *)
let negative = arguments[4] == "-" ? nil : arguments[4]
let picture = try await generator.picture(arguments[3], negative: negative, progress: { print("step", $0, "of", $1) }) {
    defer { drawn.left = drawn.left.dropFirst(count) }
    return Array(drawn.left.prefix(count))
}
precondition(drawn.left.isEmpty, "not all noise was drawn")
try Data(picture.pixels).write(to: URL(fileURLWithPath: arguments[6]))
