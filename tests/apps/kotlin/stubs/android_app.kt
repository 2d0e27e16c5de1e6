package android.app

import android.content.Context
import android.os.Bundle
import android.view.LayoutInflater
import android.view.View

open class Application : Context()

open class Activity : Context() {
    open val layoutInflater: LayoutInflater get() = stub()

    protected open fun onCreate(savedInstanceState: Bundle?): Unit = stub()

    open fun setContentView(view: View?): Unit = stub()
}

private fun stub(): Nothing = throw NotImplementedError()
