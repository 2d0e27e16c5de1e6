"""Folds a Keras model into a recorded list of steps, and the builders of those steps. Room: deploy/network."""
