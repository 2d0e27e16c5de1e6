"""Fine-tuning, distillation, evaluation, quantization-aware training, pruning; frameworks are imported when called."""

from keras_efficientformer.training.compression.pruning import prune_low_magnitude, strip_pruning
from keras_efficientformer.training.compression.quantization import quantize_aware, to_keras
from keras_efficientformer.training.config import FineTuneConfig
from keras_efficientformer.training.data.image_folder import list_images
from keras_efficientformer.training.evaluation import EvaluationReport, evaluate
from keras_efficientformer.training.fine_tuning import FineTuneReport, TrainingError, finetune

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
