"""The client's side of a .tflite file: opens it in LiteRT, Android's interpreter, and runs images through it."""

import collections
import os
from pathlib import Path

import numpy as np

from keras_efficientformer.deploy.report import TensorInfo


class LiteRTModel:
    """A .tflite file with one image input, run on this machine's CPU with XNNPACK.

    Args:
        path: the file.
        num_threads: of XNNPACK; None means all of this machine's.

    Attributes:
        inputs, outputs: tuples of `TensorInfo`, the outputs in the file's order.

    Raises:
        OSError: the file is missing or cannot be read.
        ValueError: it is no TFLite file, or its input is not one batch of images.
        ImportError: LiteRT is not installed.
    """

    def __init__(self, path: str | os.PathLike, num_threads: int | None = None):
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError as error:
            raise ImportError(
                "Running a .tflite file needs ai-edge-litert: pip install 'keras-efficientformer[tflite]'"
            ) from error
        with Path(path).open("rb"):  # missing, a folder or not permitted: an OSError that names the file
            pass
        try:
            self._interpreter = Interpreter(model_path=str(path), num_threads=num_threads or os.cpu_count())
            self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"{path} is not a TFLite file that LiteRT can run: {error}") from error
        self.inputs = tensor_infos(self._interpreter.get_input_details())
        self.outputs = tensor_infos(self._interpreter.get_output_details())
        if len(self.inputs) != 1 or len(self.inputs[0].shape) != 4:
            raise ValueError(
                f"{path} is not an image network: expected one input (batch, height, width, channels), found "
                f"{[list(tensor.shape) for tensor in self.inputs]}."
            )

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of the image."""
        _, height, width, channels = self.inputs[0].shape
        return height, width, channels

    def predict(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """The outputs for any number of images, in batches of the file's own size, the last filled up with zeros.

        Args:
            images: float array (number, height, width, channels) in the input's range: real values, which are
                quantized here where the input is of an integer type.

        Returns:
            {output name: float32 array (number, ...)}, real values.
        """
        (detail,) = self._interpreter.get_input_details()
        outputs = self._interpreter.get_output_details()
        batch_size = detail["shape"][0]
        images = quantized(images, self.inputs[0])
        results = collections.defaultdict(list)
        for start in range(0, len(images), batch_size):
            part = images[start : start + batch_size]
            batch = np.zeros(detail["shape"], detail["dtype"])
            batch[: len(part)] = part
            self._interpreter.set_tensor(detail["index"], batch)
            self._interpreter.invoke()
            for output in outputs:
                results[output["name"]].append(self._interpreter.get_tensor(output["index"])[: len(part)])
        return {tensor.name: real_values(np.concatenate(results[tensor.name]), tensor) for tensor in self.outputs}

    def partitions(self) -> int:
        """How many parts of the graph XNNPACK has taken over: 1 where nothing is left to other kernels."""
        return sum(operation["op_name"] == "DELEGATE" for operation in self._interpreter._get_ops_details())

    def operations(self) -> dict[str, int]:
        """How many operations of each kind the file holds, most frequent first."""
        names = [operation["op_name"] for operation in self._interpreter._get_ops_details()]
        # The one that stands for what XNNPACK has taken over is not in the file.
        return dict(collections.Counter(name for name in names if name != "DELEGATE").most_common())


def quantized(values, tensor):
    """Real values as a tensor stores them."""
    if tensor.scale is None:
        return values
    limits = np.iinfo(tensor.dtype)
    return np.clip(np.round(values / tensor.scale) + tensor.zero_point, limits.min, limits.max).astype(tensor.dtype)


def real_values(values, tensor):
    """What a tensor stores as real values."""
    if tensor.scale is None:
        return values
    return (values.astype("float32") - tensor.zero_point) * np.float32(tensor.scale)


def tensor_infos(details: list[dict]) -> tuple[TensorInfo, ...]:
    """LiteRT's details of tensors as `TensorInfo`."""
    infos = []
    for detail in details:
        is_real = np.issubdtype(detail["dtype"], np.floating)
        scale, zero_point = (None, None) if is_real else detail["quantization"]
        shape = tuple(int(side) for side in detail["shape"])
        infos.append(TensorInfo(detail["name"], shape, np.dtype(detail["dtype"]).name, scale, zero_point))
    return tuple(infos)
