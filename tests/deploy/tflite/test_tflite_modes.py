"""The quantized modes of TFLite export: how close to Keras they stay, and what is float and what integer in the files.

Each mode is exported once from the embedded checkpoint, calibrated on CIFAR-10's training images where they are at
hand, else on parts of photographs. What does not depend on the weights is tested with a small network. Files are read
with TensorFlow's own schema.
"""

import collections
import functools
import io
import json
import os
import subprocess
import zipfile
from pathlib import Path

import forked
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from exports import contents, run_litert
from PIL import Image
from project import CHECKPOINT, HANG, IMAGES
from skimage import data
from tensorflow.lite.python import schema_py_generated as schema
from tensorflow.lite.tools import flatbuffer_utils

import keras_efficientformer as kef
from keras_efficientformer.deploy import ExportError, export_tflite
from keras_efficientformer.deploy.tflite.runtime import LiteRTModel
from keras_efficientformer.imagenet import load_image, preprocess_input, resize_and_crop
from keras_efficientformer.images import seeded_images

QUANTIZED = ["float16", "dynamic", "weight_only", "int8", "int8_integer", "int16x8"]
CALIBRATED = ["int8", "int8_integer", "int16x8"]
# Largest and mean difference of probabilities, at least half as much again as measured on either kind of images, and
# the least agreement on the class.
BOUNDS = {
    "float16": (0.005, 0.0002, 1.0),
    "dynamic": (0.08, 0.0035, 0.97),
    "weight_only": (0.07, 0.0025, 0.97),
    "int8": (0.28, 0.016, 0.95),
    "int8_integer": (0.28, 0.016, 0.95),
    "int16x8": (0.07, 0.0025, 0.97),
}
# For the small network, and in probabilities that change by 0.2 from image to image.
SMALL_LIMITS = {
    "float16": 0.0005,
    "dynamic": 0.015,
    "weight_only": 0.015,
    "int8": 0.03,
    "int8_integer": 0.03,
    "int16x8": 0.015,
}
# Of the float32 file.
LARGEST_SIZE = {"float16": 0.51, "dynamic": 0.27, "weight_only": 0.27, "int8": 0.27, "int8_integer": 0.27}
ISLAND = {"QUANTIZE", "DEQUANTIZE", "MEAN", "RSQRT", "TRANSPOSE", "SLICE", "BATCH_MATMUL", "SOFTMAX"}


def cifar10(part, each):
    """The first images of each class, float32, at the embedded checkpoint's size."""
    with zipfile.ZipFile(IMAGES / "cifar10-images.zip") as archive:
        names = sorted(n for n in archive.namelist() if n.startswith(f"{part}/") and n.endswith(".jpg"))
        folders = sorted({name.split("/")[1] for name in names})
        chosen = [name for f in folders for name in [n for n in names if n.split("/")[1] == f][:each]]
        images = [load_image(io.BytesIO(archive.read(name))) for name in chosen]
    return np.stack([resize_and_crop(image, (64, 64), 1.0) for image in images]).astype("float32")


