"""Reads and writes the formats of checkpoint files as {tensor name: array}. Room: conversion; it knows no networks.

Arrays keep the dtype they have in the file. Only the safe readers are used: safetensors, HDF5, and PyTorch's
`weights_only` unpickler, which refuses anything but tensors and plain containers.
"""

import argparse
import contextlib
import json
import os
import re
import sys
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from keras_efficientformer.conversion.hdf5_survival import check_hdf5
from keras_efficientformer.conversion.stated import NOTHING_STATED, STATED, Stated
from keras_efficientformer.errors import CheckpointError, first_line, listing, require, require_installed
from keras_efficientformer.files import finished_file

PYTORCH_SUFFIXES = (".pth", ".pt", ".bin")
# These are read too: timm's and fairseq's, and Lightning's.
OTHER_PYTORCH_SUFFIXES = (".pth.tar", ".ckpt")
# transformers writes large checkpoints in parts, with this file beside them.
INDEX_SUFFIX = ".safetensors.index.json"
KERAS_SUFFIXES = (".weights.h5", ".keras")
CHECKPOINT_SUFFIXES = (".safetensors", INDEX_SUFFIX, *PYTORCH_SUFFIXES, *OTHER_PYTORCH_SUFFIXES, *KERAS_SUFFIXES)

# Training scripts put the state dict under these keys, of which the first that is there is read. timm's evaluates the
# averaged weights ("state_dict_ema"); snap-research's, which comes from DeiT's, evaluates "model" and published what
# that gives, not "model_ema".
WRAPPERS = (
    "state_dict_ema",
    "ema_state_dict",
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "model_ema",
    "ema",
    "module",
)
# DistributedDataParallel, torch.compile and Lightning put these before every name.
PREFIXES = ("module.", "_orig_mod.", "model.", "ema.", "net.", "backbone.", "encoder.")
# What is written beside a state dict: "64x96", height and width of its model's images.
INPUT_SIZE = "input_size"
# torch's AveragedModel counts its updates beside its tensors.
COUNTERS = ("n_averaged",)

# torch names what its safe unpickler does not load in these words.
UNSAFE = re.compile(r"unsupported (?:global|class):?(?: GLOBAL)? ([\w.]+)", re.IGNORECASE)


class StateDict(dict[str, np.ndarray]):
    """A state dict, {tensor name: NumPy array}, that knows its model's input size, labels and normalisation.

    Attributes:
        input_size: (height, width) of the images that its attention biases are for; None where that is not known.
        stated: what else is said of the model.
    """

    def __init__(
        self,
        tensors: Mapping[str, np.ndarray],
        input_size: tuple[int, int] | None = None,
        stated: Stated = NOTHING_STATED,
    ) -> None:
        super().__init__(tensors)
        self.input_size = input_size
        self.stated = stated


class Checkpoint(StateDict):
    """A state dict that remembers the file it was read from.

    Attributes:
        source: path of the file, for messages.
        wrappers: the keys and prefixes that were taken off to reach the tensors, outermost first; often empty.
        input_size, stated: as of `StateDict`, from the file.
    """

    def __init__(
        self,
        tensors: Mapping[str, np.ndarray],
        source: str | os.PathLike[str],
        wrappers: Iterable[str] = (),
        input_size: tuple[int, int] | None = None,
        stated: Stated = NOTHING_STATED,
    ) -> None:
        super().__init__(tensors, input_size, stated)
        self.source = str(source)
        self.wrappers = tuple(wrappers)


