package org.example.efficientformer

import android.app.Application
import android.graphics.Bitmap
import android.net.Uri
import android.text.SpannableStringBuilder
import androidx.lifecycle.AndroidViewModel
import java.util.concurrent.ExecutorService
import java.util.concurrent.Executors
import kotlinx.coroutines.flow.MutableStateFlow
import kotlinx.coroutines.flow.asStateFlow
import kotlinx.coroutines.flow.update

/** How often a photograph is answered for, so that its time is that of a warm model. */
private const val RUNS = 6

data class State(val photo: Bitmap? = null, val result: CharSequence = "", val isBusy: Boolean = false)

/** The photograph, the chosen engine and input size, and the result; they survive the screen's rotation. */
class MainViewModel(application: Application) : AndroidViewModel(application) {
    private val mutableState = MutableStateFlow(State())
    val state = mutableState.asStateFlow()

    /** The thread that does all the work: what a GPU is given belongs to the thread that gave it. */
    val worker: ExecutorService = Executors.newSingleThreadExecutor()
    private var engine = Engine.choices.first()
    private var size = Model.SIZES.first()
    private var network: Result<Network>? = null // once it is loaded, or has failed to
    private var timing = Timing()
    private var photo: Uri? = null

    fun show(chosen: Uri) = worker.execute {
        photo = chosen
        answerPhoto()
    }

    fun use(chosen: Engine) = worker.execute {
        if (chosen != engine) {
            engine = chosen
            answerAnew()
        }
    }

    fun use(chosen: InputSize) = worker.execute {
        if (chosen != size) {
            size = chosen
            answerAnew()
        }
    }

    private fun answerAnew() {
        network?.onSuccess { it.close() }
        network = null
        answerPhoto()
    }

    /** Answers for a frame of the camera. To be called on [worker]. */
    fun show(frame: Bitmap) {
        photo = null
        attempt { answer(scaled(frame, size), runs = 1) }
    }

    private fun answerPhoto() {
        val chosen = photo ?: return
        mutableState.value = State(isBusy = true) // what is shown is of another photograph, engine or size
        attempt { answer(readPhoto(getApplication<Application>().contentResolver, chosen, size), RUNS) }
    }

    private fun answer(scaled: Bitmap, runs: Int) {
        val loaded = network ?: load().also { network = it }
        val answer = loaded.map { network ->
            val seen = network.seen(scaled)
            val found = List(runs) { timing.measure { network.answer(seen) } }.last()
            State(found.draw(seen), (found.lines + "$engine: $timing").joinTo(SpannableStringBuilder(), "\n"))
        }
        mutableState.value = answer.getOrThrow()
    }

    private fun load(): Result<Network> {
        mutableState.update { it.copy(isBusy = true) }
        timing = Timing()
        return runCatching { engine.load(getApplication(), size) }
    }

    /** Shows what goes wrong: also LinkageError, of libraries that have no code for this device's processor. */
    private fun attempt(task: () -> Unit) {
        val error = runCatching(task).exceptionOrNull() ?: return
        if (error !is Exception && error !is LinkageError) throw error
        mutableState.update { it.copy(result = "$engine: ${error.message ?: error}", isBusy = false) }
    }

    override fun onCleared() {
        worker.execute { network?.onSuccess { it.close() } }
        worker.shutdown() // after what is queued
    }
}
