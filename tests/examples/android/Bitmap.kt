// A stand-in for Android's class, with the one method that examples/android calls.
package android.graphics

class Bitmap private constructor(val pixels: IntArray, val width: Int, val height: Int) {
    enum class Config { ARGB_8888 }

    companion object {
        @JvmStatic
        fun createBitmap(colors: IntArray, width: Int, height: Int, config: Config): Bitmap {
            require(colors.size == width * height && config == Config.ARGB_8888)
            return Bitmap(colors, width, height)
        }
    }
}
