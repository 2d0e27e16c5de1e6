package org.example.efficientformer

import android.content.ContentResolver
import android.graphics.Bitmap
import android.net.Uri

const val TOP = 5

data class Prediction(val label: String, val probability: Float)

interface Classifier : Network {
    /** The [TOP] most probable classes of a photograph as [read] gives it, the most probable first. */
    fun classify(photo: Bitmap): List<Prediction>

    override fun read(resolver: ContentResolver, photo: Uri): Bitmap = readCentre(resolver, photo)

    override fun answer(photo: Bitmap): Answer = Classification(classify(photo))
}

private class Classification(predictions: List<Prediction>) : Answer {
    override val lines = predictions.map { "%5.1f%%  %s".format(100 * it.probability, it.label) }

    override fun draw(photo: Bitmap) = photo
}
