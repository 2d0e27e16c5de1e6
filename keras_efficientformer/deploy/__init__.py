"""Exporters: what turns a Keras model into files for phones. Each imports its framework only when it is called."""

from keras_efficientformer.deploy.coreml import export_coreml
from keras_efficientformer.deploy.exporting import ExportError
from keras_efficientformer.deploy.report import ExportReport
from keras_efficientformer.deploy.tflite import export_tflite

__all__ = ["ExportError", "ExportReport", "export_coreml", "export_tflite"]
