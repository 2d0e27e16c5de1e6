package org.example.efficientformer

import android.Manifest
import android.R.layout.simple_spinner_dropdown_item
import android.os.Bundle
import android.view.View
import android.widget.AdapterView
import android.widget.ArrayAdapter
import android.widget.Spinner
import android.widget.Toast
import androidx.activity.ComponentActivity
import androidx.activity.enableEdgeToEdge
import androidx.activity.result.PickVisualMediaRequest
import androidx.activity.result.contract.ActivityResultContracts.PickVisualMedia
import androidx.activity.result.contract.ActivityResultContracts.RequestPermission
import androidx.activity.viewModels
import androidx.camera.core.CameraSelector
import androidx.camera.core.ImageAnalysis
import androidx.camera.lifecycle.ProcessCameraProvider
import androidx.camera.lifecycle.awaitInstance
import androidx.lifecycle.Lifecycle
import androidx.lifecycle.lifecycleScope
import androidx.lifecycle.repeatOnLifecycle
import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.launch
import org.example.efficientformer.databinding.ActivityMainBinding

/** The screen. The photo picker asks the user itself: the camera alone needs a permission. */
class MainActivity : ComponentActivity() {
    private val model: MainViewModel by viewModels()
    private var cameras: ProcessCameraProvider? = null // once the camera was asked for
    private val picker = registerForActivityResult(PickVisualMedia()) { photo -> photo?.let(model::show) }
    private val permission = registerForActivityResult(RequestPermission()) { granted ->
        if (granted) startCamera() else tell(getString(R.string.no_permission))
    }

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        enableEdgeToEdge()
        val screen = ActivityMainBinding.inflate(layoutInflater)
        setContentView(screen.root)
        screen.gallery.setOnClickListener { choosePhoto() }
        screen.camera.setOnClickListener { permission.launch(Manifest.permission.CAMERA) }
        offer(screen.engine, Engine.choices) { model.use(it) }
        offer(screen.size, Model.SIZES) { model.use(it) }
        screen.size.visibility = if (Model.SIZES.size > 1) View.VISIBLE else View.GONE
        lifecycleScope.launch {
            repeatOnLifecycle(Lifecycle.State.STARTED) {
                model.state.collect { state ->
                    screen.photo.setImageBitmap(state.photo)
                    screen.result.text = state.result
                    screen.progress.visibility = if (state.isBusy) View.VISIBLE else View.INVISIBLE
                }
            }
        }
    }

    private fun <T> offer(spinner: Spinner, choices: List<T>, use: (T) -> Unit) {
        spinner.adapter = ArrayAdapter(this, simple_spinner_dropdown_item, choices)
        spinner.onItemSelectedListener = object : AdapterView.OnItemSelectedListener {
            override fun onItemSelected(parent: AdapterView<*>?, view: View?, position: Int, id: Long) =
                use(choices[position])

            override fun onNothingSelected(parent: AdapterView<*>?) = Unit
        }
    }

    private fun choosePhoto() {
        cameras?.unbindAll()
        picker.launch(PickVisualMediaRequest(PickVisualMedia.ImageOnly))
    }

    /** Shows the camera's frames one by one, as they are answered for; what comes in between is left out. */
    private fun startCamera() {
        val frames = ImageAnalysis.Builder()
            .setBackpressureStrategy(ImageAnalysis.STRATEGY_KEEP_ONLY_LATEST)
            .setOutputImageFormat(ImageAnalysis.OUTPUT_IMAGE_FORMAT_RGBA_8888)
            .setOutputImageRotationEnabled(true)
            .build()
        frames.setAnalyzer(model.worker) { frame -> model.show(frame.use { it.toBitmap() }) }
        lifecycleScope.launch {
            try {
                val found = ProcessCameraProvider.awaitInstance(this@MainActivity).also { cameras = it }
                found.unbindAll()
                found.bindToLifecycle(this@MainActivity, CameraSelector.DEFAULT_BACK_CAMERA, frames)
            } catch (error: CancellationException) {
                throw error
            } catch (error: Exception) { // there is no camera, or another app has it
                tell(error.message ?: error.toString())
            }
        }
    }

    private fun tell(problem: String) = Toast.makeText(this, problem, Toast.LENGTH_LONG).show()
}
