"""Prunes an EfficientFormer's weights by magnitude while it is trained in tf_keras. Room: training/compression.

    pruned = prune_low_magnitude(model, tfmot.sparsity.keras.PolynomialDecay(0.0, 0.5, begin_step=0, end_step=1000))
    pruned.compile("adam", "sparse_categorical_crossentropy")
    pruned.fit(images, classes, callbacks=[tfmot.sparsity.keras.UpdatePruningStep()])
    sparse = strip_pruning(pruned)
    export_tflite(sparse, "model.tflite")

The limits of tensorflow-model-optimization (tfmot) 0.8.1:

- It takes tf_keras (Keras 2) models only: what is trained is the fused network (`quantization.py`).
- Zeros make a file smaller once it is compressed, as app stores do, but not by itself, and LiteRT computes with them
  as with other numbers: a .tflite file has every zero, and its speed is that of the dense one.
- Pruned and quantization-aware at once is not supported: prune, then export with `quantize="int8"`, which keeps zeros
  zero, or fine-tune the model of `to_keras` with `quantize_aware`, which does not keep them.
- `fit` without the callback `UpdatePruningStep` is an error of TensorFlow's, "Prune() wrapper requires ...".
"""

from typing import TYPE_CHECKING, Any

import keras

from keras_efficientformer.deploy.network.fuse import fuse
from keras_efficientformer.training.compression.tfmot import load_tfmot

if TYPE_CHECKING:
    import tf_keras


def prune_low_magnitude(
    model: keras.Model, pruning_schedule: Any = None, *, include_preprocessing: bool = True
) -> "tf_keras.Model":
    """A model whose 1x1 convolutions and dense layers are pruned while it is trained (arXiv 1710.01878).

    These hold nine tenths of the weights. The first convolutions, the 3x3 convolutions between stages, those of
    single channels and the classifier, small or sensitive, stay as they are.

    Args:
        model: an EfficientFormer of this package, of either family, on any backend; it is read, not changed.
        pruning_schedule: a `tfmot.sparsity.keras.PruningSchedule`; None means tfmot's own default, half of the weights
            from the start.
        include_preprocessing: whether images are raw RGB in 0..255, float32, normalised inside; else they are what
            `preprocess_input` returns. `export_tflite` needs the same choice.

    Returns:
        A tf_keras Functional model; fit it with the callback `tfmot.sparsity.keras.UpdatePruningStep()`.

    Raises:
        ValueError: the model is no EfficientFormer, has other operations, or `fuse` refuses it.
        ImportError: tf_keras or tensorflow-model-optimization is not installed.
    """
    tfmot = load_tfmot()
    import tf_keras

    # It imports tf_keras and TensorFlow, which `import keras_efficientformer.training` must not.
    from keras_efficientformer.deploy.network.tf_keras_builder import build_tf_keras

    network = fuse(model, include_preprocessing)
    settings = {} if pruning_schedule is None else {"pruning_schedule": pruning_schedule}

    def wrap(layer: "tf_keras.layers.Layer") -> "tf_keras.layers.Layer":
        return tfmot.sparsity.keras.prune_low_magnitude(layer, **settings) if _is_pruned(layer) else layer

    pruned = tf_keras.models.clone_model(build_tf_keras(network), clone_function=wrap)
    pruned.fused_network = network
    return pruned


def strip_pruning(model: "tf_keras.Model") -> "tf_keras.Model":
    """The trained model without the wrappers that pruned it; its zeros stay.

    Args:
        model: what `prune_low_magnitude` returned, trained.

    Raises:
        ValueError: the model is another one, or training has left weights that are not finite.
    """
    # It imports tf_keras and TensorFlow, which `import keras_efficientformer.training` must not.
    from keras_efficientformer.deploy.network.tf_keras_builder import trained_network

    network = trained_network(model)
    stripped = load_tfmot().sparsity.keras.strip_pruning(model)
    stripped.fused_network = network
    return stripped


def _is_pruned(layer: "tf_keras.layers.Layer") -> bool:
    """Whether it is a 1x1 convolution, or a dense layer of tokens, which the classifier is not."""
    import tf_keras

    if isinstance(layer, tf_keras.layers.Conv2D):
        return layer.kernel_size == (1, 1)
    return isinstance(layer, tf_keras.layers.Dense) and len(layer.input_shape) == 3
