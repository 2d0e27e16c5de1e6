package com.google.mediapipe.tasks.core

abstract class BaseOptions {
    abstract class Builder {
        abstract fun setModelAssetPath(value: String): Builder

        fun build(): BaseOptions = throw NotImplementedError()
    }

    companion object {
        @JvmStatic fun builder(): Builder = throw NotImplementedError()
    }
}
