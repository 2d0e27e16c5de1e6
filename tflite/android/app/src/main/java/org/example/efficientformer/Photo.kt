package org.example.efficientformer

import android.content.ContentResolver
import android.graphics.Bitmap
import android.graphics.ColorSpace
import android.graphics.ImageDecoder
import android.graphics.Rect
import android.net.Uri
import android.util.Size
import kotlin.math.round

/**
 * Reads a photograph as the classifier sees it: upright, scaled with its aspect ratio kept, the centre cut out.
 *
 * The geometry is `resize_and_crop`'s of the Python package. The scaling filter is Android's own.
 */
fun readCentre(resolver: ContentResolver, photo: Uri): Bitmap = decode(resolver, photo) { decoder, size ->
    // Enlarged by what the crop takes off.
    val width = (Model.WIDTH / Model.CROP_FRACTION).toInt()
    val height = (Model.HEIGHT / Model.CROP_FRACTION).toInt()
    val scaled = covering(size, width, height)
    decoder.setTargetSize(scaled.width, scaled.height)
    decoder.crop = centre(scaled)
}

/** Reads a whole photograph, upright, its aspect ratio kept, so large that it just covers the segmenter's input. */
fun readWhole(resolver: ContentResolver, photo: Uri): Bitmap = decode(resolver, photo) { decoder, size ->
    val scaled = covering(size, SegmentationModel.WIDTH, SegmentationModel.HEIGHT)
    decoder.setTargetSize(scaled.width, scaled.height)
}

private fun decode(resolver: ContentResolver, photo: Uri, scale: (ImageDecoder, Size) -> Unit): Bitmap =
    ImageDecoder.decodeBitmap(ImageDecoder.createSource(resolver, photo)) { decoder, info, _ ->
        decoder.allocator = ImageDecoder.ALLOCATOR_SOFTWARE // pixels in graphics memory cannot be read
        decoder.setTargetColorSpace(ColorSpace.get(ColorSpace.Named.SRGB))
        scale(decoder, info.size)
    }

/** The size at which a photograph just covers a width and a height. */
private fun covering(photo: Size, width: Int, height: Int): Size =
    if (photo.height * width > photo.width * height) {
        Size(width, photo.height * width / photo.width)
    } else {
        Size(photo.width * height / photo.height, height)
    }

private fun centre(scaled: Size): Rect {
    val left = round((scaled.width - Model.WIDTH) / 2.0).toInt()
    val top = round((scaled.height - Model.HEIGHT) / 2.0).toInt()
    return Rect(left, top, left + Model.WIDTH, top + Model.HEIGHT)
}
