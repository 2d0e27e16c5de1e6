from .coreml.exporter import export_coreml
from .export import ExportError
from .report import ExportReport
from .tflite.exporter import export_tflite

__all__ = ["ExportError", "ExportReport", "export_coreml", "export_tflite"]
