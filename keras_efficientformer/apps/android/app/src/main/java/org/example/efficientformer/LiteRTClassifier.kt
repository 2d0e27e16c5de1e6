package org.example.efficientformer

import android.content.Context
import android.graphics.Bitmap
import android.graphics.Color
import com.google.ai.edge.litert.Accelerator
import com.google.ai.edge.litert.CompiledModel

/** Values of a pixel. */
private const val RGB = 3

/**
 * LiteRT's CompiledModel: tensors in, tensors out, on the accelerator that is asked for and no other.
 *
 * Throws LiteRtException where the device has no such accelerator.
 */
class LiteRTClassifier(context: Context, override val size: InputSize, accelerator: Accelerator) : Classifier {
    private val labels = readLabels(context)
    private val model = CompiledModel.create(context.assets, Model.ASSET, CompiledModel.Options(accelerator))
    private val image = model.createInputBuffer(Model.INPUT, size.signature)
    private val probabilities = model.createOutputBuffer(Model.OUTPUT, size.signature)

    override fun classify(photo: Bitmap): List<Prediction> {
        image.writeFloat(rgb(photo))
        model.run(mapOf(Model.INPUT to image), mapOf(Model.OUTPUT to probabilities), size.signature)
        return labels.zip(probabilities.readFloat().asList(), ::Prediction)
            .sortedByDescending { it.probability }
            .take(TOP)
    }

    override fun close() {
        image.close()
        probabilities.close()
        model.close()
    }

    private fun rgb(photo: Bitmap): FloatArray {
        val pixels = IntArray(size.height * size.width)
        photo.getPixels(pixels, 0, size.width, 0, 0, size.width, size.height)
        val values = FloatArray(pixels.size * RGB)
        pixels.forEachIndexed { index, pixel ->
            values[index * RGB] = Color.red(pixel).toFloat()
            values[index * RGB + 1] = Color.green(pixel).toFloat()
            values[index * RGB + 2] = Color.blue(pixel).toFloat()
        }
        return values
    }
}
