"""Checkpoints that must be refused: one `CheckpointError` that names the file, and a model left as it was.

All files are real ones, damaged; the network is a small one, for which every tensor can be damaged in turn.
"""

import contextlib
import os
import pickle
import resource
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import timm
import timm_reference
import torch

import keras_efficientformer as kef
from keras_efficientformer import conversion
from keras_efficientformer.conversion import hdf5_survival
from keras_efficientformer.errors import CheckpointError
from keras_efficientformer.opening import open_model

SMALL = {"depths": (1, 1, 1, 2), "widths": (8, 16, 24, 32), "num_meta3d": 1}
NETWORK = timm_reference.small_model()
TENSORS = timm_reference.state_dict(NETWORK)
BUFFERS = ("attention_bias_idxs", "num_batches_tracked")
WEIGHTS = [name for name in TENSORS if not name.endswith(BUFFERS)]
TABLE = "stages.3.blocks.2.token_mixer.attention_biases"
INDICES = "stages.3.blocks.2.token_mixer.attention_bias_idxs"

formats = pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".bin"])
pickles = pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
every_format = pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".bin", ".keras", ".weights.h5"])


def build(**arguments):
    return kef.EfficientFormer(**{**SMALL, "classes": 10, **arguments})


@pytest.fixture(scope="module")
def model():
    """With recognisable weights, which no test may change."""
    model = build()
    for index, variable in enumerate(model.weights):
        variable.assign(np.random.default_rng(index).uniform(0.1, 1, variable.shape))
    return model


@contextlib.contextmanager
def refused(model, source, *words):
    """One message, in one line, with the file's name and all these words; every bit of the model stays."""
    before = model.get_weights()
    with pytest.raises(CheckpointError) as caught:
        yield caught
    message = str(caught.value)
    for word in (str(source), *words):
        assert word in message
    assert "\n" not in message
    assert len(message) < 2500
    after = model.get_weights()
    assert all(np.array_equal(one, other) for one, other in zip(before, after, strict=True))


def load(model, path):
    conversion.load_state_dict(model, conversion.read_checkpoint(path))


def save(path, tensors):
    if path.suffix == ".safetensors":
        safetensors.numpy.save_file(tensors, path)
    else:
        torch.save({name: torch.from_numpy(tensor) for name, tensor in tensors.items()}, path)
    return path


def save_good(folder, suffix):
    """A complete file that would load."""
    path = folder / f"checkpoint{suffix}"
    if suffix == ".keras":
        build().save(path)
    elif suffix == ".weights.h5":
        build().save_weights(path)
    else:
        save(path, TENSORS)
    conversion.read_checkpoint(path)
    return path


def test_damaged_configuration(model, tmp_path):
    """Of a .keras file whose weights are whole."""
    with zipfile.ZipFile(save_good(tmp_path, ".keras")) as archive:
        weights = archive.read("model.weights.h5")
    for content in (None, b"{", b'{"config": {"layers": [1]}}'):
        path = tmp_path / "damaged.keras"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("model.weights.h5", weights)
            if content is not None:
                archive.writestr("config.json", content)
        with refused(model, path, "cannot be read as a Keras checkpoint", "config.json"):
            load(model, path)


@pytest.mark.parametrize(
    "change",
    [
        {3: np.zeros(3, "float32")},
        {"head.bias": [0.0] * 10},
        {"head.bias": torch.zeros(10, dtype=torch.float8_e4m3fn)},
    ],
    ids=["number", "list", "float8"],
)
def test_values_that_are_no_tensors(model, change):
    with refused(model, "the state dict", str(next(iter(change)))):
        conversion.load_state_dict(model, TENSORS | change)


# Files that hold no state dict.


@every_format
@pytest.mark.parametrize("part", [0.02, 0.5, 0.999])
def test_truncated(model, tmp_path, suffix, part):
    path = save_good(tmp_path, suffix)
    os.truncate(path, int(path.stat().st_size * part))
    with refused(model, path, "truncated, damaged or something else", "bring it again"):
        load(model, path)


@every_format
@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab0c5bfd\nsize 49300000\n", "cannot be read"),
        (b"<!DOCTYPE html><html>404 Not Found</html>", "cannot be read"),
        (b"\0" * 100_000, "cannot be read"),
        (b"\xff" * 100_000, "cannot be read"),
    ],
    ids=["empty", "git-lfs", "html", "zeros", "ones"],
)
def test_something_else(model, tmp_path, suffix, content, word):
    path = tmp_path / f"checkpoint{suffix}"
    path.write_bytes(content)
    with refused(model, path, word, "again"):
        load(model, path)


