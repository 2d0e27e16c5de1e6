package com.google.mediapipe.tasks.vision.imagesegmenter

import android.content.Context
import com.google.mediapipe.framework.image.MPImage
import com.google.mediapipe.tasks.core.BaseOptions
import java.util.Optional

abstract class ImageSegmenterResult {
    abstract fun categoryMask(): Optional<MPImage>
}

class ImageSegmenter private constructor() : AutoCloseable {
    fun segment(image: MPImage): ImageSegmenterResult = throw NotImplementedError()

    override fun close(): Unit = throw NotImplementedError()

    abstract class ImageSegmenterOptions {
        abstract class Builder {
            abstract fun setBaseOptions(value: BaseOptions): Builder

            abstract fun setOutputCategoryMask(value: Boolean): Builder

            abstract fun setOutputConfidenceMasks(value: Boolean): Builder

            fun build(): ImageSegmenterOptions = throw NotImplementedError()
        }

        companion object {
            @JvmStatic fun builder(): Builder = throw NotImplementedError()
        }
    }

    companion object {
        @JvmStatic
        fun createFromOptions(context: Context, options: ImageSegmenterOptions): ImageSegmenter =
            throw NotImplementedError()
    }
}
