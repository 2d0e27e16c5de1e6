"""The package as it is installed: what the wheel holds, what importing it costs, and what happens without a backend."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from project import HANG, ROOT

import keras_efficientformer
from keras_efficientformer.apps.web_app import PAGE_FILES

# The start of a program for which the module of its first argument is not installed.
ABSENT = """
import json, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == sys.argv[1]:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
"""


@pytest.fixture(scope="module")
def unpacked(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def run(program, *arguments, folder=ROOT, **environment):
    """What a new process prints, as JSON."""
    command = [sys.executable, "-P", "-c", program, *map(str, arguments)]
    environment = {**os.environ, **{name: str(value) for name, value in environment.items()}}
    return json.loads(subprocess.check_output(command, env=environment, cwd=folder, text=True, timeout=HANG))


def test_wheel_holds_the_package_alone(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    version = keras_efficientformer.__version__
    assert wheel.name == f"keras_efficientformer-{version}-py3-none-any.whl"
    assert {name.split("/")[0] for name in names} == {
        "efficientformer_command.py",
        "keras_efficientformer",
        f"keras_efficientformer-{version}.dist-info",
    }
    package = ROOT / "keras_efficientformer"
    modules = {
        f"keras_efficientformer/{path.relative_to(package)}"
        for path in package.rglob("*.py*")
        if "__pycache__" not in path.parts
    }
    data = {
        f"keras_efficientformer/{name}"
        for name in (
            "py.typed",
            "data/imagenet_labels.txt",
            "data/recipe_imagenet.toml",
            *(f"pages/templates/{name}.html" for name in ("base", "export", "parts", "run")),
            "pages/templates/model_card.jinja",
            *(f"apps/web/{name}" for name in (*PAGE_FILES, "package.json", "package-lock.json")),
        )
    }
    samples = [path for kind in ("android", "ios") for path in (package / "apps" / kind).rglob("*") if path.is_file()]
    assert len(samples) > 30
    data |= {f"keras_efficientformer/{path.relative_to(package)}" for path in samples}
    assert modules | data == {name for name in names if name.startswith("keras_efficientformer/")}
    assert any(name.endswith("/LICENSE") for name in names)


def test_wheel_says_what_it_needs(metadata):
    assert metadata["Requires-Python"] == ">=3.11"
    extras = set(metadata.get_all("Provides-Extra"))
    jobs = {"litert", "tflite", "npu-intel", "coreml", "hub", "heic", "train", "docs", "test", "all"}
    assert extras == {"tensorflow", "jax", "torch"} | jobs
    needed = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert not any(name in line for line in needed for name in ("tensorflow", "torch", "jax", "coremltools"))


@pytest.mark.parametrize(
    ("extra", "packages"),
    [
        ("litert", {"ai-edge-litert", "litert-quantizer", "matplotlib", "jinja2"}),
        ("npu-intel", {"ai-edge-litert", "openvino"}),
        ("coreml", {"coremltools", "matplotlib", "jinja2"}),
        ("hub", {"keras-hub"}),
        ("train", {"tensorflow", "tensorflow-model-optimization", "tf_keras", "matplotlib", "jinja2", "scipy"}),
    ],
)
def test_extras_bring_what_errors_send_for(metadata, extra, packages):
    """These are the packages for which `errors.require` names the extra."""
    requirements = map(Requirement, metadata.get_all("Requires-Dist"))
    brought = {r.name for r in requirements if r.marker and r.marker.evaluate({"extra": extra})}
    assert packages <= brought


def test_wheel_works_in_any_folder(unpacked, tmp_path):
    program = """
import json, keras_efficientformer as kef, numpy as np
model = kef.EfficientFormer((1, 1, 1, 1), (8, 16, 24, 32), input_shape=(32, 32, 3))
label = kef.decode_predictions(np.eye(1000)[281:282], top=1)[0][0][1]
print(json.dumps([kef.__file__, model.name, label]))
"""
    file, name, label = run(program, folder=tmp_path, PYTHONPATH=unpacked)
    assert Path(file).parent == unpacked / "keras_efficientformer"
    assert (name, label) == ("efficientformer", "tabby")
    assert list(tmp_path.iterdir()) == []


def test_import_costs_little_more_than_keras():
    """At most 0.2 s of CPU time, which a busy machine does not stretch, in a process that has just imported Keras."""
    program = """
import json, sys, time
import keras
before, start = set(sys.modules), time.process_time()
import keras_efficientformer
seconds = time.process_time() - start
print(json.dumps([seconds, sorted({name.partition(".")[0] for name in set(sys.modules) - before})]))
"""
    seconds, modules = run(program)
    print(f"import keras_efficientformer after keras: {seconds:.3f} s, brings {modules}")
    assert seconds < 0.2
    unwanted = {"torch", "jax", "huggingface_hub", "coremltools", "ai_edge_litert", "tf_keras", "typer", "safetensors"}
    unwanted |= {"keras_hub"}
    assert not unwanted & set(modules)


@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])
def test_missing_backend_says_what_to_install(backend):
    program = """
try:
    import keras_efficientformer
except ImportError as error:
    print(json.dumps(str(error)))
"""
    message = run(ABSENT + program, backend, KERAS_BACKEND=backend)
    assert f"pip install 'keras-efficientformer[{backend}]'" in message
    assert "KERAS_BACKEND" in message
    assert "\n" not in message


def test_file_of_torch_without_torch(tmp_path):
    """Reading .pth is the one thing that needs PyTorch beside another backend."""
    program = """
from keras_efficientformer import conversion
try:
    conversion.read_checkpoint(sys.argv[2])
except ImportError as error:
    print(json.dumps(str(error)))
"""
    path = tmp_path / "checkpoint.pth"
    path.write_bytes(b"anything")
    message = run(ABSENT + program, "torch", path, KERAS_BACKEND="tensorflow")
    assert str(path) in message
    assert "pip install 'keras-efficientformer[torch]', or use a .safetensors file" in message


def test_hub_without_keras_hub():
    """The program is imported first, so that nothing waits for Keras."""
    program = """
import efficientformer_command
try:
    import keras_efficientformer.hub
except ImportError as error:
    print(json.dumps(str(error)))
"""
    message = run(ABSENT + program, "keras_hub")
    assert message == "keras_efficientformer.hub needs keras-hub: pip install 'keras-efficientformer[hub]'"