@pytest.mark.parametrize(
    ("real", "claimed"),
    [(".safetensors", ".pth"), (".pth", ".safetensors"), (".keras", ".weights.h5"), (".weights.h5", ".keras")],
)
def test_wrong_suffix(model, tmp_path, real, claimed):
    path = save_good(tmp_path, real).rename(tmp_path / f"renamed{claimed}")
    with refused(model, path, "cannot be read as a"):
        load(model, path)


@pytest.mark.parametrize("name", ["checkpoint.onnx", "checkpoint", "checkpoint.tar", "model.h5"])
def test_unknown_suffix(model, tmp_path, name):
    path = save_good(tmp_path, ".safetensors").rename(tmp_path / name)
    with refused(model, path, f"the suffix {path.suffix!r}", ".pth, .pt, .bin"):
        load(model, path)


@every_format
def test_files_that_cannot_be_opened(tmp_path, suffix):
    path = tmp_path / f"checkpoint{suffix}"
    with pytest.raises(FileNotFoundError, match="checkpoint"):
        conversion.read_checkpoint(path)
    path.mkdir()
    with pytest.raises(IsADirectoryError, match="checkpoint"):
        conversion.read_checkpoint(path)


def test_not_permitted(tmp_path):
    path = save_good(tmp_path, ".safetensors")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read every file, whatever its permissions say (root)")
    with pytest.raises(PermissionError, match="checkpoint"):
        conversion.read_checkpoint(path)


def test_layers_of_ones_own_are_refused(model, tmp_path):
    path = tmp_path / "mine.keras"
    part = build()
    keras.Model(part.input, keras.layers.Dense(3, name="mine")(part.output)).save(path)
    with refused(model, path, "layers of your own: mine", "save the EfficientFormer alone"):
        load(model, path)


def test_missing_files_are_missing_whatever_their_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="l9"):
        conversion.read_checkpoint(tmp_path / "l9")
    with pytest.raises(IsADirectoryError):
        conversion.read_checkpoint(tmp_path)


def test_constructors_refuse_too(tmp_path):
    path = save_good(tmp_path, ".safetensors")
    os.truncate(path, 1000)
    with pytest.raises(CheckpointError, match="truncated"):
        build(weights=path)
    with pytest.raises(ValueError, match=r"path to the weights file to be loaded\. Received: weights=.*missing"):
        build(weights=tmp_path / "missing.safetensors")


# Pickles, which can hold anything and do anything.


class RunsCommand:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


class TouchesFile(RunsCommand):
    def __reduce__(self):
        return Path.touch, (self.marker,)


class Evaluates(RunsCommand):
    def __reduce__(self):
        return eval, (f"open({str(self.marker)!r}, 'w')",)


@pickles
@pytest.mark.parametrize("payload", [RunsCommand, TouchesFile, Evaluates])
@pytest.mark.parametrize("how", ["torch", "torch-legacy", "pickle"])
def test_malicious_pickle(model, tmp_path, suffix, payload, how):
    marker = tmp_path / "marker"
    path = tmp_path / f"checkpoint{suffix}"
    content = {name: torch.from_numpy(tensor) for name, tensor in TENSORS.items()} | {"payload": payload(marker)}
    if how == "pickle":
        path.write_bytes(pickle.dumps({"payload": payload(marker)}))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "torch")
    with refused(model, path) as refusal:
        load(model, path)
    assert "weights_only" not in str(refusal.value)  # torch's own advice is to load it unsafely
    if how == "torch":
        assert "loading it could run code" in str(refusal.value)
    assert not marker.exists()
    with contextlib.suppress(Exception):  # the payload itself works: an unsafe reader would have run it
        torch.load(path, weights_only=False) if how != "pickle" else pickle.loads(path.read_bytes())
    assert marker.exists()


@pickles
def test_torchscript_is_called_by_its_name(model, tmp_path, suffix):
    path = tmp_path / f"checkpoint{suffix}"
    torch.jit.script(torch.nn.Linear(2, 2)).save(path)
    with refused(model, path, "it is a TorchScript archive"):
        load(model, path)


