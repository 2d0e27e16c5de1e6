package android.view

import android.content.Context

abstract class LayoutInflater

open class View(context: Context) {
    fun interface OnClickListener {
        fun onClick(v: View)
    }

    var visibility: Int
        get() = throw NotImplementedError()
        set(_) = throw NotImplementedError()

    open fun setOnClickListener(l: OnClickListener?): Unit = throw NotImplementedError()

    companion object {
        const val VISIBLE = 0
        const val INVISIBLE = 4
        const val GONE = 8
    }
}
