"""Runs images through a saved Core ML package, operation by operation, on any OS. Room: deploy/coreml.

A Mac is not needed, and nothing of the conversion is used: this is what says that a package does what its model does.
"""

import collections
import contextlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from keras_efficientformer.deploy.coreml.operations import OPERATIONS, rounded
from keras_efficientformer.deploy.coreml.package import CONSTANTS, Package, PackageError, load_package
from keras_efficientformer.deploy.coreml.plan import Plan, ProgramTensor
from keras_efficientformer.deploy.file_facts import ENTRY, FileFacts
from keras_efficientformer.deploy.report import TensorInfo
from keras_efficientformer.errors import first_line

# Version 6 of Core ML's specification came with iOS 15, and each later one with the next.
IOS_OF_SPECIFICATION = 9
# A batch of as many pixels keeps matrix products busy, and little of it has to leave a core's cache.
BATCH_PIXELS = 2 * 224 * 224


class CoreMLModel:
    """A Core ML package with one image input, run on this machine's CPU with NumPy.

    Args:
        path: the .mlpackage folder.
        float16: whether every tensor that the program declares float16 is rounded to float16 after each operation, as
            phones store it; otherwise all is computed in float32. Sums within an operation are float32 either way.
        function: of a package of several input sizes, which of them is run (`package.function_sizes` lists them); None
            means the one that opens by default.

    Attributes:
        inputs, outputs: tuples of `TensorInfo`, as the program declares them; an image is uint8, a class label str.
        facts: what the package says of itself (`FileFacts`); None where it says nothing. An image is raw pixels.
        labels: class names in the order of the probabilities, or None.
        has_names: whether its classes have names, where it is a classifier; else `labels` are their numbers.
        minimum_ios: the oldest iOS that opens it.
        path: the folder.
        block: the function, `coremltools.converters.mil.mil.Function`.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        PackageError: it is no package, damaged, holds operations that are not known here (all are named), or is no
            image network for one image of a fixed size.
        ImportError: coremltools is not installed.
    """

    def __init__(self, path: str | os.PathLike, float16: bool = True, function: str | None = None):
        package = load_package(path, {*OPERATIONS, *CONSTANTS}, function)
        self.path, self.block, self.labels, self._float16 = package.path, package.block, package.labels, float16
        with _damage(self.path):
            self._open(package)

    def _open(self, package: Package) -> None:
        self.facts = facts_of(package)
        self.minimum_ios = package.spec.specificationVersion + IOS_OF_SPECIFICATION
        self._plan = Plan(package, self._float16)
        self._order = _channel_order(package)
        description = package.description
        self.has_names = all(output.type.WhichOneof("Type") != "int64Type" for output in description.output)
        self.inputs = (_tensor_info(description.input[0], self._plan.input),)
        self.outputs = tuple(_tensor_info(output, self._plan.results[output.name]) for output in description.output)
        kinds = [operation.op_type for operation in self.block.operations]
        self._operations = collections.Counter(kind for kind in kinds if kind not in CONSTANTS)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of the image."""
        _, channels, height, width = self._plan.input.shape
        return height, width, channels

    def predict(
        self,
        images: np.ndarray,
        batch_size: int | None = None,
        progress: Callable[[list[int]], Iterable[int]] = iter,
    ) -> dict[str, np.ndarray]:
        """The outputs for any number of images, batches of which are computed at once, one on each core.

        Args:
            images: array (number, height, width, channels): raw RGB in 0..255 where the input is an image, else what
                the program takes, which is turned to channels first here.
            batch_size: how many images are a batch; None means as many as have the pixels of two images of 224x224,
                for which L1 takes some 0.04 GB on each core, or fewer, so that no core is left out.
            progress: wraps the iteration over batches, e.g. `rich.progress.track`.

        Returns:
            {output name: float32 array (number, ...)}; of a classifier the probabilities (number, classes) in the
            order of `labels`, and the class label as an array of strings (number,).

        Raises:
            ValueError: the images have another shape, or there are none.
        """
        from threadpoolctl import threadpool_limits

        images = np.asarray(images)
        if images.shape[1:] != self.input_shape or not len(images):
            raise ValueError(
                f"Images (number, {', '.join(map(str, self.input_shape))}) are needed. Received: {images.shape}"
            )
        cores = os.cpu_count() or 1
        if batch_size is None:
            pixels = len(images) * math.prod(self.input_shape[:2])
            batch_size = math.ceil(len(images) / max(min(cores, len(images)), math.ceil(pixels / BATCH_PIXELS)))
        starts = list(range(0, len(images), batch_size))
        # Two layers of threads would get into each other's way, so products have one each; a lone batch has them all.
        with ThreadPoolExecutor(cores) as pool, threadpool_limits(1 if len(starts) > 1 else None, "blas"):
            futures = [pool.submit(self._run, images[start : start + batch_size]) for start in starts]
            try:
                batches = [future.result() for future, _ in zip(futures, progress(starts), strict=True)]
            finally:
                pool.shutdown(cancel_futures=True)
        return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}

    def tensors(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """All tensors of the program by their names, channels first, for images as `predict` takes them, at once."""
        found: dict[str, np.ndarray] = {}
        self._run(np.asarray(images), lambda tensor, value: found.update({tensor.name: value}))
        return found

    def operations(self) -> dict[str, int]:
        """How many operations of each kind the program holds, constants left out, most frequent first."""
        return dict(self._operations.most_common())

    def _run(
        self,
        images: np.ndarray,
        see: Callable[[ProgramTensor, np.ndarray], None] = lambda tensor, value: None,
    ) -> dict[str, np.ndarray]:
        """The outputs for images (number, height, width, channels), all at once; `see` is told every tensor's value."""
        if self._order == "BGR":
            images = images[..., ::-1]
        tensors: dict[int, np.ndarray] = {}

        def store(name: str, declared: Sequence[ProgramTensor], values: Sequence[np.ndarray]) -> None:
            for tensor, value in zip(declared, values, strict=True):
                expected = (len(images), *tensor.shape[1:])
                if value.shape != expected:
                    raise PackageError(f"{self.path}: {name} gave {value.shape}, and {expected} was declared.")
                tensors[tensor.key] = rounded(value) if tensor.is_rounded else value
                see(tensor, tensors[tensor.key])

        store("the input", [self._plan.input], [_channels_first(images)])
        for operation in self._plan.operations:
            with _damage(self.path):
                store(operation.name, operation.outputs, operation.run(tensors))
            for key in operation.last_used:
                del tensors[key]
        return {name: tensors[tensor.key] for name, tensor in self._plan.results.items()}


def _channels_first(images: np.ndarray) -> np.ndarray:
    """Images (number, height, width, channels) as float32 in the order and the layout of `operations`."""
    return np.moveaxis(images.transpose(3, 1, 2, 0).astype("float32", "C"), -1, 0)


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Says of a package whose parts do not fit one another that it is damaged."""
    try:
        yield
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        if isinstance(error, PackageError):
            raise
        raise PackageError(
            f"{path} cannot be run: {type(error).__name__}, {first_line(error)}. Its parts do not fit one another: it "
            "is damaged; bring all of the folder again."
        ) from error


def facts_of(package: Package) -> FileFacts | None:
    """What a package of one input says of itself; None where it says nothing. An image is raw pixels.

    Raises:
        PackageError: what it says is damaged.
    """
    (description,) = package.description.input
    entry = package.spec.description.metadata.userDefined.get(ENTRY)
    if entry:
        try:
            return FileFacts.from_json(entry)
        except ValueError as error:
            raise PackageError(f"{package.path} is a damaged Core ML package: {error}.") from error
    is_image = description.type.WhichOneof("Type") == "imageType"
    return FileFacts((0.0,), (1.0,)) if is_image else None


def _channel_order(package: Package) -> str | None:
    """The channels' order where the input is an image, else None."""
    (description,) = package.description.input
    if description.type.WhichOneof("Type") != "imageType":
        return None
    image = description.type.imageType
    order = image.ColorSpace.Name(image.colorSpace)
    if order not in ("RGB", "BGR", "GRAYSCALE"):
        raise PackageError(f"{package.path} takes an image in {order}, and RGB, BGR and GRAYSCALE are supported.")
    return order


def _tensor_info(description: Any, tensor: ProgramTensor) -> TensorInfo:
    kind = description.type.WhichOneof("Type")
    dtypes = {"imageType": "uint8", "stringType": "str", "int64Type": "str"}
    array = description.type.multiArrayType
    if kind == "multiArrayType" and array.ArrayDataType.Name(array.dataType) == "INT32":
        return TensorInfo(description.name, tensor.shape, "int32")
    return TensorInfo(description.name, tensor.shape, dtypes.get(kind, "float16" if tensor.is_float16 else "float32"))
