package org.example.efficientformer

import android.R.layout.simple_spinner_dropdown_item
import android.content.ActivityNotFoundException
import android.os.Bundle
import android.view.View
import android.widget.AdapterView
import android.widget.ArrayAdapter
import android.widget.Toast
import androidx.activity.ComponentActivity
import androidx.activity.enableEdgeToEdge
import androidx.activity.result.PickVisualMediaRequest
import androidx.activity.result.contract.ActivityResultContracts.PickVisualMedia
import androidx.activity.result.contract.ActivityResultContracts.TakePicture
import androidx.activity.viewModels
import androidx.core.content.FileProvider
import androidx.lifecycle.Lifecycle
import androidx.lifecycle.lifecycleScope
import androidx.lifecycle.repeatOnLifecycle
import java.io.File
import kotlinx.coroutines.launch
import org.example.efficientformer.databinding.ActivityMainBinding

/** The screen. The photo picker and the camera app ask the user themselves, so this app asks for no permission. */
class MainActivity : ComponentActivity() {
    private val model: MainViewModel by viewModels()
    private val taken by lazy { FileProvider.getUriForFile(this, "$packageName.photos", File(cacheDir, "photo.jpg")) }
    private val gallery = registerForActivityResult(PickVisualMedia()) { photo -> photo?.let(model::show) }
    private val camera = registerForActivityResult(TakePicture()) { saved -> if (saved) model.show(taken) }

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        enableEdgeToEdge()
        val screen = ActivityMainBinding.inflate(layoutInflater)
        setContentView(screen.root)
        screen.gallery.setOnClickListener { gallery.launch(PickVisualMediaRequest(PickVisualMedia.ImageOnly)) }
        screen.camera.setOnClickListener { takePhoto() }
        screen.engine.adapter = ArrayAdapter(this, simple_spinner_dropdown_item, Engine.entries)
        screen.engine.onItemSelectedListener = object : AdapterView.OnItemSelectedListener {
            override fun onItemSelected(parent: AdapterView<*>?, view: View?, position: Int, id: Long) =
                model.use(Engine.entries[position])

            override fun onNothingSelected(parent: AdapterView<*>?) = Unit
        }
        lifecycleScope.launch {
            repeatOnLifecycle(Lifecycle.State.STARTED) {
                model.state.collect { state ->
                    screen.photo.setImageBitmap(state.photo)
                    screen.result.text = state.result
                }
            }
        }
    }

    private fun takePhoto() {
        try {
            camera.launch(taken)
        } catch (_: ActivityNotFoundException) {
            Toast.makeText(this, R.string.no_camera, Toast.LENGTH_LONG).show()
        }
    }
}
