package android.content

import android.content.res.AssetManager
import android.content.res.Resources

abstract class Context {
    open val assets: AssetManager get() = throw NotImplementedError()
    open val resources: Resources get() = throw NotImplementedError()
    open val contentResolver: ContentResolver get() = throw NotImplementedError()

    fun getString(resId: Int): String = throw NotImplementedError()
}

abstract class ContentResolver
