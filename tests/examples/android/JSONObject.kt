// Stand-ins for Android's classes, with what examples/android calls of them.
package org.json

class JSONObject internal constructor(private val values: Map<String, Any?>) {
    constructor(text: String) : this(Json(text).all())

    fun keys(): Iterator<String> = values.keys.iterator()

    fun isNull(name: String): Boolean = values[name] == null

    fun getString(name: String): String = given(name) as String

    fun getInt(name: String): Int = getDouble(name).toInt()

    fun getDouble(name: String): Double = given(name) as Double

    fun optInt(name: String, fallback: Int): Int = (values[name] as? Double)?.toInt() ?: fallback

    fun getJSONObject(name: String): JSONObject = given(name) as JSONObject

    fun optJSONObject(name: String): JSONObject? = values[name] as? JSONObject

    fun getJSONArray(name: String): JSONArray = given(name) as JSONArray

    private fun given(name: String): Any = values[name] ?: throw NoSuchElementException("No value for $name")
}

class JSONArray internal constructor(private val values: List<Any?>) {
    fun length(): Int = values.size

    fun get(index: Int): Any = values[index]!!

    fun getDouble(index: Int): Double = get(index) as Double

    fun getJSONObject(index: Int): JSONObject = get(index) as JSONObject

    fun getJSONArray(index: Int): JSONArray = get(index) as JSONArray
}

/** Reads well-formed JSON. */
private class Json(private val text: String) {
    private var at = 0

    fun all(): Map<String, Any?> = run { peek(); pairs() }

    private fun value(): Any? = when (peek()) {
        '{' -> JSONObject(pairs())
        '[' -> JSONArray(items(']') { value() })
        '"' -> string()
        else -> Regex("[^\\s,\\]}]+").matchAt(text, at)!!.value.also { at += it.length }.let {
            when (it) { "null" -> null; "true" -> true; "false" -> false; else -> it.toDouble() }
        }
    }

    private fun pairs(): Map<String, Any?> = items('}') { string().also { take(':') } to value() }.toMap()

    private fun <T> items(end: Char, item: () -> T): List<T> {
        val found = mutableListOf<T>()
        at++
        while (peek() != end) {
            found += item()
            if (peek() == ',') at++
        }
        at++
        return found
    }

    private fun string(): String {
        val made = StringBuilder()
        take('"')
        while (text[at] != '"') {
            val letter = text[at++]
            made.append(if (letter == '\\') escaped() else letter)
        }
        at++
        return made.toString()
    }

    private fun escaped(): Char = when (val letter = text[at++]) {
        'u' -> text.substring(at, at + 4).toInt(16).toChar().also { at += 4 }
        'b' -> '\b'
        'f' -> '\u000c'
        'n' -> '\n'
        'r' -> '\r'
        't' -> '\t'
        else -> letter
    }

    private fun peek(): Char {
        while (text[at].isWhitespace()) at++
        return text[at]
    }

    private fun take(letter: Char) = check(peek() == letter).also { at++ }
}
