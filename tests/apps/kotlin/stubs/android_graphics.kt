package android.graphics

import android.content.ContentResolver
import android.net.Uri
import android.util.Size

class Bitmap private constructor() {
    enum class Config { ALPHA_8, RGB_565, ARGB_4444, ARGB_8888, RGBA_F16, HARDWARE, RGBA_1010102 }

    val width: Int get() = throw NotImplementedError()
    val height: Int get() = throw NotImplementedError()

    fun copy(config: Config, isMutable: Boolean): Bitmap = throw NotImplementedError()

    fun getPixels(pixels: IntArray, offset: Int, stride: Int, x: Int, y: Int, width: Int, height: Int): Unit =
        throw NotImplementedError()

    companion object {
        @JvmStatic
        fun createScaledBitmap(src: Bitmap, dstWidth: Int, dstHeight: Int, filter: Boolean): Bitmap =
            throw NotImplementedError()

        @JvmStatic
        fun createBitmap(source: Bitmap, x: Int, y: Int, width: Int, height: Int): Bitmap = throw NotImplementedError()

        @JvmStatic
        fun createBitmap(colors: IntArray, width: Int, height: Int, config: Config): Bitmap = throw NotImplementedError()
    }
}

open class Canvas(bitmap: Bitmap) {
    open fun drawBitmap(bitmap: Bitmap, src: Rect?, dst: Rect, paint: Paint?): Unit = throw NotImplementedError()
}

open class Paint {
    open var alpha: Int
        get() = throw NotImplementedError()
        set(_) = throw NotImplementedError()
}

class Rect(left: Int, top: Int, right: Int, bottom: Int)

open class Color {
    companion object {
        @JvmStatic fun red(color: Int): Int = throw NotImplementedError()

        @JvmStatic fun green(color: Int): Int = throw NotImplementedError()

        @JvmStatic fun blue(color: Int): Int = throw NotImplementedError()
    }
}

abstract class ColorSpace {
    enum class Named { SRGB, DISPLAY_P3 }

    companion object {
        @JvmStatic fun get(name: Named): ColorSpace = throw NotImplementedError()
    }
}

class ImageDecoder private constructor() : AutoCloseable {
    abstract class Source

    open class ImageInfo private constructor() {
        val size: Size get() = throw NotImplementedError()
    }

    fun interface OnHeaderDecodedListener {
        fun onHeaderDecoded(decoder: ImageDecoder, info: ImageInfo, source: Source)
    }

    var allocator: Int
        get() = throw NotImplementedError()
        set(_) = throw NotImplementedError()

    fun setTargetColorSpace(colorSpace: ColorSpace?): Unit = throw NotImplementedError()

    fun setTargetSize(width: Int, height: Int): Unit = throw NotImplementedError()

    override fun close(): Unit = throw NotImplementedError()

    companion object {
        const val ALLOCATOR_SOFTWARE = 1

        @JvmStatic fun createSource(cr: ContentResolver, uri: Uri): Source = throw NotImplementedError()

        @JvmStatic
        fun decodeBitmap(src: Source, listener: OnHeaderDecodedListener): Bitmap = throw NotImplementedError()
    }
}
