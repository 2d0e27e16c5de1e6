"""BatchNorm, with TensorFlow's fused kernel in training, and LayerNorm, as both families use them. Room: layers.

Keras composes a training step's normalisation from a dozen operations, each of which reads the whole feature map; the
fused kernel (and its gradient) makes the step of an L1 a fifth faster on a CPU (benchmarks/throughput.py).
"""

from typing import Any

import keras
from keras import ops

# The reference trains with PyTorch's defaults: eps 1e-5 in both norms, and momentum 0.1, which Keras counts as 0.9.
NORM_EPSILON = 1e-5
BATCH_NORM_MOMENTUM = 0.9


@keras.saving.register_keras_serializable(package="keras_efficientformer")
class BatchNormalization(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization`: its arguments, weights and results; faster in training on TensorFlow.

    A feature map (batch, height, width, channels) is normalised by one operation there. In inference, on other
    backends, with a mask and with `synchronized` or `renorm` it is Keras' own code that runs.
    """

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        if training and self.trainable and mask is None and self._has_fused_kernel(inputs):
            return self._fused_step(inputs)
        return super().call(inputs, training=training, mask=mask)

    def _has_fused_kernel(self, inputs: Any) -> bool:
        plain = self.scale and self.center and not (self.synchronized or self.renorm)
        feature_map = len(inputs.shape) == 4 and self.axis in (-1, 3) and inputs.dtype != "float64"
        return keras.backend.backend() == "tensorflow" and plain and feature_map

    def _fused_step(self, inputs: Any) -> Any:
        import tensorflow as tf

        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=ops.cast(self.gamma, "float32"),
            offset=ops.cast(self.beta, "float32"),
            mean=[],
            variance=[],
            epsilon=self.epsilon,
            is_training=True,
        )
        # The kernel returns the sample's unbiased variance; Keras averages the biased one, on every backend.
        count = ops.cast(ops.prod(ops.shape(inputs)[:3]), "float32")
        self._average(self.moving_mean, mean)
        self._average(self.moving_variance, variance * ((count - 1) / count))
        return ops.cast(outputs, self.compute_dtype)

    def _average(self, moving: Any, value: Any) -> None:
        moving.assign(moving * self.momentum + ops.cast(value, moving.dtype) * (1.0 - self.momentum))


def batch_norm(name: str, dtype: Any) -> BatchNormalization:
    """A BatchNorm with the reference's eps and momentum."""
    return BatchNormalization(momentum=BATCH_NORM_MOMENTUM, epsilon=NORM_EPSILON, name=name, dtype=dtype)


def layer_norm(name: str, dtype: Any = None) -> keras.layers.LayerNormalization:
    """A LayerNorm over channels with the reference's eps."""
    return keras.layers.LayerNormalization(epsilon=NORM_EPSILON, name=name, dtype=dtype)
