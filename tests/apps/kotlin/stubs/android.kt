package android

object Manifest {
    object permission {
        const val CAMERA = "android.permission.CAMERA"
    }
}

object R {
    object layout {
        const val simple_spinner_dropdown_item = 17367049
    }
}