@pickles
def test_whole_modules_are_refused(model, tmp_path, suffix):
    path = tmp_path / f"checkpoint{suffix}"
    torch.save(NETWORK, path)
    with refused(model, path, "loading it could run code", "Save `model.state_dict()` alone"):
        load(model, path)


@pytest.mark.parametrize(
    "content",
    [
        [torch.zeros(3)],
        torch.zeros(3),
        7,
        None,
        {},
        {"epoch": 3},
        {"model": {}},
        {"state_dict": {"model": {"lr": 0.1}}},
        {1: torch.zeros(3)},
    ],
    ids=["list", "tensor", "number", "none", "nothing", "no-tensors", "empty", "nested", "numbered"],
)
def test_pickles_without_a_state_dict(model, tmp_path, content):
    path = tmp_path / "checkpoint.pth"
    torch.save(content, path)
    with refused(model, path):
        load(model, path)


# State dicts of something else.


def test_wrong_variant(loud_state_dict, model, tmp_path):
    path = save(tmp_path / "checkpoint.safetensors", loud_state_dict)
    with refused(model, path, "EfficientFormer-L1 (depths (3, 2, 6, 4), widths (48, 96, 224, 448), 1 Meta3D blocks)"):
        load(model, path)
    with pytest.raises(CheckpointError, match=r"expected EfficientFormer-L3 .* Use EfficientFormerL1 for it"):
        kef.EfficientFormerL3(weights=path)


@pytest.mark.parametrize(
    "shape",
    [
        ((1, 1, 2, 2), (8, 16, 24, 32), 1),
        ((1, 1, 1, 2), (8, 16, 24, 40), 1),
        ((1, 1, 1, 2), (10, 16, 24, 32), 1),
        ((1, 1, 1, 2), (8, 16, 24, 32), 2),
    ],
    ids=["depth", "width", "first-width", "meta3d"],
)
@formats
def test_other_shape(model, tmp_path, shape, suffix):
    path = save(tmp_path / f"checkpoint{suffix}", timm_reference.state_dict(timm_reference.small_model(*shape)))
    found = f"found an EfficientFormer with depths {shape[0]}, widths {shape[1]}, {shape[2]} Meta3D blocks"
    with refused(model, path, found, "expected an EfficientFormer with depths (1, 1, 1, 2)", "EfficientFormer(...)"):
        load(model, path)


@formats
def test_other_network(model, tmp_path, suffix):
    path = save(tmp_path / f"checkpoint{suffix}", timm_reference.state_dict(timm.create_model("resnet10t")))
    with refused(model, path, "not an EfficientFormer in a known dialect", "EfficientFormerV2", "more; expected"):
        load(model, path)


@formats
def test_other_family(model, tmp_path, suffix):
    path = save(tmp_path / f"checkpoint{suffix}", timm_reference.state_dict(timm.create_model("efficientformerv2_s0")))
    with refused(model, path, "found EfficientFormerV2-S0", "expected an EfficientFormer", "Use EfficientFormerV2S0"):
        load(model, path)


@pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
def test_other_keras_model(model, tmp_path, suffix):
    path = tmp_path / f"checkpoint{suffix}"
    other = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2), keras.layers.Dense(4)])
    other.save(path) if suffix == ".keras" else other.save_weights(path)
    with refused(model, path, "not an EfficientFormer in a known dialect"):
        load(model, path)


@formats
def test_other_number_of_classes(model, tmp_path, suffix):
    network = timm_reference.small_model(classes=7)
    path = save(tmp_path / f"checkpoint{suffix}", timm_reference.state_dict(network))
    with refused(model, path, "has 7 classes and the model expects 10", "classes=7", "include_top=False"):
        load(model, path)
    load(build(include_top=False), path)


@formats
def test_single_head_for_two(model, tmp_path, suffix):
    single = {name: tensor for name, tensor in TENSORS.items() if not name.startswith("head_dist.")}
    path = save(tmp_path / f"checkpoint{suffix}", single)
    with refused(model, path, "has a single head and the model expects two", 'head="single"'):
        load(model, path)
    load(build(head="single"), path)


def test_half_a_head_is_not_left_out(tmp_path):
    rest = {name: tensor for name, tensor in TENSORS.items() if name != "head_dist.bias"}
    with pytest.raises(CheckpointError, match=r"found 1 missing \(head_dist\.bias \(10,\)\)"):
        kef.from_checkpoint(save(tmp_path / "checkpoint.safetensors", rest))


