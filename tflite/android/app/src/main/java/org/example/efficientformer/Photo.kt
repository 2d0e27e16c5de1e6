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
 * Reads a photograph as the network sees it: upright, scaled with its aspect ratio kept, the centre cut out.
 *
 * The geometry is `resize_and_crop`'s of the Python package. The scaling filter is Android's own.
 */
fun readPhoto(resolver: ContentResolver, photo: Uri): Bitmap =
    ImageDecoder.decodeBitmap(ImageDecoder.createSource(resolver, photo)) { decoder, info, _ ->
        decoder.allocator = ImageDecoder.ALLOCATOR_SOFTWARE // pixels in graphics memory cannot be read
        decoder.setTargetColorSpace(ColorSpace.get(ColorSpace.Named.SRGB))
        val scaled = scaledSize(info.size)
        decoder.setTargetSize(scaled.width, scaled.height)
        decoder.crop = centre(scaled)
    }

/** The size at which a photograph just covers the network's input, enlarged by what the crop takes off. */
private fun scaledSize(photo: Size): Size {
    val width = (Model.WIDTH / Model.CROP_FRACTION).toInt()
    val height = (Model.HEIGHT / Model.CROP_FRACTION).toInt()
    return if (photo.height * width > photo.width * height) {
        Size(width, photo.height * width / photo.width)
    } else {
        Size(photo.width * height / photo.height, height)
    }
}

private fun centre(scaled: Size): Rect {
    val left = round((scaled.width - Model.WIDTH) / 2.0).toInt()
    val top = round((scaled.height - Model.HEIGHT) / 2.0).toInt()
    return Rect(left, top, left + Model.WIDTH, top + Model.HEIGHT)
}
