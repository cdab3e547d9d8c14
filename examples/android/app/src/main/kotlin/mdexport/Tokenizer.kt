package mdexport

import java.io.File
import java.text.Normalizer
import java.util.Locale
import org.json.JSONArray
import org.json.JSONObject

/** CLIP's byte-pair encoding, from `vocab.json` and `merges.txt`, or from `tokenizer.json`, which has both. */
class Tokenizer(folder: File) {
    private val vocabulary: JSONObject

    /** Rank of each line of `merges.txt`: two parts of a word and a space between them. */
    private val ranks: Map<String, Int>

    init {
        val merges = File(folder, "merges.txt")
        if (merges.exists()) {
            vocabulary = JSONObject(File(folder, "vocab.json").readText())
            ranks = ranked(merges.readText().lines().filter { it.isNotEmpty() && !it.startsWith("#version") })
        } else {
            val model = JSONObject(File(folder, "tokenizer.json").readText()).getJSONObject("model")
            vocabulary = model.getJSONObject("vocab")
            val lines = model.getJSONArray("merges")
            ranks = ranked(List(lines.length()) { lineOf(lines.get(it)) })
        }
    }

    /** The start token, the prompt's tokens (cut to fit), the end token, and padding: [length] ids. */
    fun ids(prompt: String, length: Int, special: SpecialTokens): IntArray {
        val words = tokens(prompt, special.end).take(length - 2)
        val ids = listOf(special.start) + words + special.end
        return IntArray(length) { ids.getOrElse(it) { special.padding } }
    }

    private fun tokens(prompt: String, unknown: Int): List<Int> {
        val composed = Normalizer.normalize(prompt, Normalizer.Form.NFC)
        // One code point at a time: the final form of a sigma is not for CLIP.
        val text = CODE_POINT.replace(composed) { it.value.lowercase(Locale.ROOT) }
        return PATTERN.findAll(text).flatMap { partsOf(it.value) }.map { vocabulary.optInt(it, unknown) }.toList()
    }

    /** Merges the bytes of a word, pairs of the lowest rank first. */
    private fun partsOf(word: String): List<String> {
        var parts = word.toByteArray().map { LETTERS[it.toInt() and 255] }
        parts = parts.dropLast(1) + (parts.last() + "</w>")
        while (true) {
            val rank = parts.zipWithNext().mapNotNull { (first, second) -> ranks["$first $second"] }.minOrNull() ?: return parts
            parts = parts.fold(mutableListOf()) { merged, part ->
                val last = merged.lastOrNull()
                if (last != null && ranks["$last $part"] == rank) merged[merged.size - 1] = last + part else merged += part
                merged
            }
        }
    }

    private companion object {
        val CODE_POINT = Regex(".", RegexOption.DOT_MATCHES_ALL)

        /** CLIP's pattern of words, with white space spelled out: `\s` differs between engines. */
        val PATTERN = Regex("""'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\t-\r\u0085\p{Z}\p{L}\p{N}]+""")

        /** Letter that stands for each byte in the vocabulary: printable ones for themselves, others from U+0100 on. */
        val LETTERS: List<String> = run {
            var next = 256
            List(256) { byte ->
                val printable = byte in 33..126 || byte in 161..172 || byte >= 174
                (if (printable) byte else next++).toChar().toString()
            }
        }

        fun ranked(lines: List<String>): Map<String, Int> = lines.withIndex().associate { it.value to it.index }

        /** Written as `"a b"` or as `["a", "b"]`, depending on the version of the tokenizers library. */
        fun lineOf(merge: Any): String = if (merge is JSONArray) "${merge.get(0)} ${merge.get(1)}" else merge as String
    }
}

/** Ids that frame a prompt. */
class SpecialTokens(val start: Int, val end: Int, val padding: Int)
