package org.example.efficientformer

import android.content.Context
import android.graphics.Bitmap
import com.google.ai.edge.litert.Accelerator

const val TOP = 5

data class Prediction(val label: String, val probability: Float)

/** A loaded model. To be made, used and closed on one thread, which is not the main thread. */
interface Classifier : AutoCloseable {
    /** The [TOP] most probable classes of a photograph as [readPhoto] gives it, the most probable first. */
    fun classify(photo: Bitmap): List<Prediction>
}

/** The ways to run the model that the user can choose from, under the names that the user sees. */
enum class Engine(private val title: String, val load: (Context) -> Classifier) {
    MEDIAPIPE("MediaPipe Tasks, CPU", { MediaPipeClassifier(it) }),
    LITERT_CPU("LiteRT CompiledModel, CPU", { LiteRTClassifier(it, Accelerator.CPU) }),
    LITERT_GPU("LiteRT CompiledModel, GPU", { LiteRTClassifier(it, Accelerator.GPU) }),
    ;

    override fun toString() = title
}
