package android.text

interface Spanned : CharSequence {
    companion object {
        const val SPAN_EXCLUSIVE_EXCLUSIVE = 33
    }
}

open class SpannableStringBuilder(text: CharSequence = "") : Spanned, Appendable {
    open fun setSpan(what: Any, start: Int, end: Int, flags: Int): Unit = throw NotImplementedError()

    override val length: Int get() = throw NotImplementedError()

    override fun get(index: Int): Char = throw NotImplementedError()

    override fun subSequence(startIndex: Int, endIndex: Int): CharSequence = throw NotImplementedError()

    override fun append(csq: CharSequence?): SpannableStringBuilder = throw NotImplementedError()

    override fun append(csq: CharSequence?, start: Int, end: Int): SpannableStringBuilder = throw NotImplementedError()

    override fun append(c: Char): SpannableStringBuilder = throw NotImplementedError()
}
