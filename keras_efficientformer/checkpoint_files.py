"""The door for checkpoint files: from a path to {tensor name: array}, and back. Knows files, not networks.

Arrays keep the dtype they have in the file. Only the safe readers are used: safetensors, HDF5, and PyTorch's
`weights_only` unpickler, which refuses anything but tensors and plain containers.
"""

import argparse
import json
import os
import re
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path

PYTORCH_SUFFIXES = (".pth", ".pt", ".bin")
KERAS_SUFFIXES = (".weights.h5", ".keras")
SUFFIXES = (".safetensors", *PYTORCH_SUFFIXES, *KERAS_SUFFIXES)

# Where training scripts put the state dict, best first. timm's evaluates the averaged weights ("state_dict_ema");
# snap-research's, which comes from DeiT's, evaluates "model" and published what that gives, not "model_ema".
WRAPPERS = ("state_dict_ema", "state_dict", "model", "model_ema", "ema", "module")
# What DistributedDataParallel, torch.compile and Lightning put before every name.
PREFIXES = ("module.", "_orig_mod.", "model.", "ema.")
# What torch's AveragedModel counts beside its tensors.
COUNTERS = ("n_averaged",)

# How torch names what its safe unpickler does not load.
UNSAFE = re.compile(r"unsupported (?:global|class):?(?: GLOBAL)? ([\w.]+)", re.IGNORECASE)


class CheckpointError(ValueError):
    """A checkpoint that cannot be used as it is: the message says what was found, what was expected and what to do."""


class Checkpoint(dict):
    """A state dict, {tensor name: NumPy array}, that remembers the file it was read from.

    Attributes:
        source: path of the file, for messages.
        wrappers: the keys and prefixes that were taken off to reach the tensors, outermost first; often empty.
    """

    def __init__(self, tensors, source, wrappers=()):
        super().__init__(tensors)
        self.source = str(source)
        self.wrappers = tuple(wrappers)


def read_tensors(path) -> Checkpoint:
    """The tensors of a checkpoint file.

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
        path.open("rb").close()  # a missing file or a folder is none of another kind
        raise CheckpointError(
            f"{path} is not a kind of checkpoint that can be read: found the suffix {path.suffix!r}, "
            f"expected one of {', '.join(SUFFIXES)}. Rename the file if it is one of these."
        )
    with path.open("rb") as file:  # missing, a folder or not permitted: an OSError that names the file
        if not file.read(1):
            raise CheckpointError(f"{path} is empty: a checkpoint was expected. Bring the file again.")
    if suffix == ".safetensors":
        tensors, wrappers = _read_safetensors(path), []
    elif suffix in KERAS_SUFFIXES:
        return Checkpoint(_read_hdf5(path), path)
    else:
        tensors, wrappers = _read_pytorch(path)
    tensors, prefixes = _strip_prefixes(tensors)
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors: a state dict was expected. Save `model.state_dict()`.")
    return Checkpoint(tensors, path, [*wrappers, *prefixes])


def write_tensors(path, tensors, overwrite=False, wrapper=None):
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
            save_file(tensors, partial, metadata={"format": "pt"})
        return
    if suffix not in PYTORCH_SUFFIXES:
        expected = ", ".join((".safetensors", *PYTORCH_SUFFIXES))
        raise CheckpointError(f"{path} cannot be written as a PyTorch checkpoint: expected one of {expected}.")
    torch = _import_torch(path)
    state_dict = {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}
    with finished_file(path, overwrite) as partial:
        torch.save({wrapper: state_dict} if wrapper else state_dict, partial)


def suffix_of(path) -> str | None:
    """The one of `SUFFIXES` with which the file's name ends, or None."""
    name = Path(path).name.lower()
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


