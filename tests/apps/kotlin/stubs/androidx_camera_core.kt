package androidx.camera.core

import android.graphics.Bitmap
import java.util.concurrent.Executor

interface Camera

class CameraSelector private constructor() {
    companion object {
        @JvmField val DEFAULT_BACK_CAMERA: CameraSelector = throw NotImplementedError()
    }
}

abstract class UseCase

interface ImageProxy : AutoCloseable {
    override fun close()

    fun toBitmap(): Bitmap
}

class ImageAnalysis private constructor() : UseCase() {
    fun interface Analyzer {
        fun analyze(image: ImageProxy)
    }

    fun setAnalyzer(executor: Executor, analyzer: Analyzer): Unit = throw NotImplementedError()

    class Builder {
        fun setBackpressureStrategy(strategy: Int): Builder = throw NotImplementedError()

        fun setOutputImageFormat(outputImageFormat: Int): Builder = throw NotImplementedError()

        fun setOutputImageRotationEnabled(outputImageRotationEnabled: Boolean): Builder = throw NotImplementedError()

        fun build(): ImageAnalysis = throw NotImplementedError()
    }

    companion object {
        const val STRATEGY_KEEP_ONLY_LATEST = 0
        const val OUTPUT_IMAGE_FORMAT_RGBA_8888 = 2
    }
}
