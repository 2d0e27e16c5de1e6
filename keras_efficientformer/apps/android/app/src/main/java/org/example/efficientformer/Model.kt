package org.example.efficientformer

/** What a model finds in a photograph: its classes, or a class for every pixel. */
enum class Task { CLASSIFICATION, SEGMENTATION }

/** A size of images that the model file takes, in pixels, and its signature for them. */
data class InputSize(val signature: String, val height: Int, val width: Int) {
    override fun toString() = "$height x $width pixels"
}

/** All that this app knows of its model: `efficientformer app android` writes these lines from the exported file. */
object Model {
    const val ASSET = "efficientformer_l1_224_float16.tflite"

    /** The asset that has the name of a class in each line, in their order. */
    const val LABELS = "labels.txt"
    val TASK = Task.CLASSIFICATION

    /** RGB, float32 in 0..255, as it is: the normalisation is inside the model. */
    const val INPUT = "image"

    /** Of several, between which the user chooses, the first is what opens by default. */
    val SIZES = listOf(InputSize("serving_default", 224, 224))

    /** The share of the scaled photograph's short side that the network sees, as in training; 1.0 of a segmenter. */
    const val CROP_FRACTION = 0.95

    /** A probability of each class; of a segmenter the value of each for every pixel. */
    const val OUTPUT = "probabilities"
    const val CLASSES = 1000
}
