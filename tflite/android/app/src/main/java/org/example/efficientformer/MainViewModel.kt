package org.example.efficientformer

import android.app.Application
import android.graphics.Bitmap
import android.net.Uri
import android.text.SpannableStringBuilder
import androidx.lifecycle.AndroidViewModel
import androidx.lifecycle.viewModelScope
import java.util.concurrent.Executors
import kotlin.time.measureTimedValue
import kotlinx.coroutines.asCoroutineDispatcher
import kotlinx.coroutines.flow.MutableStateFlow
import kotlinx.coroutines.flow.asStateFlow
import kotlinx.coroutines.flow.update
import kotlinx.coroutines.launch

data class State(val photo: Bitmap? = null, val result: CharSequence = "")

/** The photograph, the chosen engine and the result; they survive the screen's rotation. */
class MainViewModel(application: Application) : AndroidViewModel(application) {
    private val mutableState = MutableStateFlow(State())
    val state = mutableState.asStateFlow()

    // One thread does all the work: what a GPU is given belongs to the thread that gave it.
    private val worker = Executors.newSingleThreadExecutor().asCoroutineDispatcher()
    private var engine = Engine.MEDIAPIPE
    private var network: Network? = null
    private var photo: Uri? = null

    fun show(chosen: Uri) = work {
        photo = chosen
        answer()
    }

    fun use(chosen: Engine) = work {
        if (chosen != engine) {
            network?.close()
            network = null
            engine = chosen
            answer()
        }
    }

    private fun answer() {
        val chosen = photo ?: return
        mutableState.value = State() // what is shown is of another photograph or engine
        val loaded = network ?: load().also { network = it }
        val read = loaded.read(getApplication<Application>().contentResolver, chosen)
        mutableState.value = State(read)
        val (answer, time) = measureTimedValue { loaded.answer(read) }
        val lines = answer.lines + "$engine: ${time.inWholeMilliseconds} ms"
        mutableState.value = State(answer.draw(read), lines.joinTo(SpannableStringBuilder(), "\n"))
    }

    private fun load(): Network {
        val context = getApplication<Application>()
        val missing = engine.files - context.assets.list("").orEmpty().toSet()
        check(missing.isEmpty()) {
            "Missing in app/src/main/assets: ${missing.joinToString()}. The README says how to export them."
        }
        return engine.load(context)
    }

    private fun work(task: () -> Unit) {
        viewModelScope.launch(worker) {
            try {
                task()
            } catch (error: Exception) {
                report("$engine: ${error.message ?: error}")
            }
        }
    }

    private fun report(result: String) = mutableState.update { it.copy(result = result) }

    override fun onCleared() {
        worker.executor.execute { network?.close() }
        worker.close() // after what is queued
    }
}