def read_tensors(path: str | os.PathLike[str]) -> Checkpoint:
    """Reads the tensors of a checkpoint file.

    Args:
        path: a `.safetensors`, `.pth`, `.pt`, `.bin`, `.weights.h5` or `.keras` file. PyTorch's formats need torch.

    Returns:
        A `Checkpoint`: tensor names, without wrappers' prefixes, to NumPy arrays of the file's dtypes (bfloat16 as
        `ml_dtypes.bfloat16`). For Keras' files the names are the HDF5 paths.

    Raises:
        CheckpointError: an unknown suffix, or a file that is truncated, damaged, unsafe or holds no tensors.
        OSError: the file is missing or cannot be read.
        ImportError: torch is needed and not installed.
    """
    path = Path(path)
    suffix = suffix_of(path)
    if suffix is None:
        if not path.exists():
            raise FileNotFoundError(
                f"{path} does not exist: the path of a checkpoint file was expected, ending in one of "
                f"{', '.join(CHECKPOINT_SUFFIXES)}. Weights on a hub are downloaded by a model's function, e.g. "
                'EfficientFormerL1(weights="imagenet").'
            )
        # A folder raises an OSError here: it is no file of another kind.
        path.open("rb").close()
        raise CheckpointError(
            f"{path} is not a kind of checkpoint that can be read: found the suffix {path.suffix!r}, "
            f"expected one of {', '.join(CHECKPOINT_SUFFIXES)}. Rename the file if it is one of these."
        )
    # Where the path is missing, a folder or not permitted, this raises an OSError that names it.
    with path.open("rb") as file:
        if not file.read(1):
            raise CheckpointError(f"{path} is empty: a checkpoint was expected. Bring the file again.")
    wrappers: list[str] = []
    stated = NOTHING_STATED
    if suffix in (".safetensors", INDEX_SUFFIX):
        tensors, metadata = (_read_safetensors if suffix == ".safetensors" else _read_shards)(path)
        said: Any = metadata.get(INPUT_SIZE)
        if STATED in metadata:
            stated = Stated.from_json(metadata[STATED], path)
    elif suffix in KERAS_SUFFIXES:
        return Checkpoint(_read_hdf5(path), path)
    else:
        tensors, wrappers, said = _read_pytorch(path)
    tensors, prefixes = _strip_prefixes(tensors)
    if not tensors:
        raise CheckpointError(
            f"{path} holds no tensors where a state dict was expected. Save `model.state_dict()`, alone or under one "
            f"of the keys {', '.join(WRAPPERS)}."
        )
    return Checkpoint(tensors, path, [*wrappers, *prefixes], _input_size(said, path), stated)


def _input_size(said: Any, path: Path) -> tuple[int, int] | None:
    """What a file says is its model's input size: "64x96", or None."""
    if said is None:
        return None
    height, cross, width = str(said).partition("x")
    if not (cross and height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise CheckpointError(f"{path} says that its input size is {said!r}: HEIGHTxWIDTH in pixels was expected.")
    return int(height), int(width)


def write_tensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, np.ndarray],
    overwrite: bool = False,
    wrapper: str | None = None,
    input_size: tuple[int, int] | None = None,
    stated: Stated = NOTHING_STATED,
) -> None:
    """Writes a state dict as `.safetensors`, or as `.pth`, `.pt` or `.bin` with torch.

    Args:
        path: the file; it gets this name only when it is complete.
        tensors: {name: NumPy array or PyTorch tensor}.
        overwrite: whether an existing file may be replaced.
        wrapper: key under which PyTorch's formats hold the state dict, or None to hold it bare.
        input_size: (height, width) of its model's images, which is written beside it: in safetensors' metadata; in
            PyTorch's formats, under "state_dict" where there is no other wrapper, if nothing else tells that it is not
            for squares.
        stated: what else is said of its model, in safetensors' metadata.

    Raises:
        FileExistsError: the file exists and `overwrite` is False.
        CheckpointError: the suffix is none of the four.
        ImportError: torch is needed and not installed.
    """
    path = Path(path)
    suffix = suffix_of(path)
    # safetensors writes an array's memory as it lies, and torch takes none that runs backwards.
    arrays = {name: np.asarray(array, order="C") for name, array in arrays_by_name(tensors, "The state dict").items()}
    said = {} if input_size is None else {INPUT_SIZE: f"{input_size[0]}x{input_size[1]}"}
    if suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.numpy import save_file

        with finished_file(path, overwrite) as partial, _written_whole(path, SafetensorError):
            # transformers and timm refuse a file that does not say which framework's layout it has.
            more = {} if stated == NOTHING_STATED else {STATED: stated.to_json()}
            save_file(arrays, partial, metadata={"format": "pt"} | said | more)
        return
    if suffix not in PYTORCH_SUFFIXES:
        expected = ", ".join((".safetensors", *PYTORCH_SUFFIXES))
        raise CheckpointError(f"{path} cannot be written as a PyTorch checkpoint: expected one of {expected}.")
    torch = _torch_for(path)
    state_dict = {name: _to_torch(array, torch) for name, array in arrays.items()}
    has_indices = any(name.endswith("attention_bias_idxs") for name in arrays)
    if input_size is None or input_size[0] == input_size[1] or has_indices:
        said = {}
    elif wrapper is None:
        wrapper = "state_dict"
    with finished_file(path, overwrite) as partial, _written_whole(path, RuntimeError):
        torch.save({wrapper: state_dict} | said if wrapper else state_dict, partial)


