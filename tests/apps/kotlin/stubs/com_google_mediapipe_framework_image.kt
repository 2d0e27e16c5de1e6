package com.google.mediapipe.framework.image

import android.graphics.Bitmap
import java.nio.ByteBuffer

class MPImage private constructor() : AutoCloseable {
    val width: Int get() = throw NotImplementedError()
    val height: Int get() = throw NotImplementedError()

    override fun close(): Unit = throw NotImplementedError()
}

class BitmapImageBuilder(bitmap: Bitmap) {
    fun build(): MPImage = throw NotImplementedError()
}

class ByteBufferExtractor private constructor() {
    companion object {
        @JvmStatic fun extract(image: MPImage): ByteBuffer = throw NotImplementedError()
    }
}
