package com.google.mediapipe.tasks.vision.imageclassifier

import android.content.Context
import com.google.mediapipe.framework.image.MPImage
import com.google.mediapipe.tasks.components.containers.ClassificationResult
import com.google.mediapipe.tasks.core.BaseOptions

abstract class ImageClassifierResult {
    abstract fun classificationResult(): ClassificationResult
}

class ImageClassifier private constructor() : AutoCloseable {
    fun classify(image: MPImage): ImageClassifierResult = throw NotImplementedError()

    override fun close(): Unit = throw NotImplementedError()

    abstract class ImageClassifierOptions {
        abstract class Builder {
            abstract fun setBaseOptions(value: BaseOptions): Builder

            abstract fun setMaxResults(value: Int): Builder

            fun build(): ImageClassifierOptions = throw NotImplementedError()
        }

        companion object {
            @JvmStatic fun builder(): Builder = throw NotImplementedError()
        }
    }

    companion object {
        @JvmStatic
        fun createFromOptions(context: Context, options: ImageClassifierOptions): ImageClassifier =
            throw NotImplementedError()
    }
}
