"""Runs images through a .tflite file in LiteRT, Android's interpreter. Room: deploy/tflite."""

import collections
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_efficientformer.deploy.report import TensorInfo
from keras_efficientformer.deploy.tflite.sizes.signatures import signature_network
from keras_efficientformer.errors import first_line, require

# Opens a file and runs each of its networks once, in a process that may be lost, and prints what LiteRT has against it.
PROBE = """
import sys
import numpy as np
from ai_edge_litert.interpreter import Interpreter
try:
    interpreter = Interpreter(model_path=sys.argv[1], num_threads=1)
    interpreter.allocate_tensors()
    for image in interpreter.get_input_details():
        interpreter.set_tensor(image["index"], np.zeros(image["shape"], image["dtype"]))
    interpreter.invoke()
    if interpreter.num_subgraphs() > 1:
        for runner in map(interpreter.get_signature_runner, interpreter.get_signature_list()):
            images = runner.get_input_details().items()
            runner(**{name: np.zeros(image["shape"], image["dtype"]) for name, image in images})
except Exception as error:
    print(str(error) or type(error).__name__)
"""
PROBE_SECONDS = 60


def check_survival(path: str | os.PathLike[str]) -> None:
    """Raises ValueError for a .tflite file that LiteRT refuses, crashes on or is busy with for a minute.

    It is run in another process, and what is refused there must not be opened in this one: LiteRT has read it by then,
    and what it reads of a damaged file depends on what else the process has in its memory.
    """
    with Path(path).open("rb"):  # an OSError names a file that is missing, a folder or not permitted
        pass
    command = [sys.executable, "-c", PROBE, os.fspath(path)]
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise ValueError(
            f"{path} keeps LiteRT busy for more than {PROBE_SECONDS} s: it is damaged, or too large for this machine."
        ) from error
    if process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        raise ValueError(f"{path} crashes LiteRT ({name}): it is damaged. Bring the file again, or export it anew.")
    if process.stdout.strip():
        raise _unfit(path, process.stdout)


def _unfit(path: str | os.PathLike[str], words: BaseException | str) -> ValueError:
    return ValueError(f"{path} is not a TFLite file that LiteRT can run: {first_line(words)}")


class LiteRTModel:
    """A .tflite file with one image input, run on this machine's CPU with XNNPACK.

    Args:
        path: the file.
        num_threads: of XNNPACK; None means all of this machine's.
        keep_tensors: whether `tensors` can be asked for what lies between input and outputs, which takes memory.
        signature: of a file of several input sizes, which of them is run (`sizes.signatures.signature_sizes` lists
            them); None means the file's first network.

    Attributes:
        path: the file.
        inputs, outputs: tuples of `TensorInfo`, the outputs in the file's order.

    Raises:
        OSError: the file is missing or cannot be read.
        ValueError: it is no TFLite file, has no such signature, or its input is not one batch of images.
        ImportError: LiteRT is not installed.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        num_threads: int | None = None,
        keep_tensors: bool = False,
        signature: str | None = None,
    ) -> None:
        interpreter = require("ai_edge_litert.interpreter", "Running a .tflite file", "litert")
        self.path = Path(path)
        with self.path.open("rb"):  # an OSError names a file that is missing, a folder or not permitted
            pass
        try:
            with warnings.catch_warnings():
                # LiteRT warns that keeping all tensors takes memory, which the caller knows.
                warnings.simplefilter("ignore", UserWarning)
                self._interpreter = interpreter.Interpreter(
                    model_path=str(path),
                    num_threads=num_threads or os.cpu_count(),
                    experimental_preserve_all_tensors=keep_tensors,
                )
            self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError, IndexError) as error:
            raise _unfit(path, error) from error
        self._network = None if signature is None else signature_network(path, signature)
        self._runner = None if signature is None else self._interpreter.get_signature_runner(signature)
        self._input_details, self._output_details = self._end_details()
        self.inputs, self.outputs = tensor_infos(self._input_details), tensor_infos(self._output_details)
        if len(self.inputs) != 1 or len(self.inputs[0].shape) != 4:
            raise ValueError(
                f"{path} is not an image network: expected one input (batch, height, width, channels), found "
                f"{[list(tensor.shape) for tensor in self.inputs]}."
            )

    def _end_details(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """What LiteRT says of the inputs' tensors and of the outputs', in the network's order."""
        if self._runner is None or self._network is None:
            return self._interpreter.get_input_details(), self._interpreter.get_output_details()
        outputs = {detail["index"]: detail for detail in self._runner.get_output_details().values()}
        return list(self._runner.get_input_details().values()), [outputs[index] for index in self._network.outputs]

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
        details = self._output_details
        parts = self._run(images, [int(detail["index"]) for detail in details])
        return {
            tensor.name: real_values(np.concatenate(parts[detail["index"]]), tensor)
            for tensor, detail in zip(self.outputs, details, strict=True)
        }

    def tensors(self, images: np.ndarray, numbers: Iterable[int]) -> dict[int, np.ndarray]:
        """The tensors of these numbers for any number of images, of a file that was opened with `keep_tensors`.

        Args:
            images: as for `predict`.
            numbers: keys of `tensor_details`.

        Returns:
            {number: float array (number of images, values of one)}, real values.
        """
        details = self.tensor_details()
        found = {}
        for number, parts in self._run(images, list(numbers)).items():
            (tensor,) = tensor_infos([details[number]])
            found[number] = real_values(np.concatenate([part.reshape(len(part), -1) for part in parts]), tensor)
        return found

    def _run(self, images: np.ndarray, numbers: Sequence[int]) -> dict[int, list[np.ndarray]]:
        """{number of a tensor: its values as they are stored, batch by batch, without what fills up the last}."""
        found: dict[int, list[np.ndarray]] = {number: [] for number in numbers}
        for batch, filled in self.batches(images):
            try:
                self._invoke(batch)
            except RuntimeError as error:
                raise ValueError(f"{self.path} cannot be run in LiteRT: {first_line(error)}") from error
            for number, parts in found.items():
                parts.append(self._values_of(number, len(batch))[:filled])
        return found

    def _invoke(self, batch: np.ndarray) -> None:
        if self._runner is None:
            (detail,) = self._input_details
            self._interpreter.set_tensor(detail["index"], batch)
            self._interpreter.invoke()
        else:
            (name,) = self._runner.get_input_details()
            self._runner(**{name: batch})

    def batches(self, images: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
        """(input tensor, number of images in it) for any number of images; the last is filled up with zeros.

        Args:
            images: as for `predict`.
        """
        (tensor,) = self.inputs
        yield from filled_batches(quantized(images, tensor), tensor.shape, tensor.dtype)

    @property
    def subgraph(self) -> int:
        """The number, in the file, of the network that is run."""
        return 0 if self._network is None else self._network.subgraph

    def _values_of(self, number: int, batch_size: int) -> np.ndarray:
        """A tensor's values after a run; those that have joined the batch with another axis are parted again."""
        values = self._interpreter.get_tensor(number, self.subgraph)
        return values if values.shape[:1] == (batch_size,) else values.reshape(batch_size, -1)

    def tensor_details(self) -> dict[int, dict[str, Any]]:
        """What LiteRT says of each tensor, by its number: "name", "shape", "dtype", "quantization"."""
        return {detail["index"]: detail for detail in self._interpreter.get_tensor_details(self.subgraph)}

    def operator_details(self) -> list[dict[str, Any]]:
        """What LiteRT says of each operator: "op_name", and the numbers of its "inputs" and "outputs"."""
        if self._network is not None:
            return list(self._network.operators)
        # A DELEGATE stands for what XNNPACK has taken over and is not in the file.
        return [detail for detail in self._interpreter._get_ops_details() if detail["op_name"] != "DELEGATE"]

    def ends(self) -> tuple[int, tuple[int, ...]]:
        """The number of the input's tensor, and those of the outputs' in their order."""
        (image,) = self._input_details
        return int(image["index"]), tuple(int(detail["index"]) for detail in self._output_details)

    def partitions(self) -> int:
        """How many parts of the file's first network XNNPACK has taken over: 1 where nothing is left to other kernels.
        Of the others LiteRT does not say it."""
        return sum(operation["op_name"] == "DELEGATE" for operation in self._interpreter._get_ops_details())

    def dtypes(self) -> set[str]:
        """NumPy's names of the types that its tensors have."""
        return {np.dtype(detail["dtype"]).name for detail in self.tensor_details().values()}

    def operations(self) -> dict[str, int]:
        """How many operations of each kind the network holds, most frequent first."""
        return dict(collections.Counter(detail["op_name"] for detail in self.operator_details()).most_common())


def filled_batches(stored: np.ndarray, shape: tuple[int, ...], dtype: str) -> Iterator[tuple[np.ndarray, int]]:
    """(input tensor of that shape and dtype, number of images in it) for images as it stores them, the last filled up
    with zeros."""
    for start in range(0, len(stored), shape[0]):
        part = stored[start : start + shape[0]]
        batch = np.zeros(shape, dtype)
        batch[: len(part)] = part
        yield batch, len(part)


def quantized(values: np.ndarray, tensor: TensorInfo) -> np.ndarray:
    """Real values, an array of any shape, as a tensor stores them: of its dtype, rounded and clipped to an integer."""
    if np.dtype(tensor.dtype).kind not in "iu":
        return values
    limits = np.iinfo(tensor.dtype)
    whole = np.round(values / (tensor.scale or 1.0)) + (tensor.zero_point or 0)
    return np.clip(whole, limits.min, limits.max).astype(tensor.dtype)


def real_values(values: np.ndarray, tensor: TensorInfo) -> np.ndarray:
    """What a tensor stores, an array of any shape, as real values, float32."""
    if tensor.scale is None or tensor.zero_point is None:
        return values.astype("float32", copy=False)
    return (values.astype("float32") - tensor.zero_point) * np.float32(tensor.scale)


def tensor_infos(details: list[dict[str, Any]]) -> tuple[TensorInfo, ...]:
    """LiteRT's details of tensors as `TensorInfo`."""
    infos = []
    for detail in details:
        # A scale of zero says that nothing is quantized: others' files take pixels, and give numbers, as they are.
        scale, zero_point = detail["quantization"] if detail["quantization"][0] else (None, None)
        shape = tuple(int(side) for side in detail["shape"])
        infos.append(TensorInfo(detail["name"], shape, np.dtype(detail["dtype"]).name, scale, zero_point))
    return tuple(infos)
