package org.example.efficientformer

import android.app.Application
import android.graphics.Bitmap
import android.net.Uri
import androidx.lifecycle.AndroidViewModel
import androidx.lifecycle.viewModelScope
import java.util.concurrent.Executors
import kotlin.time.measureTimedValue
import kotlinx.coroutines.asCoroutineDispatcher
import kotlinx.coroutines.flow.MutableStateFlow
import kotlinx.coroutines.flow.asStateFlow
import kotlinx.coroutines.flow.update
import kotlinx.coroutines.launch

data class State(val photo: Bitmap? = null, val result: String = "")

/** The photograph, the chosen engine and the result; they survive the screen's rotation. */
class MainViewModel(application: Application) : AndroidViewModel(application) {
    private val mutableState = MutableStateFlow(State())
    val state = mutableState.asStateFlow()

    // One thread does all the work: what a GPU is given belongs to the thread that gave it.
    private val worker = Executors.newSingleThreadExecutor().asCoroutineDispatcher()
    private var engine = Engine.MEDIAPIPE
    private var classifier: Classifier? = null

    fun show(photo: Uri) = work {
        val bitmap = readPhoto(getApplication<Application>().contentResolver, photo)
        mutableState.value = State(bitmap)
        classify(bitmap)
    }

    fun use(chosen: Engine) = work {
        if (chosen != engine) {
            classifier?.close()
            classifier = null
            engine = chosen
            state.value.photo?.let(::classify)
        }
    }

    private fun classify(photo: Bitmap) {
        val loaded = classifier ?: load().also { classifier = it }
        val (predictions, time) = measureTimedValue { loaded.classify(photo) }
        val lines = predictions.map { "%5.1f%%  %s".format(100 * it.probability, it.label) }
        report((lines + "$engine: ${time.inWholeMilliseconds} ms").joinToString("\n"))
    }

    private fun load(): Classifier {
        val context = getApplication<Application>()
        val missing = listOf(Model.ASSET, Model.REPORT) - context.assets.list("").orEmpty().toSet()
        check(missing.isEmpty()) { "Missing in app/src/main/assets: ${missing.joinToString()}. See README, step 2." }
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
        worker.executor.execute { classifier?.close() }
        worker.close() // after what is queued
    }
}
