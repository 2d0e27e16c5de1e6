from .coreml.exporter import export_coreml
from .export import ExportError
from .export_page import save_export_page
from .report import ExportReport
from .tflite.exporter import export_tflite

__all__ = ["ExportError", "ExportReport", "export_coreml", "export_tflite", "save_export_page"]
