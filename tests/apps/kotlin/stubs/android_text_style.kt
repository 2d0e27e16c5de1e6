package android.text.style

open class ForegroundColorSpan(color: Int)
