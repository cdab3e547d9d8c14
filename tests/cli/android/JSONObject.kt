// A stand-in for Android's class: a flat object of strings without escapes, which is what notes are.
package org.json

class JSONObject(text: String) {
    private val values = Regex("\"([^\"\\\\]*)\":\"([^\"\\\\]*)\"").findAll(text).associate { it.groupValues[1] to it.groupValues[2] }

    fun getString(name: String): String = values[name] ?: throw NoSuchElementException("No value for $name")
}
