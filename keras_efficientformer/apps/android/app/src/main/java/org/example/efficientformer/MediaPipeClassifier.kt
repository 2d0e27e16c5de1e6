package org.example.efficientformer

import android.content.Context
import android.graphics.Bitmap
import com.google.mediapipe.framework.image.BitmapImageBuilder
import com.google.mediapipe.tasks.core.BaseOptions
import com.google.mediapipe.tasks.vision.imageclassifier.ImageClassifier
import com.google.mediapipe.tasks.vision.imageclassifier.ImageClassifier.ImageClassifierOptions

/** MediaPipe Tasks, which finds shapes and normalisation in the model file's own metadata. */
class MediaPipeClassifier(context: Context, override val size: InputSize) : Classifier {
    private val labels = readLabels(context)
    private val classifier = ImageClassifier.createFromOptions(
        context,
        ImageClassifierOptions.builder()
            .setBaseOptions(BaseOptions.builder().setModelAssetPath(Model.ASSET).build())
            .setMaxResults(TOP)
            .build(),
    )

    override fun classify(photo: Bitmap): List<Prediction> {
        val result = classifier.classify(BitmapImageBuilder(photo).build()).classificationResult()
        return result.classifications().single().categories().map { Prediction(labels[it.index()], it.score()) }
    }

    override fun close() = classifier.close()
}