def test_no_classifier(model, tmp_path):
    bare = {name: tensor for name, tensor in TENSORS.items() if not name.startswith("head")}
    path = save(tmp_path / "checkpoint.pth", bare)
    with refused(model, path, "has no classifier and the model has 2", "include_top=False"):
        load(model, path)


# State dicts with something wrong in them.


@pytest.mark.parametrize("name", WEIGHTS)
def test_missing_tensor(model, name):
    with refused(model, "the state dict"):
        conversion.load_state_dict(model, {key: tensor for key, tensor in TENSORS.items() if key != name})


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("buffers", [True, False], ids=["with-buffers", "without-buffers"])
def test_tensor_of_another_shape(model, name, buffers):
    tensors = TENSORS if buffers else {name: TENSORS[name] for name in WEIGHTS}
    tensor = TENSORS[name]
    shapes = {
        "no axes": tensor.reshape(-1)[0],
        "no values": tensor[:0],
        "one more": np.concatenate([tensor, tensor[:1]]),
        "one fewer": tensor[:-1],
        "another axis": tensor[None],
        "one axis": tensor.reshape(-1) if tensor.ndim > 1 else tensor[:, None],
        "turned round": tensor.T if tensor.ndim > 1 and tensor.T.shape != tensor.shape else tensor[None, :],
    }
    for wrong in shapes.values():
        with refused(model, "the state dict"):
            conversion.load_state_dict(model, tensors | {name: np.asarray(wrong)})


@pytest.mark.parametrize("value", [np.nan, -np.inf])
@pytest.mark.parametrize("name", WEIGHTS)
def test_one_value_that_is_not_finite(model, name, value):
    wrong = TENSORS[name].copy()
    wrong.reshape(-1)[-1] = value
    with refused(model, "the state dict", f"in 1 of {len(WEIGHTS)} tensors: {name} {wrong.shape}"):
        conversion.load_state_dict(model, TENSORS | {name: wrong})


def test_variances_below_zero(model):
    """Their network answers NaN."""
    name = "stem.norm1.running_var"
    with refused(model, f"holds variances below 0: {name}. Nothing was loaded"):
        conversion.load_state_dict(model, TENSORS | {name: -TENSORS[name]})


@formats
def test_filled_with_nan(model, tmp_path, suffix):
    wrong = {n: np.full_like(t, np.nan) if t.dtype.kind == "f" else t for n, t in TENSORS.items()}
    path = save(tmp_path / f"checkpoint{suffix}", wrong)
    with refused(model, path, "NaN or infinite", "Nothing was loaded", f"and {len(WEIGHTS) - 10} more"):
        load(model, path)


def test_too_large_for_float32(model):
    wrong = TENSORS["norm.bias"].astype("float64")
    wrong[3] = 1e39
    with refused(model, "the state dict", "NaN or infinite in 1 of", "norm.bias (32,)"):
        conversion.load_state_dict(model, TENSORS | {"norm.bias": wrong})


@formats
def test_extra_and_missing_tensors(model, tmp_path, suffix):
    wrong = dict(TENSORS)
    wrong["norm.scale"] = wrong.pop("norm.weight")
    path = save(tmp_path / f"checkpoint{suffix}", wrong)
    missing = "1 missing (norm.weight (32,))"
    with refused(model, path, missing, "1 that the model does not have (norm.scale (32,))", "Nothing was loaded"):
        load(model, path)


@formats
def test_wrong_shape(model, tmp_path, suffix):
    name = "stages.1.blocks.0.mlp.fc1.weight"
    path = save(tmp_path / f"checkpoint{suffix}", TENSORS | {name: TENSORS[name][:, :, 0, 0].copy()})
    with refused(model, path, f"1 tensors of other shapes: {name}: found (64, 16), expected (64, 16, 1, 1)"):
        load(model, path)


def test_ten_problems_are_listed_and_the_others_counted(model):
    extra = {f"extra.{index:02}": np.zeros(1, "float32") for index in range(13)}
    with refused(
        model, "the state dict", "13 that the model does not have (extra.00 (1,)", "extra.09 (1,) and 3 more)"
    ):
        conversion.load_state_dict(model, TENSORS | extra)
    with refused(model, "the state dict", "extra.09 (1,))"):
        conversion.load_state_dict(model, TENSORS | dict(list(extra.items())[:10]))

    wrong = {name: TENSORS[name][None] for name in WEIGHTS if name.endswith("mlp.fc1.bias")}
    wrong |= {name: TENSORS[name][None] for name in WEIGHTS if name.endswith(("norm1.bias", "norm1.weight"))}
    with refused(model, "the state dict", f"{len(wrong)} tensors of other shapes", f" and {len(wrong) - 10} more"):
        conversion.load_state_dict(model, TENSORS | wrong)