@contextlib.contextmanager
def _written_whole(path: str | os.PathLike[str], refusal: type[Exception]) -> Iterator[None]:
    """Raises OSError for what a library says instead where the disk is full."""
    try:
        yield
    except refusal as error:
        raise OSError(f"{path} cannot be written, perhaps for lack of space: {first_line(error)}.") from error


def suffix_of(path: str | os.PathLike[str]) -> str | None:
    """The one of `CHECKPOINT_SUFFIXES` with which the file's name ends, or None."""
    name = Path(path).name.lower()
    return next((suffix for suffix in CHECKPOINT_SUFFIXES if name.endswith(suffix)), None)


def _read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The tensors and the metadata."""
    # ml_dtypes teaches NumPy bfloat16, without which safetensors refuses such files.
    import ml_dtypes  # noqa: F401
    from safetensors import SafetensorError, safe_open
    from safetensors.numpy import load_file

    try:
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
        return load_file(path), metadata
    except (SafetensorError, TypeError, KeyError) as error:
        raise damaged(path, "safetensors", error) from error
    # An AttributeError means that NumPy has no such dtype.
    except AttributeError as error:
        raise _unknown_kind(path, error) from error


def _read_shards(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The tensors of the parts that an index names, which lie beside it, and the metadata of them all."""
    try:
        places = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        files = sorted(set(places.values()))
        if not files or not all(isinstance(file, str) and Path(file).name == file for file in files):
            raise ValueError(f"its parts are {listing(list(map(repr, files)))}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(path, "sharded safetensors", error) from error
    missing = [file for file in files if not (path.parent / file).is_file()]
    if missing:
        raise CheckpointError(f"{path} names parts that are not beside it: {listing(missing)}. Bring them too.")
    tensors: dict[str, np.ndarray] = {}
    metadata: dict[str, str] = {}
    for file in files:
        part, found = _read_safetensors(path.parent / file)
        tensors |= part
        metadata |= found
    lost = [name for name in places if name not in tensors]
    if lost:
        raise CheckpointError(f"{path} names tensors that its parts do not hold: {listing(lost)}. Bring all again.")
    return tensors, metadata


def _read_pytorch(path: Path) -> tuple[dict[str, np.ndarray], list[str], Any]:
    """The tensors, the keys that held them, and what stands beside them as the input size."""
    torch = _torch_for(path)
    # snap-research's checkpoints hold their training arguments too, which are plain values in this plain container.
    plain = [argparse.Namespace]
    try:
        with torch.serialization.safe_globals(plain):
            content = torch.load(path, map_location="cpu", weights_only=True)
    # Unpickling a foreign file can raise anything at all.
    except Exception as error:
        if unsafe := UNSAFE.search(str(error)):
            raise CheckpointError(
                f"{path} was refused: it holds more than tensors, and loading it could run code ({unsafe[1]}). "
                "Save `model.state_dict()` alone, best as .safetensors, in the program that made the file."
            ) from error
        raise damaged(path, "PyTorch", _without_advice(error)) from error
    said = content.get(INPUT_SIZE) if isinstance(content, Mapping) else None
    content, wrappers = _unwrap(content)
    tensors = {str(name): value for name, value in content.items() if isinstance(value, torch.Tensor)}
    if content and not tensors:
        found = listing([f"{name!r} ({type(value).__name__})" for name, value in content.items()])
        raise CheckpointError(
            f"{path} holds no tensors at its top, but {found}. A state dict is read there, or under one of the keys "
            f"{', '.join(WRAPPERS)}: save it so."
        )
    return arrays_by_name(tensors, path), wrappers, said


def check_torch_for(path: Path) -> None:
    """Raises ImportError where PyTorch is needed to read or write a file and is not installed, without importing it."""
    if suffix_of(path) in (*PYTORCH_SUFFIXES, *OTHER_PYTORCH_SUFFIXES):
        require_installed(*_torch_needed(path))


def _torch_for(path: Path) -> Any:
    return require(*_torch_needed(path))


def _torch_needed(path: Path) -> tuple[str, str, str, str]:
    return "torch", f"{path} is in PyTorch's own format, which", "torch", ", or use a .safetensors file"


def _unwrap(content: Any) -> tuple[Mapping[Any, Any], list[str]]:
    wrappers: list[str] = []
    while isinstance(content, Mapping):
        key = next((key for key in WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if key is None:
            return content, wrappers
        content = content[key]
        wrappers.append(key)
    return {}, wrappers


def _strip_prefixes(tensors: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[str]]:
    stripped: list[str] = []
    tensors = {name: tensor for name, tensor in tensors.items() if name not in COUNTERS}
    while prefix := next((p for p in PREFIXES if tensors and all(name.startswith(p) for name in tensors)), None):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        stripped.append(prefix)
    return tensors, stripped


def arrays_by_name(tensors: Mapping[str, Any], source: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """What `to_numpy` gives of each tensor.

    Raises:
        CheckpointError: NumPy has no such tensor; the message begins with `source`.
    """
    arrays = {}
    for name, tensor in tensors.items():
        try:
            arrays[name] = to_numpy(tensor)
        # These are raised for quantized, sparse and float8 tensors and for those without values.
        except (TypeError, RuntimeError) as error:
            raise _unknown_kind(source, f"{name}: {first_line(error)}") from error
    return arrays


def to_numpy(value: Any) -> Any:
    """A PyTorch tensor as an array of its own dtype, bfloat16 as `ml_dtypes.bfloat16`; anything else as it is."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(value, torch.Tensor):
        return value
    tensor = value.detach().cpu()
    if tensor.dtype != torch.bfloat16:
        return tensor.numpy()
    import ml_dtypes

    return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)


def _read_hdf5(path: Path) -> dict[str, np.ndarray]:
    import h5py
    import ml_dtypes

    tensors: dict[str, np.ndarray] = {}

    def collect(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            # HDF5 has no bfloat16: Keras stores two bytes and says so.
            value, kind = item[()], item.attrs.get("dtype")
            tensors[name] = value.view(ml_dtypes.bfloat16) if kind == "bfloat16" else value

    check_hdf5(path)
    try:
        if suffix_of(path) == ".keras":
            with zipfile.ZipFile(path) as archive, archive.open("model.weights.h5") as file, h5py.File(file) as content:
                content.visititems(collect)
        else:
            with h5py.File(path) as content:
                content.visititems(collect)
    except (OSError, KeyError, RuntimeError, zipfile.BadZipFile) as error:
        raise damaged(path, "Keras", error) from error
    return tensors


def _to_torch(array: np.ndarray, torch: Any) -> Any:
    """An array as a PyTorch tensor of its own dtype, which for bfloat16 torch does not make of NumPy's."""
    if array.dtype.name != "bfloat16":
        return torch.from_numpy(array)
    return torch.from_numpy(array.view("int16")).view(torch.bfloat16)


def _unknown_kind(path: str | os.PathLike[str], error: BaseException | str) -> CheckpointError:
    return CheckpointError(
        f"{path} holds a tensor of a kind that NumPy does not have ({first_line(error)}). Save the weights as dense "
        "tensors of float16, bfloat16, float32 or float64."
    )


def damaged(path: str | os.PathLike[str], kind: str, error: BaseException | str) -> CheckpointError:
    """The error for a file in which a reader of this kind has found another error."""
    return CheckpointError(
        f"{path} cannot be read as a {kind} checkpoint: {first_line(error)}. It is truncated, damaged or something "
        "else; compare its size and sha256 with its source's and bring it again."
    )


def _without_advice(error: Exception) -> Exception | str:
    """What torch found, without its advice to load the file unsafely."""
    if "TorchScript" in str(error):
        return "it is a TorchScript archive, no state dict"
    if "weights_only" not in str(error):
        return error if isinstance(error, RuntimeError) else f"{type(error).__name__} {error}"
    found = re.search(r"WeightsUnpickler error:\s*(.+)", str(error))
    return f"torch found {found[1]}" if found else type(error).__name__
