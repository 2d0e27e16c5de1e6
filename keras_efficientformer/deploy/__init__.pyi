from .comparison.comparing import compare_modes
from .comparison.picture import plot_comparison
from .comparison.results import ComparisonReport
from .coreml.exporter import export_coreml
from .export import ExportError
from .export_page import save_export_page
from .report import ExportReport
from .tflite.exporter import export_tflite

__all__ = [
    "ComparisonReport",
    "ExportError",
    "ExportReport",
    "compare_modes",
    "export_coreml",
    "export_tflite",
    "plot_comparison",
    "save_export_page",
]
