"""Reads and writes the formats of checkpoint files as {tensor name: array}. Room: conversion; it knows no networks.

Arrays keep the dtype they have in the file. Only the safe readers are used: safetensors, HDF5, and PyTorch's
`weights_only` unpickler, which refuses anything but tensors and plain containers.
"""

import argparse
import json
import os
import re
import sys
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from keras_efficientformer.errors import CheckpointError, first_line, require
from keras_efficientformer.files import finished_file

PYTORCH_SUFFIXES = (".pth", ".pt", ".bin")
KERAS_SUFFIXES = (".weights.h5", ".keras")
CHECKPOINT_SUFFIXES = (".safetensors", *PYTORCH_SUFFIXES, *KERAS_SUFFIXES)

# Training scripts put the state dict under these keys, of which the first that is there is read. timm's evaluates the
# averaged weights ("state_dict_ema"); snap-research's, which comes from DeiT's, evaluates "model" and published what
# that gives, not "model_ema".
WRAPPERS = ("state_dict_ema", "state_dict", "model", "model_ema", "ema", "module")
# DistributedDataParallel, torch.compile and Lightning put these before every name.
PREFIXES = ("module.", "_orig_mod.", "model.", "ema.")
# torch's AveragedModel counts its updates beside its tensors.
COUNTERS = ("n_averaged",)

# torch names what its safe unpickler does not load in these words.
UNSAFE = re.compile(r"unsupported (?:global|class):?(?: GLOBAL)? ([\w.]+)", re.IGNORECASE)


class Checkpoint(dict[str, np.ndarray]):
    """A state dict, {tensor name: NumPy array}, that remembers the file it was read from.

    Attributes:
        source: path of the file, for messages.
        wrappers: the keys and prefixes that were taken off to reach the tensors, outermost first; often empty.
    """

    def __init__(
        self, tensors: Mapping[str, np.ndarray], source: str | os.PathLike[str], wrappers: Iterable[str] = ()
    ) -> None:
        super().__init__(tensors)
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
        # A missing file and a folder raise an OSError here: they are no file of another kind.
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
    if suffix == ".safetensors":
        tensors = _read_safetensors(path)
    elif suffix in KERAS_SUFFIXES:
        return Checkpoint(_read_hdf5(path), path)
    else:
        tensors, wrappers = _read_pytorch(path)
    tensors, prefixes = _strip_prefixes(tensors)
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors: a state dict was expected. Save `model.state_dict()`.")
    return Checkpoint(tensors, path, [*wrappers, *prefixes])


def write_tensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, np.ndarray],
    overwrite: bool = False,
    wrapper: str | None = None,
) -> None:
    """Writes a state dict as `.safetensors`, or as `.pth`, `.pt` or `.bin` with torch.

    Args:
        path: the file; it gets this name only when it is complete.
        tensors: {name: contiguous NumPy array}.
        overwrite: whether an existing file may be replaced.
        wrapper: key under which PyTorch's formats hold the state dict, or None to hold it bare.

    Raises:
        FileExistsError: the file exists and `overwrite` is False.
        CheckpointError: the suffix is none of the four.
        ImportError: torch is needed and not installed.
    """
    path = Path(path)
    suffix = suffix_of(path)
    if suffix == ".safetensors":
        from safetensors.numpy import save_file

        with finished_file(path, overwrite) as partial:
            # transformers and timm refuse a file that does not say which framework's layout it has.
            save_file(dict(tensors), partial, metadata={"format": "pt"})
        return
    if suffix not in PYTORCH_SUFFIXES:
        expected = ", ".join((".safetensors", *PYTORCH_SUFFIXES))
        raise CheckpointError(f"{path} cannot be written as a PyTorch checkpoint: expected one of {expected}.")
    torch = _torch_for(path)
    state_dict = {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}
    with finished_file(path, overwrite) as partial:
        torch.save({wrapper: state_dict} if wrapper else state_dict, partial)


def suffix_of(path: str | os.PathLike[str]) -> str | None:
    """The one of `CHECKPOINT_SUFFIXES` with which the file's name ends, or None."""
    name = Path(path).name.lower()
    return next((suffix for suffix in CHECKPOINT_SUFFIXES if name.endswith(suffix)), None)


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    # ml_dtypes teaches NumPy bfloat16, without which safetensors refuses such files.
    import ml_dtypes  # noqa: F401
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except (SafetensorError, TypeError, KeyError) as error:
        raise _damaged(path, "safetensors", error) from error
    # An AttributeError means that NumPy has no such dtype.
    except AttributeError as error:
        raise _unknown_kind(path, error) from error


def _read_pytorch(path: Path) -> tuple[dict[str, np.ndarray], list[str]]:
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
        raise _damaged(path, "PyTorch", _without_advice(error)) from error
    content, wrappers = _unwrap(content)
    tensors = {str(name): value for name, value in content.items() if isinstance(value, torch.Tensor)}
    for name, tensor in tensors.items():
        try:
            tensors[name] = to_numpy(tensor)
        # These are raised for quantized, sparse and float8 tensors and for those without values.
        except (TypeError, RuntimeError) as error:
            raise _unknown_kind(path, f"{name}: {first_line(error)}") from error
    return tensors, wrappers


def _torch_for(path: Path) -> Any:
    return require(
        "torch", f"{path} is in PyTorch's own format, which", "torch", otherwise=", or use a .safetensors file"
    )


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


def keras_layers(path: str | os.PathLike[str]) -> list[tuple[str, str]]:
    """(class, name) of the layers of a `.keras` file that `read_tensors` has read."""
    with zipfile.ZipFile(path) as archive:
        config = json.loads(archive.read("config.json"))
    return [(layer["class_name"], layer["config"]["name"]) for layer in config["config"].get("layers", ())]


def _read_hdf5(path: Path) -> dict[str, np.ndarray]:
    import h5py
    import ml_dtypes

    tensors: dict[str, np.ndarray] = {}

    def collect(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            # HDF5 has no bfloat16: Keras stores two bytes and says so.
            value, kind = item[()], item.attrs.get("dtype")
            tensors[name] = value.view(ml_dtypes.bfloat16) if kind == "bfloat16" else value

    try:
        if suffix_of(path) == ".keras":
            with zipfile.ZipFile(path) as archive, archive.open("model.weights.h5") as file, h5py.File(file) as content:
                content.visititems(collect)
        else:
            with h5py.File(path) as content:
                content.visititems(collect)
    except (OSError, KeyError, RuntimeError, zipfile.BadZipFile) as error:
        raise _damaged(path, "Keras", error) from error
    return tensors


def _unknown_kind(path: Path, error: BaseException | str) -> CheckpointError:
    return CheckpointError(
        f"{path} holds a tensor of a kind that NumPy does not have ({first_line(error)}). Save the weights as dense "
        "tensors of float16, bfloat16, float32 or float64."
    )


def _damaged(path: Path, kind: str, error: BaseException | str) -> CheckpointError:
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
