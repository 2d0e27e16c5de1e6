"""Runs .tflite files on other engines than the CPU's, where this machine has them. Room: deploy/tflite/accelerators."""
