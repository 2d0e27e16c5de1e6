from .compression.pruning import prune_low_magnitude, strip_pruning
from .compression.quantization import quantize_aware, to_keras
from .config import FineTuneConfig

# It stands in image_folders/, which lazy_loader cannot name from here.
from .data.multi_label import list_images
from .evaluation import EvaluationReport, evaluate
from .fine_tuning import FineTuneReport, TrainingError, finetune

__all__ = [
    "EvaluationReport",
    "FineTuneConfig",
    "FineTuneReport",
    "TrainingError",
    "evaluate",
    "finetune",
    "list_images",
    "prune_low_magnitude",
    "quantize_aware",
    "strip_pruning",
    "to_keras",
]
