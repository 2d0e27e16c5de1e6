"""Makes a tf_keras model for quantization-aware training (QAT) of an EfficientFormer. Room: training/compression.

    qat_model = quantize_aware(model)
    qat_model.compile("adam", "sparse_categorical_crossentropy")
    qat_model.fit(images, classes)
    export_tflite(qat_model, "model.tflite", quantize="int8")
    trained = to_keras(qat_model)

The model rounds as its int8 file will: tensorflow-model-optimization (tfmot) puts the quantizations in. Its limits,
with version 0.8.1:

- It takes tf_keras (Keras 2) models only, so this is TensorFlow whatever Keras' backend, and what is trained is the
  fused network: BatchNorm, layer scales and LayerNorm's scale are folded into the weights before, stochastic depth is
  gone, and the optimizer, losses and callbacks are tf_keras'.
- It knows none of attention, LayerNorm and GELU. What is quantized here is what export_tflite's "int8" mode has in
  int8 (`quantize_configs`); attention's products and softmax, which that mode computes in float, are float. What stride
  attention's resizing rounds is not seen.
- Its own schemes for other targets, 4 bits, clustering, and pruning or clustering kept while quantizing are for its
  built-in layers and are not supported. "int8_integer" and "int16x8" files take the learnt ranges, too, but have to
  measure the others on calibration images: training did not see what they round beyond "int8".
- Heads of one's own and segmentation models are refused where they have operations that the two families lack.
- The attention's biases are not trained: their table has one entry for many pairs of tokens.
- A model read from a saved file or cloned cannot be exported; save its weights, make it again and load them.
"""

from typing import TYPE_CHECKING

import keras

from keras_efficientformer.deploy.network.fuse import fuse
from keras_efficientformer.training.compression.tfmot import load_tfmot
from keras_efficientformer.training.compression.unfusing import unfuse

if TYPE_CHECKING:
    import tf_keras


def quantize_aware(model: keras.Model, *, include_preprocessing: bool = True) -> "tf_keras.Model":
    """A model for quantization-aware training: it rounds weights and activations as the int8 file does.

    Compile and fit it as any tf_keras model, at a tenth or less of the learning rate that the float model ended with.
    The ranges of activations start with the first batch; until then only weights are rounded. The method is that of
    arXiv 1712.05877, section 3.

    Args:
        model: an EfficientFormer of this package, of either family, on any backend; it is read, not changed.
        include_preprocessing: whether images are raw RGB in 0..255, float32, normalised inside; else they are what
            `preprocess_input` returns. `export_tflite` needs the same choice.

    Returns:
        A tf_keras Functional model (batch, height, width, channels) -> the model's output, or a list of two.

    Raises:
        ValueError: the model is no EfficientFormer, has other operations, or `fuse` refuses it.
        ImportError: tf_keras or tensorflow-model-optimization is not installed.
    """
    tfmot = load_tfmot()
    import tf_keras

    # It imports tf_keras and TensorFlow, which `import keras_efficientformer.training` must not.
    from keras_efficientformer.deploy.network.tf_keras_builder import build_tf_keras, step_of_layer

    # It imports tfmot, too, whose classes it derives its own from.
    from keras_efficientformer.training.compression import quantize_configs

    network = fuse(model, include_preprocessing)
    quantized = quantize_configs.quantized_steps(network)

    def annotate(layer: "tf_keras.layers.Layer") -> "tf_keras.layers.Layer":
        config = quantize_configs.quantization_of(layer, step_of_layer(layer) in quantized)
        return tfmot.quantization.keras.quantize_annotate_layer(layer, config) if config else layer

    annotated = tf_keras.models.clone_model(build_tf_keras(network), clone_function=annotate)
    with tfmot.quantization.keras.quantize_scope():
        quantized_model = tfmot.quantization.keras.quantize_apply(annotated, quantize_configs.Scheme())
    quantized_model.fused_network = network
    return quantized_model


def to_keras(model: "tf_keras.Model") -> keras.Model:
    """The EfficientFormer that a trained model is, as if it had never been quantized or pruned.

    Args:
        model: what `quantize_aware`, `prune_low_magnitude` or `strip_pruning` returned.

    Returns:
        A model of the same family with the trained weights in float32: BatchNorms and layer scales are identities,
        being folded, both heads are equal, and so the function is the same within 1e-4. Quantizing it again without
        training gives other ranges than training has learnt: export the trained model itself.

    Raises:
        ValueError: the model is another one, has weights that are not finite, or training has made a pooling mixer
            something which no layer scale gives, or talking heads something which no table of biases passes.
    """
    # It imports tf_keras and TensorFlow, which `import keras_efficientformer.training` must not.
    from keras_efficientformer.deploy.network.tf_keras_builder import trained_network

    return unfuse(trained_network(model))
