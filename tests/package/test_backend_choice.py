"""Which backend Keras gets where nobody has chosen one: the one that is installed. Room: top level."""

import json
import os
import subprocess
import sys

import pytest
from project import HANG, ROOT

# Argument 1 lists the backends that are installed; the choice is made as `import keras_efficientformer` makes it, and
# the exit line says what came of it.
PROGRAM = """
import importlib.util, os, sys
spec = importlib.util.spec_from_file_location("backend_choice", sys.argv[2])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
real = importlib.util.find_spec
importlib.util.find_spec = lambda name: object() if name in sys.argv[1].split(",") else None
module.choose_backend()
chosen = os.environ.get("KERAS_BACKEND")
# What Keras says of a backend that is not there.
wanted = chosen or module._configured() or module.DEFAULT
missing = module.missing_backend(ModuleNotFoundError(name=wanted)) if importlib.util.find_spec(wanted) is None else None
print(f"error: {missing}" if missing else chosen)
"""


def choice(installed, tmp_path, config=None, **environment):
    if config is not None:
        (tmp_path / "keras.json").write_text(config)
    environment = {**{k: v for k, v in os.environ.items() if k != "KERAS_BACKEND"}, **environment}
    command = [
        sys.executable,
        "-c",
        PROGRAM,
        ",".join(installed),
        str(ROOT / "keras_efficientformer/backend_choice.py"),
    ]
    environment["KERAS_HOME"] = str(tmp_path)
    return subprocess.check_output(command, env=environment, text=True, timeout=HANG).strip()


@pytest.mark.parametrize(
    ("installed", "config", "environment", "expected"),
    [
        (["jax"], None, {}, "jax"),
        (["torch"], None, {}, "torch"),
        (["tensorflow"], None, {}, "tensorflow"),
        (["tensorflow", "jax", "torch"], None, {}, "None"),
        (["jax", "torch"], None, {"KERAS_BACKEND": "torch"}, "torch"),
        (["tensorflow", "jax"], '{"backend": "jax"}', {}, "None"),
        (["jax"], '{"backend": "tensorflow"}', {}, "jax"),
        (["jax"], "no JSON", {}, "jax"),
        (["jax"], "[]", {}, "jax"),
        (["torch"], '{"backend": "numpy"}', {}, "None"),
    ],
)
def test_choice(tmp_path, installed, config, environment, expected):
    assert choice(installed, tmp_path, config, **environment) == expected


@pytest.mark.parametrize(
    ("installed", "config", "words"),
    [
        ([], None, "none is installed: pip install 'keras-efficientformer[tensorflow]'"),
        (["jax", "torch"], None, "is tensorflow, which is not installed; installed: jax, torch"),
        (["torch"], '{"backend": "jax"}', "is jax, which is not installed; installed: torch"),
        (["torch"], '{"backend": "jax"}', "KERAS_BACKEND=torch, or pip install 'keras-efficientformer[jax]'"),
    ],
)
def test_no_choice(tmp_path, installed, config, words):
    found = choice(installed, tmp_path, config)
    assert found.startswith("error: ")
    assert words in found
    assert "\n" not in found


def test_the_package_chooses(tmp_path):
    """Without TensorFlow and PyTorch, and with nothing set, importing the package takes JAX."""
    program = """
import json, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("tensorflow", "torch"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
import keras_efficientformer, keras
print(json.dumps(keras.backend.backend()))
"""
    environment = {k: v for k, v in os.environ.items() if k != "KERAS_BACKEND"} | {"KERAS_HOME": str(tmp_path)}
    found = subprocess.check_output([sys.executable, "-c", program], env=environment, text=True, timeout=HANG, cwd=ROOT)
    assert json.loads(found.splitlines()[-1]) == "jax"
