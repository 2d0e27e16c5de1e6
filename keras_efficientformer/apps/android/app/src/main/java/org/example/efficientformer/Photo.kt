package org.example.efficientformer

import android.content.ContentResolver
import android.graphics.Bitmap
import android.graphics.ColorSpace
import android.graphics.ImageDecoder
import android.net.Uri
import android.util.Size
import kotlin.math.round

/** Reads a photograph upright and [covering] what a network sees of it. The scaling filter is Android's own. */
fun readPhoto(resolver: ContentResolver, photo: Uri, input: InputSize): Bitmap =
    ImageDecoder.decodeBitmap(ImageDecoder.createSource(resolver, photo)) { decoder, info, _ ->
        decoder.allocator = ImageDecoder.ALLOCATOR_SOFTWARE // pixels in graphics memory cannot be read
        decoder.setTargetColorSpace(ColorSpace.get(ColorSpace.Named.SRGB))
        val size = covering(info.size, input)
        decoder.setTargetSize(size.width, size.height)
    }

/** A frame of the camera, upright, scaled as [readPhoto] scales photographs. */
fun scaled(frame: Bitmap, input: InputSize): Bitmap {
    val size = covering(Size(frame.width, frame.height), input)
    return Bitmap.createScaledBitmap(frame, size.width, size.height, true)
}

/** The centre of a scaled photograph, as large as a network's input. */
fun centre(scaled: Bitmap, input: InputSize): Bitmap {
    val left = round((scaled.width - input.width) / 2.0).toInt()
    val top = round((scaled.height - input.height) / 2.0).toInt()
    return Bitmap.createBitmap(scaled, left, top, input.width, input.height)
}

/** The size at which a photograph just covers the input and what the crop takes off, by `resize_and_crop` in Python. */
private fun covering(photo: Size, input: InputSize): Size {
    val width = (input.width / Model.CROP_FRACTION).toInt()
    val height = (input.height / Model.CROP_FRACTION).toInt()
    return if (photo.height * width > photo.width * height) {
        Size(width, photo.height * width / photo.width)
    } else {
        Size(photo.width * height / photo.height, height)
    }
}
