package org.example.efficientformer

import android.graphics.Bitmap

const val TOP = 5

data class Prediction(val label: String, val probability: Float)

interface Classifier : Network {
    /** Of the images that it takes. */
    val size: InputSize

    /** The [TOP] most probable classes of a photograph's [centre], the most probable first. */
    fun classify(photo: Bitmap): List<Prediction>

    override fun seen(scaled: Bitmap): Bitmap = centre(scaled, size)

    override fun answer(seen: Bitmap): Answer = Classification(classify(seen))
}

private class Classification(predictions: List<Prediction>) : Answer {
    override val lines = predictions.map { "%5.1f%%  %s".format(100 * it.probability, it.label) }

    override fun draw(seen: Bitmap) = seen
}
