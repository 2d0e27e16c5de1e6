from .apple_timing import benchmark_coreml, export_twin
from .mobilenet_reference import export_mobilenet_v2

__all__ = ["benchmark_coreml", "export_mobilenet_v2", "export_twin"]
