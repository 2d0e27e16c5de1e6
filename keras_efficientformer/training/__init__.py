"""Training: fine-tuning, distillation, evaluation; quantization-aware training and pruning. Imports no framework before
a function needs it.
"""

from keras_efficientformer.training.config import FineTuneConfig
from keras_efficientformer.training.evaluation import EvaluationReport, evaluate
from keras_efficientformer.training.fine_tuning import FineTuneReport, TrainingError, finetune
from keras_efficientformer.training.image_folder import list_images
from keras_efficientformer.training.pruning import prune_low_magnitude, strip_pruning
from keras_efficientformer.training.quantization import quantize_aware, to_keras

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
