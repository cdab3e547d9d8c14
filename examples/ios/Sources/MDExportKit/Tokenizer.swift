import Foundation

/// CLIP's byte-pair encoding, from the `tokenizer` folder of an export.
public struct Tokenizer: Sendable {
    private let vocabulary: [String: Int32]
    /// Rank of each line of `merges.txt`: two parts of a word and a space between them.
    private let ranks: [String: Int]

    /// Reads `vocab.json` and `merges.txt`, or `tokenizer.json`, which has both.
    public init(folder: URL) throws {
        let merges = folder.appendingPathComponent("merges.txt")
        if FileManager.default.fileExists(atPath: merges.path) {
            let vocabulary = try Data(contentsOf: folder.appendingPathComponent("vocab.json"))
            let lines = try String(contentsOf: merges, encoding: .utf8).split(whereSeparator: \.isNewline)
            self.init(
                vocabulary: try JSONDecoder().decode([String: Int32].self, from: vocabulary),
                merges: lines.map(String.init).filter { !$0.hasPrefix("#version") })
        } else {
            let both = try Data(contentsOf: folder.appendingPathComponent("tokenizer.json"))
            let model = try JSONDecoder().decode(TokenizerFile.self, from: both).model
            self.init(vocabulary: model.vocab, merges: model.merges.map(\.line))
        }
    }

    init(vocabulary: [String: Int32], merges: [String]) {
        self.vocabulary = vocabulary
        ranks = Dictionary(zip(merges, 0...), uniquingKeysWith: { first, _ in first })
    }

    /// Returns the start token, the prompt's tokens (cut to fit), the end token, and padding: `length` ids.
    public func ids(_ prompt: String, length: Int, special: SpecialTokens) -> [Int32] {
        let words = tokens(prompt, unknown: special.end).prefix(length - 2)
        let ids = [special.start] + words + [special.end]
        return ids + Array(repeating: special.padding, count: length - ids.count)
    }

    private func tokens(_ prompt: String, unknown: Int32) -> [Int32] {
        // One scalar at a time: the final form of a sigma is not for CLIP.
        let scalars = prompt.precomposedStringWithCanonicalMapping.unicodeScalars
        let text = scalars.map(\.properties.lowercaseMapping).joined() as NSString
        // A word may begin inside what Swift counts as one character, so it is not a range of a String.
        let words = Self.pattern.matches(in: text as String, range: NSRange(location: 0, length: text.length))
        return words.flatMap { parts(of: text.substring(with: $0.range)) }.map { vocabulary[$0] ?? unknown }
    }

    /// Merges the bytes of a word, pairs of the lowest rank first.
    private func parts(of word: String) -> [String] {
        var parts = word.utf8.map { Self.letters[Int($0)] }
        parts[parts.count - 1] += "</w>"
        while let rank = zip(parts, parts.dropFirst()).compactMap({ ranks["\($0) \($1)"] }).min() {
            var merged: [String] = []
            for part in parts {
                if let last = merged.last, ranks["\(last) \(part)"] == rank {
                    merged[merged.count - 1] = last + part
                } else {
                    merged.append(part)
                }
            }
            parts = merged
        }
        return parts
    }

    /// CLIP's pattern of words, with white space spelled out: `\s` differs between engines.
    private static let pattern = try! NSRegularExpression(
        pattern: #"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\t-\r\u0085\p{Z}\p{L}\p{N}]+"#)

    /// Letter that stands for each byte in the vocabulary: printable ones for themselves, others from U+0100 on.
    private static let letters: [String] = {
        var next = UInt32(256)
        return (0..<256).map { (byte: UInt32) in
            let printable = (33...126).contains(byte) || (161...172).contains(byte) || byte >= 174
            defer { next += printable ? 0 : 1 }
            return String(Unicode.Scalar(printable ? byte : next)!)
        }
    }()
}

/// Ids that frame a prompt.
public struct SpecialTokens: Sendable {
    public let start: Int32
    public let end: Int32
    public let padding: Int32
}

private struct TokenizerFile: Decodable {
    struct Model: Decodable {
        let vocab: [String: Int32]
        let merges: [Merge]
    }

    /// Written as `"a b"` or as `["a", "b"]`, depending on the version of the tokenizers library.
    struct Merge: Decodable {
        let line: String

        init(from decoder: Decoder) throws {
            let content = try decoder.singleValueContainer()
            line = try (try? content.decode(String.self)) ?? content.decode([String].self).joined(separator: " ")
        }
    }

    let model: Model
}
