package org.example.efficientformer

import android.content.Context
import android.graphics.Bitmap
import android.graphics.Canvas
import android.graphics.Paint
import android.graphics.Rect
import android.text.SpannableStringBuilder
import android.text.Spanned
import android.text.style.ForegroundColorSpan
import com.google.mediapipe.framework.image.BitmapImageBuilder
import com.google.mediapipe.framework.image.ByteBufferExtractor
import com.google.mediapipe.tasks.core.BaseOptions
import com.google.mediapipe.tasks.vision.imagesegmenter.ImageSegmenter
import com.google.mediapipe.tasks.vision.imagesegmenter.ImageSegmenter.ImageSegmenterOptions

/** How opaque the mask is that lies over the photograph, of 255. */
private const val OPACITY = 150

/**
 * MediaPipe Tasks' ImageSegmenter, which finds shapes and normalisation in the model file's own metadata.
 *
 * Labels are an asset of their own: `ImageSegmenter.getLabels()` of release 1.0.0 is reported to be empty on Android.
 */
class Segmenter(context: Context, private val size: InputSize) : Network {
    private val labels = readLabels(context)
    private val colors = context.resources.getIntArray(R.array.class_colors)
    private val segmenter = ImageSegmenter.createFromOptions(
        context,
        ImageSegmenterOptions.builder()
            .setBaseOptions(BaseOptions.builder().setModelAssetPath(Model.ASSET).build())
            .setOutputCategoryMask(true)
            .setOutputConfidenceMasks(false)
            .build(),
    )

    override fun seen(scaled: Bitmap): Bitmap = scaled

    override fun answer(seen: Bitmap): Answer {
        // The mask is as large as the image. MediaPipe pads rows to 16 bytes, and fails on masks that are padded: the
        // sides of segmenters are multiples of 32, those of photographs are not.
        val image = Bitmap.createScaledBitmap(seen, size.width, size.height, true)
        val mask = segmenter.segment(BitmapImageBuilder(image).build()).categoryMask().get()
        val numbers = ByteBufferExtractor.extract(mask)
        val classes = IntArray(mask.width * mask.height) { numbers.get(it).toUByte().toInt() }
        return Segmentation(classes, mask.width, labels, colors)
    }

    override fun close() = segmenter.close()
}

/** The class of each pixel, row by row, of a mask that covers the whole photograph. */
private class Segmentation(
    private val classes: IntArray,
    private val width: Int,
    labels: List<String>,
    private val colors: IntArray,
) : Answer {
    /** The legend: colour, share of the pixels and name of each class that was found, the largest first. */
    override val lines: List<CharSequence>

    init {
        val counts = IntArray(labels.size)
        classes.forEach { counts[it] += 1 }
        lines = labels.indices.filter { counts[it] > 0 }.sortedByDescending { counts[it] }.map {
            val line = SpannableStringBuilder("■ %5.1f%%  %s".format(100.0 * counts[it] / classes.size, labels[it]))
            line.setSpan(ForegroundColorSpan(colors[it]), 0, 1, Spanned.SPAN_EXCLUSIVE_EXCLUSIVE)
            line
        }
    }

    override fun draw(seen: Bitmap): Bitmap {
        val pixels = IntArray(classes.size) { colors[classes[it]] }
        val mask = Bitmap.createBitmap(pixels, width, classes.size / width, Bitmap.Config.ARGB_8888)
        val drawn = seen.copy(Bitmap.Config.ARGB_8888, true)
        val whole = Rect(0, 0, drawn.width, drawn.height)
        Canvas(drawn).drawBitmap(mask, null, whole, Paint().apply { alpha = OPACITY })
        return drawn
    }
}
