package org.example.efficientformer

import android.content.Context
import android.graphics.Bitmap
import com.google.ai.edge.litert.Accelerator

/** A loaded model. To be made, used and closed on one thread, which is not the main thread. */
interface Network : AutoCloseable {
    /** What the network sees of a scaled photograph. */
    fun seen(scaled: Bitmap): Bitmap

    fun answer(seen: Bitmap): Answer
}

/** What a network finds in a photograph, as the screen shows it. */
interface Answer {
    val lines: List<CharSequence>

    /** What the network saw, with what was found in it. */
    fun draw(seen: Bitmap): Bitmap
}

/**
 * The ways to run a model, under the names that the user sees.
 *
 * MediaPipe Tasks refuses files of several sizes.
 */
enum class Engine(
    private val title: String,
    private val task: Task,
    private val takesSeveralSizes: Boolean,
    val load: (Context, InputSize) -> Network,
) {
    MEDIAPIPE("MediaPipe Tasks, CPU", Task.CLASSIFICATION, false, ::MediaPipeClassifier),
    LITERT_CPU("LiteRT CompiledModel, CPU", Task.CLASSIFICATION, true, { context, size ->
        LiteRTClassifier(context, size, Accelerator.CPU)
    }),
    LITERT_GPU("LiteRT CompiledModel, GPU", Task.CLASSIFICATION, true, { context, size ->
        LiteRTClassifier(context, size, Accelerator.GPU)
    }),
    SEGMENTER("MediaPipe Tasks, CPU", Task.SEGMENTATION, false, ::Segmenter),
    ;

    override fun toString() = title

    companion object {
        /** Those for the app's model. */
        val choices = entries.filter {
            it.task == Model.TASK && (it.takesSeveralSizes || Model.SIZES.size == 1)
        }
    }
}

/** The names of the classes, in their order. */
fun readLabels(context: Context): List<String> {
    val labels = context.assets.open(Model.LABELS).bufferedReader().use { it.readLines() }
    check(labels.size == Model.CLASSES) { "${Model.LABELS} has ${labels.size} names for ${Model.CLASSES} classes." }
    return labels
}
