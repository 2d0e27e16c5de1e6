"""Classifies images, or their pixels, with a .tflite file or a Core ML package, without Keras. Room: classifiers."""

import numpy as np

from keras_efficientformer.deploy.coreml.runtime import CoreMLModel
from keras_efficientformer.deploy.file_facts import FileFacts
from keras_efficientformer.deploy.report import CLASS_NUMBERS
from keras_efficientformer.deploy.tflite.runtime import LiteRTModel
from keras_efficientformer.layers.names import MASKS

# Exported files call the scores of the classes one of these, a sigmoid's by the first.
INDEPENDENT_SCORES = "scores"
SCORES = ("probabilities", "classLabel_probs", "logits", INDEPENDENT_SCORES)
EMBEDDINGS = ("embedding", "features")


class FileClassifier:
    """A .tflite file or a Core ML package.

    Args:
        model: the opened file.
        facts: what it says of itself.

    Attributes:
        file, facts: those two.
        output_name: the output that is asked, as the file calls it.

    Raises:
        ValueError: it does not say how images are prepared for it, or gives neither scores of classes, masks nor an
            embedding.
    """

    def __init__(self, model: LiteRTModel | CoreMLModel, facts: FileFacts | None) -> None:
        self.file = model
        self.size, self.channels = model.input_shape[:2], model.input_shape[2]
        if facts is None or not facts.mean:
            raise ValueError(
                f"{model.path} does not say how raw pixels are prepared for it: it has no metadata of their "
                "normalisation. Export the model again, or run it with code of your own."
            )
        self.facts = facts
        names = [output.name for output in model.outputs]
        found = [name for name in (*SCORES, MASKS, CLASS_NUMBERS, *EMBEDDINGS) if name in names]
        if not found:
            raise ValueError(
                f"{model.path} has no output of classes: expected one of {', '.join(SCORES)}. Found: {', '.join(names)}"
            )
        # A Core ML classifier also names the class; files with feature maps have those first.
        self.output_name = found[0]
        self.output = {**dict.fromkeys(SCORES, "scores"), CLASS_NUMBERS: MASKS}.get(found[0], found[0])
        self.independent = found[0] == INDEPENDENT_SCORES
        self.labels = getattr(model, "labels", None) or facts.labels
        if found[0] == CLASS_NUMBERS and self.labels is None:
            raise ValueError(
                f"{model.path} gives numbers of classes and not how many there are: export the model with `labels`."
            )

    def predict(self, pixels: np.ndarray) -> np.ndarray:
        found = self.file.predict(self.facts.inputs(pixels))[self.output_name]
        if self.output_name == CLASS_NUMBERS:
            return np.eye(len(self.labels or ()), dtype="float32")[found.astype("int64")]
        is_channels_first = found.ndim == 4 and isinstance(self.file, CoreMLModel)
        return found.transpose(0, 2, 3, 1) if is_channels_first else found