@formats
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int64", "bool", "complex64"])
def test_weights_of_another_dtype(model, tmp_path, suffix, dtype):
    name = "stem.conv1.weight"
    path = save(tmp_path / f"checkpoint{suffix}", TENSORS | {name: TENSORS[name].astype(dtype)})
    with refused(model, path, "other dtypes than float16, bfloat16, float32 and float64", f"{name} {dtype}"):
        load(model, path)


EXOTIC = {
    "float8": lambda tensor: tensor.to(torch.float8_e4m3fn),
    "sparse": lambda tensor: tensor.to_sparse(),
    "without-storage": lambda tensor: tensor.to("meta"),
}


@pytest.mark.parametrize("change", EXOTIC.values(), ids=EXOTIC)
def test_tensors_that_numpy_does_not_have(model, tmp_path, change):
    path = tmp_path / "checkpoint.pth"
    tensors = {name: torch.from_numpy(tensor) for name, tensor in TENSORS.items()}
    torch.save(tensors | {"norm.bias": change(tensors["norm.bias"])}, path)
    with refused(model, path, "norm.bias", "Save the weights as dense"):
        load(model, path)


def test_float8_in_safetensors(model, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    tensors = {name: torch.from_numpy(tensor) for name, tensor in TENSORS.items()}
    safetensors.torch.save_file(tensors | {"norm.bias": tensors["norm.bias"].to(torch.float8_e4m3fn)}, path)
    with refused(model, path, "float8_e4m3fn", "Save the weights as dense"):
        load(model, path)


@pytest.mark.parametrize(
    "indices",
    [np.zeros((), "int64"), np.zeros(0, "int64"), np.zeros(49, "int64"), np.zeros((49, 48), "int64")],
    ids=["no axes", "no values", "one axis", "not square"],
)
def test_indices_of_no_grid(indices):
    """A buffer that no grid has does no harm where the table has the model's length; resized it cannot be."""
    wrong = TENSORS | {INDICES: indices}
    loaded = build()
    conversion.load_state_dict(loaded, wrong)
    assert np.array_equal(conversion.to_state_dict(loaded)[TABLE], TENSORS[TABLE])
    other = build(input_shape=(256, 256, 3))
    with refused(other, "the state dict", "the file does not say of which (height, width) it is"):
        conversion.load_state_dict(other, wrong)


def test_table_that_contradicts_its_indices():
    other = build(input_shape=(256, 256, 3))
    with refused(other, "the state dict", TABLE):
        conversion.load_state_dict(other, TENSORS | {TABLE: TENSORS[TABLE][:, :48]})


@pytest.mark.parametrize("suffix", [".weights.h5", ".keras"])
def test_files_that_send_hdf5_round_in_circles(tmp_path, monkeypatch, suffix):
    """A size in HDF5's heap of names that is 16 too small for its header: the next object is the same again."""
    path = tmp_path / f"m{suffix}"
    model = build(input_shape=(32, 32, 3))
    model.save_weights(path) if suffix == ".weights.h5" else model.save(path)
    if suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        members["model.weights.h5"] = _with_endless_heap(members["model.weights.h5"])
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
    else:
        path.write_bytes(_with_endless_heap(path.read_bytes()))
    monkeypatch.setattr(hdf5_survival, "READER_SECONDS", 1)
    with pytest.raises(CheckpointError, match="keeps HDF5 busy for more than 1 s: it is damaged"):
        conversion.read_checkpoint(path)
    if suffix == ".keras":
        with pytest.raises(CheckpointError, match="keeps HDF5 busy"):
            open_model(path)


def _with_endless_heap(content):
    place = content.index(b"GCOL") + 24
    return content[:place] + (2**64 - 16).to_bytes(8, "little") + content[place + 8 :]


@formats
def test_a_full_disk(tmp_path, suffix):
    """No file may grow beyond the limit, which the system tells as it tells of a full disk."""
    tensors = {"weight": np.zeros(200_000, "float32")}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match=rf"model\{suffix} cannot be written, perhaps for lack of space: "):
            conversion.write_checkpoint(tmp_path / f"model{suffix}", tensors)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []
