package org.example.efficientformer

import android.content.ContentResolver
import android.content.Context
import android.graphics.Bitmap
import android.net.Uri
import com.google.ai.edge.litert.Accelerator

/** A loaded model. To be made, used and closed on one thread, which is not the main thread. */
interface Network : AutoCloseable {
    /** A photograph as it is shown, and as [answer] takes it. */
    fun read(resolver: ContentResolver, photo: Uri): Bitmap

    fun answer(photo: Bitmap): Answer
}

/** What a network finds in a photograph, as the screen shows it. */
interface Answer {
    val lines: List<CharSequence>

    /** The photograph that was answered for, with what was found in it. */
    fun draw(photo: Bitmap): Bitmap
}

private val CLASSIFIER = listOf(Model.ASSET, Model.REPORT)
private val SEGMENTER = listOf(SegmentationModel.ASSET, SegmentationModel.REPORT)

/** The ways to run a model that the user can choose from, under the names that the user sees, and their assets. */
enum class Engine(private val title: String, val files: List<String>, val load: (Context) -> Network) {
    MEDIAPIPE("MediaPipe Tasks, CPU", CLASSIFIER, { MediaPipeClassifier(it) }),
    LITERT_CPU("LiteRT CompiledModel, CPU", CLASSIFIER, { LiteRTClassifier(it, Accelerator.CPU) }),
    LITERT_GPU("LiteRT CompiledModel, GPU", CLASSIFIER, { LiteRTClassifier(it, Accelerator.GPU) }),
    SEGMENTATION("Segmentation: MediaPipe Tasks, CPU", SEGMENTER, { Segmenter(it) }),
    ;

    override fun toString() = title
}