@contextmanager
def finished_file(path, overwrite=False):
    """Gives a path to write to, which becomes `path` when the block ends well and is removed when it does not.

    Raises:
        FileExistsError: `path` exists and `overwrite` is False.
        FileNotFoundError: the folder of `path` does not exist.
        IsADirectoryError: `path` is a folder and no Core ML package.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists. Choose another name, or say that it may be overwritten.")
    if path.is_dir() and not (path / "Manifest.json").exists():
        raise IsADirectoryError(f"{path} is a folder, and no Core ML package that could be replaced.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"The folder {path.parent} does not exist. Make it first, or choose another.")
    # In the same folder, so that the last step is a rename; under the same suffix, which decides the format.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".partial-") as folder:
        partial = Path(folder) / path.name
        yield partial
        if path.exists() and partial.is_dir():  # a package: no folder replaces another that is not empty
            os.replace(path, Path(folder) / "replaced")
        os.replace(partial, path)


def _read_safetensors(path):
    import ml_dtypes  # noqa: F401  (teaches NumPy bfloat16, without which safetensors refuses such files)
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except (SafetensorError, TypeError, KeyError) as error:
        raise _damaged(path, "safetensors", error) from error
    except AttributeError as error:  # NumPy has no such dtype
        raise _unknown_kind(path, error) from error


def _read_pytorch(path):
    torch = _import_torch(path)
    # snap-research's checkpoints hold their training arguments too, which are plain values in this plain container.
    plain = [argparse.Namespace]
    try:
        with torch.serialization.safe_globals(plain):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling a foreign file can raise anything at all
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
        except (TypeError, RuntimeError) as error:  # quantized, sparse, float8, without values
            raise _unknown_kind(path, f"{name}: {_first(error)}") from error
    return tensors, wrappers


def _import_torch(path):
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f"{path} is in PyTorch's own format, which needs PyTorch: pip install 'keras-efficientformer[torch]', "
            "or use a .safetensors file."
        ) from error
    return torch


def _unwrap(content):
    wrappers = []
    while isinstance(content, Mapping):
        key = next((key for key in WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if key is None:
            return content, wrappers
        content = content[key]
        wrappers.append(key)
    return {}, wrappers


def _strip_prefixes(tensors):
    stripped = []
    tensors = {name: tensor for name, tensor in tensors.items() if name not in COUNTERS}
    while prefix := next((p for p in PREFIXES if tensors and all(name.startswith(p) for name in tensors)), None):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        stripped.append(prefix)
    return tensors, stripped


def to_numpy(value):
    """A PyTorch tensor as an array of its own dtype, bfloat16 as `ml_dtypes.bfloat16`; anything else as it is."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(value, torch.Tensor):
        return value
    tensor = value.detach().cpu()
    if tensor.dtype != torch.bfloat16:
        return tensor.numpy()
    import ml_dtypes

    return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)


def keras_layers(path) -> list[tuple[str, str]]:
    """(class, name) of the layers of a `.keras` file that `read_tensors` has read."""
    with zipfile.ZipFile(path) as archive:
        config = json.loads(archive.read("config.json"))
    return [(layer["class_name"], layer["config"]["name"]) for layer in config["config"].get("layers", ())]


def _read_hdf5(path):
    import h5py
    import ml_dtypes

    tensors = {}

    def collect(name, item):
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


def _unknown_kind(path, error):
    return CheckpointError(
        f"{path} holds a tensor of a kind that NumPy does not have ({_first(error)}). Save the weights as dense "
        "tensors of float16, bfloat16, float32 or float64."
    )


def _damaged(path, kind, error):
    return CheckpointError(
        f"{path} cannot be read as a {kind} checkpoint: {_first(error)}. It is truncated, damaged or something else; "
        "compare its size and sha256 with its source's and bring it again."
    )


def _without_advice(error):
    """What torch found, without its advice to load the file unsafely."""
    if "TorchScript" in str(error):
        return "it is a TorchScript archive, no state dict"
    if "weights_only" not in str(error):
        return error if isinstance(error, RuntimeError) else f"{type(error).__name__} {error}"
    found = re.search(r"WeightsUnpickler error:\s*(.+)", str(error))
    return f"torch found {found[1]}" if found else type(error).__name__


def _first(error):
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
