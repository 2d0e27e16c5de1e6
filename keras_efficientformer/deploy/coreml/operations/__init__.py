"""Computes the operations of ML Programs in NumPy, for many images at once. Room: deploy/coreml/operations.

An operation is planned once, from its constant arguments, and gives a function of the arguments that vary from image
to image. Arguments have the names, defaults and meaning of coremltools' MIL operations
(https://apple.github.io/coremltools/source/coremltools.converters.mil.mil.ops.defs.html); what is not planned here is
an error, never ignored. Programs are written for one image, so a tensor that varies is declared as (1, ...), and is
(images, ...) here: a plan refuses what would mix the first axis with others.

Images and results of convolutions lie in memory as (channels, height, width, images), which NumPy keeps through
elementwise operations: so one matrix product serves all images, without a copy, and the pixels of a row that a pooling
or convolution takes are one long run.
"""

from keras_efficientformer.deploy.coreml.operations import (  # noqa: F401  (they register)
    elementwise,
    images,
    quantization,
    tensors,
)
from keras_efficientformer.deploy.coreml.operations.elementwise import rounded
from keras_efficientformer.deploy.coreml.operations.table import OPERATIONS, UnsupportedError, Varying

__all__ = ["OPERATIONS", "UnsupportedError", "Varying", "rounded"]
