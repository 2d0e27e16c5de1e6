"""Classifies images with a Keras model. Room: classifiers."""

import keras
import numpy as np

from keras_efficientformer.deploy.network.fuse import check_whole
from keras_efficientformer.layers.image_normalization import model_inputs
from keras_efficientformer.layers.names import AVERAGE_POOL, HEADS, MASKS, PREDICTIONS
from keras_efficientformer.layers.predictions import labels_of
from keras_efficientformer.models.outputs import outputs_of
from keras_efficientformer.segmentation.decoder import is_segmenter


class KerasClassifier:
    """A Keras model; of two heads, the one that was trained on labels.

    Raises:
        ValueError: it is no segmentation model and no EfficientFormer of this package alone, so that nobody knows how
            its images are prepared.
    """

    def __init__(self, model: keras.Model) -> None:
        if not is_segmenter(model):
            check_whole(model)
        self._model, self._has_answered = model, False
        self.size: tuple[int, int] = tuple(model.inputs[0].shape[1:3])
        self.channels = int(model.inputs[0].shape[3])
        self.labels = labels_of(model)
        shape = model.outputs[0].shape
        layers = {layer.name: layer for layer in model.layers}
        classifies = HEADS[0] in layers
        self.independent = classifies and layers[PREDICTIONS[0]].activation is keras.activations.sigmoid
        self.output = "scores" if classifies else "embedding" if len(shape) == 2 else "features"
        if is_segmenter(model):
            self.output = MASKS

    def predict(self, pixels: np.ndarray) -> np.ndarray:
        """The first time without compiling the model: whoever classifies one photograph has no more."""
        inputs = model_inputs(self._model, pixels)
        if not self._has_answered:
            self._has_answered = True
            return outputs_of(self._model, inputs)[0]
        scores = self._model.predict(inputs, verbose=0)
        return scores[0] if isinstance(scores, list) else scores


def without_classifier(model: keras.Model) -> keras.Model:
    """The model up to the mean of its features, where it has a classifier after it; else the model itself."""
    layers = {layer.name: layer for layer in model.layers}
    return keras.Model(model.input, layers[AVERAGE_POOL].output, name=model.name) if HEADS[0] in layers else model
