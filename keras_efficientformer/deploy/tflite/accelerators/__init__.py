"""Runs .tflite files on other engines than the CPU's, and compiles them for NPUs. Room: deploy/tflite/accelerators."""