def parts_of_photographs():
    images = []
    for photograph in (data.chelsea(), data.rocket(), data.astronaut(), data.coffee()):
        for side in (len(photograph), len(photograph) // 2):
            for left in np.linspace(0, photograph.shape[1] - side, 6).astype(int):
                images.append(resize_and_crop(photograph[-side:, left : left + side], (64, 64), 1.0))
    return np.stack(images).astype("float32")


@pytest.fixture(scope="module")
def calibration():
    return cifar10("train", 5) if IMAGES else parts_of_photographs()


@pytest.fixture(scope="module")
def embedded():
    return kef.from_checkpoint(CHECKPOINT)


@pytest.fixture(scope="module")
def exported(embedded, calibration, tmp_path_factory):
    """The report of the embedded checkpoint's file in a mode."""
    folder = tmp_path_factory.mktemp("modes")
    return functools.cache(lambda mode: export_tflite(embedded, folder, quantize=mode, calibration=calibration))


@pytest.fixture(scope="module")
def small(build):
    return build()


@pytest.fixture(scope="module")
def small_exported(small, tmp_path_factory):
    """The report of the small network's file in a mode, with input and output of a type."""
    folder = tmp_path_factory.mktemp("small")

    @functools.cache
    def export(mode, io="float32"):
        path = folder / f"{mode}_{io}.tflite"
        return export_tflite(small, path, quantize=mode, io=io, calibration=grey_images())

    return export


def grey_images():
    """Without the darkest and lightest pixels, which a file must take all the same when calibrated on these."""
    return np.clip(seeded_images((64, 64, 3)), 10, 245)


def name_of(enum, value):
    return next(name for name, number in vars(enum).items() if number == value)


def operations(path):
    """Each operation of a file in its order: (kind, names of the types of all tensors that it reads and writes)."""
    file = flatbuffer_utils.read_model(str(path))
    (graph,) = file.subgraphs
    found = []
    for operation in graph.operators:
        kind = name_of(schema.BuiltinOperator, file.operatorCodes[operation.opcodeIndex].builtinCode)
        tensors = [graph.tensors[index] for index in (*operation.inputs, *operation.outputs) if index >= 0]
        found.append((kind, {name_of(schema.TensorType, tensor.type) for tensor in tensors}))
    return found


def is_float(types):
    return any("FLOAT" in name for name in types)


# How close to Keras.


@pytest.mark.parametrize("mode", ["none", *QUANTIZED])
def test_constants_are_aligned(small, tmp_path, mode):
    """To the 16 bytes of the schema's `force_align`, from the start of the file."""
    path = tmp_path / "model.tflite"
    export_tflite(small, path, quantize=mode, calibration=seeded_images((64, 64, 3)), max_difference=float("inf"))
    content = path.read_bytes()
    start = np.frombuffer(content, "uint8").__array_interface__["data"][0]
    file = schema.Model.GetRootAs(content, 0)
    buffers = [file.Buffers(index).DataAsNumpy() for index in range(file.BuffersLength())]
    places = [b.__array_interface__["data"][0] - start for b in buffers if isinstance(b, np.ndarray) and len(b)]
    assert len(places) > 50
    assert all(place % 16 == 0 for place in places)


@pytest.mark.parametrize("mode", QUANTIZED)
def test_difference_from_keras(exported, mode):
    (difference,) = exported(mode).differences
    print(mode, difference)
    largest, mean, _ = BOUNDS[mode]
    assert 0 < difference.max <= largest
    assert difference.mean <= mean
    assert difference.largest > 0.9  # else there would be little to differ in


@pytest.mark.parametrize("mode", [mode for mode in QUANTIZED if mode != "int16x8"])  # its kernels here are slow ones
def test_classes_of_images_never_seen(data_folder, embedded, exported, mode):
    images = cifar10("test", 20)
    expected = embedded.predict(preprocess_input(images), verbose=0)
    found = LiteRTModel(exported(mode).path).predict(images)["probabilities"]
    agreement = np.mean(found.argmax(-1) == expected.argmax(-1))
    print(mode, agreement, np.abs(found - expected).mean())
    assert agreement >= BOUNDS[mode][2]
    assert np.abs(found - expected).mean() <= BOUNDS[mode][1]


@pytest.mark.parametrize("mode", ["float16", "dynamic", "weight_only"])
def test_seeded_images_serve_where_nothing_is_calibrated(small, tmp_path, mode):
    report = export_tflite(small, tmp_path, quantize=mode)
    assert (report.mode, report.images, report.images_from) == (mode, 4, "seeded noise")
    assert 0 < report.differences[0].max < SMALL_LIMITS[mode]


@pytest.mark.parametrize("mode", LARGEST_SIZE)
def test_size(exported, mode):
    report = exported(mode)
    assert Path(report.path).name == f"efficientformer_l1_64_{mode}.tflite"
    assert report.size == Path(report.path).stat().st_size <= LARGEST_SIZE[mode] * exported("none").size


@pytest.mark.parametrize("mode", ["float16", "dynamic", "weight_only"])
def test_one_partition(exported, mode):
    report = exported(mode)
    interpreter = Interpreter(model_path=report.path)
    interpreter.allocate_tensors()
    assert [o["op_name"] for o in interpreter._get_ops_details()].count("DELEGATE") == report.partitions == 1


@pytest.mark.parametrize("mode", QUANTIZED)
def test_names_and_signature(small, small_exported, mode):
    path = small_exported(mode).path
    interpreter = Interpreter(model_path=path)
    assert interpreter.get_signature_list() == {"serving_default": {"inputs": ["image"], "outputs": ["probabilities"]}}
    images = seeded_images((64, 64, 3))
    signed = interpreter.get_signature_runner("serving_default")
    found = np.concatenate([signed(image=image[None])["probabilities"] for image in images])
    np.testing.assert_array_equal(found, run_litert(path, images)["probabilities"])
    np.testing.assert_allclose(found, small.predict(preprocess_input(images), verbose=0), atol=SMALL_LIMITS[mode])


@pytest.mark.parametrize("mode", ["float16", "int8"])
def test_batches(small, small_exported, tmp_path, mode):
    images = grey_images()
    report = export_tflite(small, tmp_path, quantize=mode, calibration=images, batch_size=2)
    assert (report.inputs[0].shape, report.outputs[0].shape) == ((2, 64, 64, 3), (2, 10))
    found, alone = (run_litert(path, images)["probabilities"] for path in (report.path, small_exported(mode).path))
    np.testing.assert_allclose(found, alone, atol=1e-4)
    assert np.ptp(found, axis=0).max() > 0.1  # each image has its own


@pytest.mark.parametrize("mode", ["int8", "int8_integer"])
def test_two_outputs_stay_in_order(build, tmp_path, mode):
    model, images = build(head="both"), seeded_images((64, 64, 3))
    report = export_tflite(model, tmp_path, quantize=mode, calibration=images)
    names = ["probabilities", "probabilities_distillation"]
    assert [output.name for output in report.outputs] == names
    assert [d["name"] for d in Interpreter(model_path=report.path).get_output_details()] == names
    found, expected = run_litert(report.path, images), model.predict(preprocess_input(images), verbose=0)
    assert np.abs(expected[0] - expected[1]).max() > 0.1
    for name, values in zip(names, expected, strict=True):
        np.testing.assert_allclose(found[name], values, atol=0.045)  # of 80 values the largest; measured: 0.032
        assert np.sqrt(np.mean((found[name] - values) ** 2)) < 0.01  # measured: 0.0077


# What is float and what integer.


@pytest.mark.parametrize("mode", ["int8_integer", "int16x8"])
def test_nothing_inside_is_float(exported, mode):
    first, *inside, last = operations(exported(mode).path)
    assert (first[0], last[0]) == ("QUANTIZE", "DEQUANTIZE")
    assert is_float(first[1])
    assert is_float(last[1])
    assert [operation for operation in inside if is_float(operation[1])] == []
    assert len(inside) > 150


@pytest.mark.parametrize("io", ["int8", "uint8"])
def test_nothing_at_all_is_float(small_exported, io):
    found = operations(small_exported("int8_integer", io).path)
    assert [operation for operation in found if is_float(operation[1])] == []


def test_int8_keeps_layer_norm_and_attention_in_float(exported):
    found = operations(exported("int8").path)
    assert {kind for kind, types in found if is_float(types)} == ISLAND | {"ADD", "MUL", "SUB"}
    norms = 3  # each: a difference, two products, and an epsilon to add; attention adds its biases
    for kind, count in (("ADD", norms + 1), ("MUL", 2 * norms), ("SUB", norms)):
        assert sum(is_float(types) for other, types in found if other == kind) == count
    for kind in ISLAND - {"QUANTIZE", "DEQUANTIZE", "SLICE"}:
        assert all(is_float(types) for other, types in found if other == kind)
    assert sum(is_float(types) for kind, types in found if kind == "SLICE") == 3  # queries, keys and values
    counts = collections.Counter(kind for kind, _ in found)
    assert counts["CONV_2D"] + counts["FULLY_CONNECTED"] == 38
    # Each pooling mixer: one convolution, and one for the border on each pair of sides.
    assert (counts["DEPTHWISE_CONV_2D"], counts["CONCATENATION"]) == (14 * 3, 14 * 2)


def test_int8_joins_borders_without_quantizing_them_anew(exported):
    """What the pooling mixer joins has one scale: that of its input."""
    file = flatbuffer_utils.read_model(str(exported("int8").path))
    (graph,) = file.subgraphs
    joined = [o for o in graph.operators if flatbuffer_utils.opcode_to_name(file, o.opcodeIndex) == "CONCATENATION"]
    assert len(joined) == 14 * 2
    for operator in joined:
        parts = [graph.tensors[index].quantization for index in (*operator.inputs, *operator.outputs)]
        assert len({(float(part.scale[0]), int(part.zeroPoint[0])) for part in parts}) == 1
    makers = {index: o.opcodeIndex for o in graph.operators for index in o.outputs}
    inputs = {flatbuffer_utils.opcode_to_name(file, makers[index]) for o in joined for index in o.inputs}
    assert "QUANTIZE" not in inputs


def test_dynamic_has_integer_weights_and_float_activations(exported):
    for kind, types in operations(exported("dynamic").path):
        assert ("INT8" in types) == (kind in ("CONV_2D", "FULLY_CONNECTED")), kind
        assert "FLOAT32" in types


@pytest.mark.parametrize("mode", QUANTIZED)
def test_file_says_whether_it_may_be_computed_in_float16(small_exported, mode):
    file = flatbuffer_utils.read_model(small_exported(mode).path)
    found = [bytes(file.buffers[e.buffer].data) for e in file.metadata if e.name == b"reduced_precision_support"]
    assert found == ([b"fp16accfp16"] if mode in ("float16", "dynamic", "int8") else [])


# Types of input and output.


@pytest.mark.parametrize("mode", ["int8", "int8_integer"])
@pytest.mark.parametrize(("io", "zero_point"), [("int8", -128), ("uint8", 0)])
def test_integer_input_and_output(small_exported, mode, io, zero_point):
    report = small_exported(mode, io)
    (image,), (output,) = report.inputs, report.outputs
    assert (image.dtype, image.scale, image.zero_point) == (io, 1.0, zero_point)  # pixels as they are
    # All of 0..1, whatever the largest probability was in calibration.
    assert (output.dtype, output.zero_point) == (io, zero_point)
    assert output.scale == pytest.approx(1 / 255, rel=0.01)
    pixels = seeded_images((64, 64, 3))
    found = run_litert(report.path, (pixels + zero_point).astype(io))["probabilities"]
    assert found.dtype == io
    expected = run_litert(small_exported(mode).path, pixels)["probabilities"]
    assert np.abs((found.astype(int) - zero_point) * output.scale - expected).max() <= 2 * output.scale
    assert np.ptp(expected, axis=0).max() > 10 * output.scale


def test_normalised_images_are_not_cut_off_where_calibration_has_none_as_light(small, tmp_path):
    """Calibrated on images in the dark, as MediaPipe gives them too, which takes a uint8 tensor for pixels."""
    arguments = {"quantize": "int8", "io": "uint8", "include_preprocessing": False}
    report = export_tflite(small, tmp_path, calibration=grey_images() / 4, **arguments)
    darkest, lightest = (preprocess_input(np.full((1, 3), value)) for value in (0.0, 255.0))
    (image,) = report.inputs
    assert image.scale == pytest.approx((lightest.max() - darkest.min()) / 255)
    assert image.zero_point == round(-darkest.min() / image.scale)


@pytest.mark.parametrize("mode", ["int8", "int8_integer"])
def test_whole_pixels_stay_whole_behind_a_float_input(small_exported, mode):
    file = flatbuffer_utils.read_model(small_exported(mode).path)
    (graph,) = file.subgraphs
    pixels = graph.tensors[graph.operators[0].outputs[0]]
    assert graph.tensors[graph.operators[0].inputs[0]].name == b"image"
    assert (pixels.quantization.scale.tolist(), pixels.quantization.zeroPoint.tolist()) == ([1.0], [-128])


def test_logits_have_a_range_of_their_own(build, tmp_path):
    images = seeded_images((64, 64, 3))
    model = build(classifier_activation=None)
    report = export_tflite(model, tmp_path, quantize="int8", io="int8", calibration=images)
    (output,) = report.outputs
    expected = model.predict(preprocess_input(images), verbose=0)
    assert output.scale == pytest.approx(np.ptp(np.append(expected, 0)) / 255, rel=0.1)


REFUSED_IO = [
    (mode, io) for mode in ("none", "float16", "dynamic", "weight_only", "int16x8") for io in ("int8", "uint8")
]


@pytest.mark.parametrize(("mode", "io"), [*REFUSED_IO, ("int8", "int16"), ("int8_integer", "float16")])
def test_other_types_are_refused(small, tmp_path, mode, io):
    with pytest.raises(ValueError, match=rf"`io` should be float32.* with quantize='{mode}'. Received: io='{io}'"):
        export_tflite(small, tmp_path, quantize=mode, io=io, calibration=seeded_images((64, 64, 3)))
    assert contents(tmp_path) == []


# Calibration and what is refused.


@pytest.mark.parametrize("mode", CALIBRATED)
def test_calibration_is_needed(tmp_path, mode):
    with pytest.raises(ValueError, match=f"quantize='{mode}' measures the ranges of activations: pass calibration"):
        export_tflite(None, tmp_path, quantize=mode)  # the model is not even looked at
    assert contents(tmp_path) == []


@pytest.fixture
def folders(tmp_path):
    """Folders that are unfit for calibration, by what is wrong with them."""
    for name in ("empty", "text", "broken"):
        (tmp_path / name).mkdir()
    (tmp_path / "text" / "notes.txt").write_text("no image")
    Image.new("RGB", (70, 70)).save(tmp_path / "broken" / "a.png")
    (tmp_path / "broken" / "b.png").write_bytes(b"no image")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("missing", FileNotFoundError, "missing is not a folder of images"),
        ("empty", ValueError, "empty holds no images"),
        ("text", ValueError, "text holds no images"),
        ("broken", ValueError, r"b\.png"),
    ],
)
def test_unfit_calibration_folders(small, folders, name, error, words):
    with pytest.raises(error, match=words):
        export_tflite(small, folders / "model.tflite", quantize="int8", calibration=folders / name)
    assert [file for file in contents(folders) if "model" in file or "partial" in file] == []


