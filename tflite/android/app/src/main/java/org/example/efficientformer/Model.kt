package org.example.efficientformer

/**
 * All that this app knows of its classifier, as the exporter's report says it.
 *
 * For a model of your own change these lines: its report, the .json file beside it, has the values.
 */
object Model {
    const val ASSET = "efficientformer_l1_224_float16.tflite"
    const val REPORT = "efficientformer_l1_224_float16.tflite.json"
    const val SIGNATURE = "serving_default"

    /** RGB, 0..255, as it is: the normalisation is inside the model. */
    const val INPUT = "image"
    const val INPUT_TYPE = "float32"
    const val HEIGHT = 224
    const val WIDTH = 224
    const val CHANNELS = 3

    const val OUTPUT = "probabilities"
    const val OUTPUT_TYPE = "float32"
    const val CLASSES = 1000

    /** The share of the scaled photograph's short side that the network sees, as in training. */
    const val CROP_FRACTION = 0.95
}

/** All that this app knows of its segmenter, as the exporter's report says it; to be changed likewise. */
object SegmentationModel {
    const val ASSET = "efficientformer_l1_semantic_fpn_256_float16.tflite"
    const val REPORT = "efficientformer_l1_semantic_fpn_256_float16.tflite.json"

    /** RGB, 0..255, as it is, of the whole photograph, stretched to this shape. */
    const val INPUT = "image"
    const val INPUT_TYPE = "float32"
    const val HEIGHT = 256
    const val WIDTH = 256
    const val CHANNELS = 3

    /** The value of each class for every pixel; at most 256 classes, as MediaPipe's masks are bytes. */
    const val OUTPUT = "masks"
    const val OUTPUT_TYPE = "float32"
    const val CLASSES = 21
}
