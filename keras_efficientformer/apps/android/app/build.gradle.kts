plugins {
    alias(libs.plugins.android.application)
}

android {
    namespace = "org.example.efficientformer"
    compileSdk = 37

    defaultConfig {
        applicationId = "org.example.efficientformer"
        minSdk = 28 // MediaPipe Tasks' lowest; LiteRT's is 24
        targetSdk = 37
        versionCode = 1
        versionName = "1.0"
    }

    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_17
        targetCompatibility = JavaVersion.VERSION_17
    }

    buildFeatures {
        viewBinding = true
    }

    androidResources {
        noCompress += "tflite" // so that the model is mapped from the APK, not unpacked
    }
}

// All that the code names, nothing by way of another library.
dependencies {
    implementation(libs.activity)
    implementation(libs.camera.core)
    implementation(libs.camera.lifecycle)
    implementation(libs.coroutines.core)
    implementation(libs.lifecycle.common)
    implementation(libs.lifecycle.runtime)
    implementation(libs.lifecycle.viewmodel)
    implementation(libs.litert)
    implementation(libs.mediapipe.tasks.core)
    implementation(libs.mediapipe.tasks.vision)
    runtimeOnly(libs.camera.camera2)
    runtimeOnly(libs.coroutines.android)
    runtimeOnly(libs.litert.gpu)
}
