package androidx.activity

import android.app.Activity
import androidx.activity.result.ActivityResultCallback
import androidx.activity.result.ActivityResultLauncher
import androidx.activity.result.contract.ActivityResultContract
import androidx.lifecycle.Lifecycle
import androidx.lifecycle.LifecycleOwner
import androidx.lifecycle.ViewModel

open class ComponentActivity : Activity(), LifecycleOwner {
    override val lifecycle: Lifecycle get() = throw NotImplementedError()

    fun <I, O> registerForActivityResult(
        contract: ActivityResultContract<I, O>,
        callback: ActivityResultCallback<O>,
    ): ActivityResultLauncher<I> = throw NotImplementedError()
}

class SystemBarStyle private constructor()

fun ComponentActivity.enableEdgeToEdge(
    statusBarStyle: SystemBarStyle = throw NotImplementedError(),
    navigationBarStyle: SystemBarStyle = throw NotImplementedError(),
): Unit = throw NotImplementedError()

@Suppress("UnusedReceiverParameter")
inline fun <reified VM : ViewModel> ComponentActivity.viewModels(
    noinline extrasProducer: (() -> Any)? = null,
    noinline factoryProducer: (() -> Any)? = null,
): Lazy<VM> = throw NotImplementedError()
