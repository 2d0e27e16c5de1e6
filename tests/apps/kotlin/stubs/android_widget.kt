package android.widget

import android.content.Context
import android.graphics.Bitmap
import android.view.View

interface Adapter

interface SpinnerAdapter : Adapter

abstract class AdapterView<T : Adapter>(context: Context) : View(context) {
    interface OnItemSelectedListener {
        fun onItemSelected(parent: AdapterView<*>?, view: View?, position: Int, id: Long)

        fun onNothingSelected(parent: AdapterView<*>?)
    }

    var onItemSelectedListener: OnItemSelectedListener?
        get() = throw NotImplementedError()
        set(_) = throw NotImplementedError()
}

open class Spinner(context: Context) : AdapterView<SpinnerAdapter>(context) {
    var adapter: SpinnerAdapter
        get() = throw NotImplementedError()
        set(_) = throw NotImplementedError()
}

open class ArrayAdapter<T>(context: Context, resource: Int, objects: List<T>) : SpinnerAdapter

open class TextView(context: Context) : View(context) {
    var text: CharSequence
        get() = throw NotImplementedError()
        set(_) = throw NotImplementedError()
}

open class Button(context: Context) : TextView(context)

open class ImageView(context: Context) : View(context) {
    open fun setImageBitmap(bm: Bitmap?): Unit = throw NotImplementedError()
}

open class ProgressBar(context: Context) : View(context)

open class ScrollView(context: Context) : View(context)

open class Toast(context: Context) {
    open fun show(): Unit = throw NotImplementedError()

    companion object {
        const val LENGTH_LONG = 1

        @JvmStatic fun makeText(context: Context, text: CharSequence, duration: Int): Toast = throw NotImplementedError()
    }
}