def test_folder_and_arrays_calibrate_alike(small, tmp_path):
    images = seeded_images((64, 64, 3)).astype("uint8")
    (tmp_path / "a" / "b").mkdir(parents=True)
    for index, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "a" / ("b" if index % 2 else "") / f"{index}.png")
    pixels = np.stack([resize_and_crop(images[index], (64, 64)) for index in (0, 2, 1, 3)])
    sources = {"folder": tmp_path / "a", "array": pixels, "list": list(pixels)}
    reports = [
        export_tflite(small, tmp_path / f"{name}.tflite", quantize="int8", calibration=source)
        for name, source in sources.items()
    ]
    first, *others = [Path(report.path).read_bytes() for report in reports]
    assert all(other == first for other in others)
    export_tflite(small, tmp_path / "dark.tflite", quantize="int8", calibration=pixels // 4)
    assert (tmp_path / "dark.tflite").read_bytes() != first  # the images do count


def test_too_different_is_not_written(small, tmp_path):
    arguments = {"quantize": "int8", "calibration": seeded_images((64, 64, 3)), "max_difference": 1e-5}
    with pytest.raises(ExportError, match=r"model\.tflite was not written: its output probabilities differs"):
        export_tflite(small, tmp_path / "model.tflite", **arguments)
    assert contents(tmp_path) == []


def test_command_prints_json_alone(tmp_path):
    photograph = Image.fromarray(data.chelsea())
    (tmp_path / "images").mkdir()
    photograph.save(tmp_path / "images" / "cat.png")
    arguments = ["export", "tflite", CHECKPOINT, tmp_path / "m.tflite", "--quantize", "int8", "--json"]
    program = forked.programs(dict(os.environ)) / "efficientformer"
    command = [program, *arguments, "--calibration", tmp_path / "images"]
    result = subprocess.run(list(map(str, command)), env=dict(os.environ), capture_output=True, text=True, timeout=HANG)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == json.loads((tmp_path / "m.tflite.json").read_text())
    assert json.loads(result.stdout)["mode"] == "int8"


def test_fresh_layer_scales_leave_sums_to_fast_kernels(small, tmp_path):
    """XNNPACK refuses to add what is too small beside the sum, as branches under a layer scale of 1e-5 are."""
    shape = {"depths": (1, 1, 1, 2), "widths": (8, 16, 24, 32), "num_meta3d": 1, "classes": 10}
    fresh = kef.EfficientFormer(**shape, input_shape=(64, 64, 3))
    partitions = [
        export_tflite(model, tmp_path, quantize="int8", calibration=grey_images(), overwrite=True).partitions
        for model in (small, fresh)
    ]
    assert partitions[0] == partitions[1]


def without_a_stem(model):
    """All that the stem's norms give is under zero, and its ReLUs make nothing of it."""
    for variable in model.get_layer("stem").weights:
        if variable.name == "beta":
            variable.assign(np.full(variable.shape, -1e3))


def with_dead_channels(model):
    """What is left of every other channel of the stem is its bias."""
    for variable in model.get_layer("stem").weights:
        if variable.name == "kernel":
            variable.assign(np.asarray(variable) * (np.arange(variable.shape[-1]) % 2))
        elif variable.name == "beta":
            variable.assign(np.full(variable.shape, 3))


@pytest.mark.filterwarnings("ignore:No labels", "ignore:Only 4 calibration images")
@pytest.mark.parametrize("change", [without_a_stem, with_dead_channels])
@pytest.mark.parametrize("mode", CALIBRATED)
def test_dead_channels_keep_their_biases(build, tmp_path, change, mode):
    """A bias is counted in steps of the weights', of which zeros have next to none."""
    model = build(classifier_activation=None)
    change(model)
    report = export_tflite(model, tmp_path, quantize=mode, calibration=seeded_images((64, 64, 3)))
    assert report.worst.max < 0.08 * report.worst.largest


def test_values_that_overflow_are_told(build, tmp_path):
    model = build()
    for variable in model.get_layer("stem").weights:
        if variable.name == "gamma":
            variable.assign(np.full(variable.shape, 1e30))
    with pytest.raises(ExportError, match=r"infinite, none, or over 1e\+37, first in .*CONV_2D"):
        export_tflite(model, tmp_path, quantize="int16x8", calibration=seeded_images((64, 64, 3)))
    assert contents(tmp_path) == []
