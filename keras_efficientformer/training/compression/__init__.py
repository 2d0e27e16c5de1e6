"""Quantization-aware training and pruning with tensorflow-model-optimization."""
