"""Writes, quantizes and runs TFLite files, and compares their tensors with a model's. Room: deploy/tflite."""
