"""Files with a signature for each of several input sizes: joined and read. Room: deploy/tflite/sizes."""
