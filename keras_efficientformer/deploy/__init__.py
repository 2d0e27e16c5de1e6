"""Exports Keras models as TFLite files and Core ML packages. Room: deploy.

Each exporter imports its framework only when it is called.
"""

from keras_efficientformer.deploy.coreml.exporter import export_coreml
from keras_efficientformer.deploy.export import ExportError
from keras_efficientformer.deploy.report import ExportReport
from keras_efficientformer.deploy.tflite.exporter import export_tflite

__all__ = ["ExportError", "ExportReport", "export_coreml", "export_tflite"]
