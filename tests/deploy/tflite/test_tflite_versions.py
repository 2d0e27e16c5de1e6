"""The versions of operators in .tflite files, beside those that TensorFlow's rules give them. Room: deploy/tflite."""

import keras
import pytest
from project import ROOT
from tensorflow.compiler.mlir.lite.python import wrap_converter
from tensorflow.lite.python import schema_py_generated as schema
from tensorflow.lite.tools import flatbuffer_utils

from keras_efficientformer.deploy import export_tflite
from keras_efficientformer.deploy.tflite.modes import MODES
from keras_efficientformer.images import seeded_images

KINDS = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
# Where no TensorFlow has been run, int16 activations have only LiteRT's kernels.
# TensorFlow 2.21 crashes on files with int4 weights, which `test_chosen_bits.py` looks at.
READ_BY_TENSORFLOW = [mode for mode in MODES if mode != "auto"]
RUNTIMES = {mode: "2.20.0" if mode == "int16x8" else "2.9.1" for mode in READ_BY_TENSORFLOW}


@pytest.fixture(scope="module", params=["v1", "v2"])
def model(request):
    return keras.saving.load_model(ROOT / "tests" / "data" / f"before_{request.param}.keras")


def versions(file):
    """{kind: the highest version of its operators}."""
    found = {}
    for code in file.operatorCodes:
        kind = KINDS[code.builtinCode]
        found[kind] = max(code.version, found.get(kind, 0))
    return found


@pytest.mark.parametrize("mode", READ_BY_TENSORFLOW)
def test_versions_are_tensorflows(model, tmp_path, mode):
    path = tmp_path / "model.tflite"
    images = seeded_images(model.input_shape[1:])
    report = export_tflite(model, path, quantize=mode, calibration=images, max_difference=float("inf"))
    file = flatbuffer_utils.read_model(path)
    # TensorFlow reads the file and writes it again, which sets the versions by its rules; nothing of it is sparse.
    written = wrap_converter.wrapped_experimental_mlir_sparsify(path.read_bytes())
    expected = versions(flatbuffer_utils.read_model_from_bytearray(bytearray(written)))
    if expected.get("DEQUANTIZE") == 5:
        # GPU engines know 3 at most. Runtimes that would read such weights wrongly have no GELU, and refuse the file.
        assert versions(file)["GELU"] >= 1
        expected["DEQUANTIZE"] = 2
    assert versions(file) == expected

    metadata = {entry.name.decode(): bytes(file.buffers[entry.buffer].data) for entry in file.metadata}
    assert metadata["min_runtime_version"].decode() == RUNTIMES[mode]
    assert report.requires == f"TensorFlow Lite {RUNTIMES[mode]} or newer"


def test_no_int8_weights_in_fully_connected(model, tmp_path):
    """Older runtimes read one scale for all channels of such weights, and no version that they know keeps them off."""
    for mode in MODES:
        path = tmp_path / f"{mode}.tflite"
        images = seeded_images(model.input_shape[1:])
        export_tflite(model, path, quantize=mode, calibration=images, max_difference=float("inf"))
        file = flatbuffer_utils.read_model(path)
        kinds = versions(file)
        assert "FULLY_CONNECTED" not in kinds or mode in ("none", "float16", "auto"), mode
