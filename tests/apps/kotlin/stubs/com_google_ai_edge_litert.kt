package com.google.ai.edge.litert

import android.content.res.AssetManager

enum class Accelerator(val value: Int) { NONE(0), CPU(1), GPU(2), NPU(4) }

class LiteRtException(code: Int, message: String) : Exception(message)

abstract class JniHandle internal constructor(internal val handle: Long) : AutoCloseable {
    protected abstract fun destroy()

    override fun close(): Unit = throw NotImplementedError()
}

class TensorBuffer internal constructor(handle: Long) : JniHandle(handle) {
    @Throws(LiteRtException::class)
    fun writeFloat(data: FloatArray): Unit = throw NotImplementedError()

    @Throws(LiteRtException::class)
    fun readFloat(): FloatArray = throw NotImplementedError()

    override fun destroy(): Unit = throw NotImplementedError()
}

class Environment private constructor(handle: Long) : JniHandle(handle) {
    override fun destroy(): Unit = throw NotImplementedError()
}

class CompiledModel private constructor(handle: Long) : JniHandle(handle) {
    class Options constructor(internal vararg val accelerators: Accelerator) {
        companion object {
            @JvmStatic val CPU = Options(Accelerator.CPU)
        }
    }

    @Throws(LiteRtException::class)
    fun createInputBuffer(inputName: String, signature: String? = null): TensorBuffer = throw NotImplementedError()

    @Throws(LiteRtException::class)
    fun createOutputBuffer(outputName: String, signature: String? = null): TensorBuffer = throw NotImplementedError()

    @Throws(LiteRtException::class)
    fun run(
        inputs: Map<String, TensorBuffer>,
        outputs: Map<String, TensorBuffer>,
        signature: String? = null,
    ): Unit = throw NotImplementedError()

    override fun destroy(): Unit = throw NotImplementedError()

    companion object {
        @Throws(LiteRtException::class)
        @JvmOverloads
        @JvmStatic
        fun create(
            assetManager: AssetManager,
            assetName: String,
            options: Options = Options.CPU,
            optionalEnv: Environment? = null,
        ): CompiledModel = throw NotImplementedError()
    }
}
