"""What the command imports and says before it does anything, and that nothing else talks on standard error."""

import json
import signal
import subprocess
import sys

import pytest
import typer
from project import HANG, ROOT

from keras_efficientformer import __version__, cli, from_checkpoint
from keras_efficientformer.cli.on_demand import imported
from keras_efficientformer.deploy import export_coreml, export_tflite

CHECKPOINT = ROOT / "weights" / "efficientformer_l1_cifar10.safetensors"
NAMES = (ROOT / "weights" / "cifar10_labels.txt").read_text().split()
HEAVY = ("tensorflow", "jax", "torch", "keras", "coremltools", "matplotlib", "sklearn", "scipy", "huggingface_hub")
BACKENDS = {"tensorflow", "jax", "torch", "keras"}
# Runs the command of its arguments, and writes which of HEAVY were imported.
PROGRAM = """
import json, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
import efficientformer_command
try:
    efficientformer_command.main()
except SystemExit as end:
    code = end.code or 0
with open(sys.argv[1], "w") as file:
    json.dump({"code": code, "modules": sorted(set(sys.modules))}, file)
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    model = from_checkpoint(CHECKPOINT)
    export_tflite(model, folder / "m.tflite", labels=NAMES)
    export_coreml(model, folder / "m.mlpackage", labels=NAMES)
    return folder


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    import skimage.data
    from PIL import Image

    path = tmp_path_factory.mktemp("images") / "cat.jpg"
    Image.fromarray(skimage.data.chelsea()).save(path)
    return path


def start(tmp_path, *arguments, absent=()):
    """(exit code, which of `HEAVY` were imported, output, standard error) of the command in a process of its own.

    The packages `absent` are not installed there.
    """
    result = tmp_path / "modules.json"
    # The program takes its first argument, and the command the rest.
    program = (
        PROGRAM.replace("sys.argv[1]", "RESULT")
        .replace("in ABSENT", f"in {tuple(absent)}")
        .replace("import efficientformer_command", "RESULT = sys.argv.pop(1)\nimport efficientformer_command")
    )
    process = subprocess.run(
        [sys.executable, "-c", program, str(result), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=HANG,
        cwd=tmp_path,
    )
    found = json.loads(result.read_text())
    return found["code"], [name for name in HEAVY if name in found["modules"]], process.stdout, process.stderr


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["finetune", "--help"], 0),
        (["export", "coreml", "--help"], 0),
        (["translate"], 2),
        (["predict", "a.jpg", "--sharpness", "1"], 2),
        (["predict", "missing.jpg"], 1),
        (["predict", str(ROOT), "--model", "l9"], 1),
        (["convert", "missing.pth", "a.keras"], 1),
        (["convert", str(CHECKPOINT), str(CHECKPOINT)], 1),
        (["evaluate", "missing"], 1),
        (["inspect", "missing.tflite"], 1),
        (["finetune", "missing", "--output", "run"], 1),
        (["export", "tflite", "l1", "--labels", "missing.txt"], 1),
        (["export", "tflite", "l1", str(CHECKPOINT)], 1),
        (["export", "coreml", "l1:imagenet-301"], 1),
        (["benchmark", "coreml", "l9"], 1),
        (["push", "missing", "owner/name"], 1),
        (["push", str(CHECKPOINT), "name"], 1),
        (["app", "web", "--help"], 0),
        (["app", "web", "l1", "page"], 1),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else None,
)
def test_answers_before_anything_heavy_is_imported(tmp_path, arguments, code):
    found, modules, out, err = start(tmp_path, *arguments)
    assert (found, modules) == (code, [])
    assert bool(out) == (code == 0)
    assert bool(err) == (code != 0)
    assert "Traceback" not in err


@pytest.mark.parametrize("arguments", [["--help"], ["translate"], ["export", "--help"], ["export", "onnx"]])
def test_no_command_is_imported_where_none_is_called(tmp_path, arguments):
    start(tmp_path, *arguments)
    modules = json.loads((tmp_path / "modules.json").read_text())["modules"]
    assert "keras_efficientformer.cli.on_demand" in modules
    assert [name for name in modules if name.startswith("keras_efficientformer.deploy") or name == "numpy"] == []


def test_summaries_are_the_commands_own():
    known = typer.main.get_command(cli.app)
    before = {words: command.help for words, command in each_command(known)}
    after = {words: command.help.partition("\n\n")[0] for words, command in each_command(imported(known))}
    assert list(before) == list(cli.COMMANDS)
    assert after == before


def each_command(group, *words):
    """(words, command) of the commands of a group, and of the groups in it."""
    for name, command in group.commands.items():
        inner = hasattr(command, "commands")
        yield from each_command(command, *words, name) if inner else [(" ".join([*words, name]), command)]


@pytest.mark.parametrize(
    ("absent", "arguments", "extra"),
    [
        ("torch", ["convert", "m.pth", "a.keras"], "torch"),
        ("torch", ["convert", str(CHECKPOINT), "a.pt"], "torch"),
        ("torch", ["inspect", "m.pth.tar"], "torch"),
        ("ai_edge_litert", ["predict", "a.jpg", "--model", "m.tflite"], "litert"),
        ("ai_edge_litert", ["evaluate", ".", "--model", "m.tflite"], "litert"),
        ("ai_edge_litert", ["export", "tflite", str(CHECKPOINT)], "litert"),
        ("litert_quantizer", ["export", "tflite", str(CHECKPOINT), "--quantize", "int8"], "litert"),
        ("coremltools", ["predict", "a.jpg", "--model", "m.mlpackage"], "coreml"),
        ("coremltools", ["inspect", "m.mlpackage"], "coreml"),
        ("coremltools", ["inspect", "m.mlpackage", "--against", str(CHECKPOINT)], "coreml"),
        ("coremltools", ["export", "coreml", str(CHECKPOINT)], "coreml"),
        ("jinja2", ["export", "coreml", str(CHECKPOINT), "--page", "a.html"], "coreml"),
        ("matplotlib", ["finetune", ".", "--output", "run"], "train"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else None,
)
def test_what_is_not_installed_is_told_at_once(tmp_path, absent, arguments, extra):
    for name in ("a.jpg", "m.pth", "m.pth.tar", "m.tflite"):
        (tmp_path / name).touch()
    (tmp_path / "m.mlpackage").mkdir()
    code, modules, out, err = start(tmp_path, *arguments, absent=[absent])
    assert (code, modules, out) == (1, [], "")
    assert err.startswith("error: ")
    assert f"{absent.replace('_', '-')}: pip install 'keras-efficientformer[{extra}]'" in err
    assert err.count("\n") == 1


def test_exported_files_need_no_keras(tmp_path, exported, image):
    code, modules, out, err = start(tmp_path, "predict", image, "--model", exported / "m.tflite", "--json")
    assert (code, modules, err) == (0, [], "")
    from_tflite = json.loads(out)[str(image)]
    code, modules, out, err = start(tmp_path, "predict", image, "--model", exported / "m.mlpackage", "--json")
    assert (code, err, BACKENDS & set(modules)) == (0, "", set())
    from_package = json.loads(out)[str(image)]
    assert from_tflite[0]["label"] == from_package[0]["label"] == "cat"
    assert from_tflite[0]["score"] == pytest.approx(from_package[0]["score"], abs=5e-3)


@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_keras_brings_nothing_to_draw_or_wrap_with(tmp_path, monkeypatch, backend):
    monkeypatch.setenv("KERAS_BACKEND", backend)
    code, modules, _, err = start(tmp_path, "inspect", CHECKPOINT)
    assert (code, err) == (0, "")
    assert {"keras", backend} <= set(modules)
    assert not {"jax", "matplotlib", "sklearn"} & set(modules) - {backend}


def test_libraries_are_quiet_unless_asked(tmp_path, image):
    """TensorFlow, XLA and LiteRT talk from C++, the quantizer by tqdm: nothing of it is seen but with --verbose."""
    arguments = ("export", "tflite", CHECKPOINT, "a.tflite", "--quantize", "int8", "--calibration", image.parent)
    code, _, out, err = start(tmp_path, *arguments)
    assert code == 0
    # This package's own two, and no other line.
    labels, calibration = err.splitlines()
    assert labels.startswith("warning: No labels: apps will show numbers in place of the 10 classes' names.")
    assert calibration.startswith("warning: Only 1 calibration images, ")
    assert "int8" in out
    code, _, _, err = start(tmp_path, *arguments, "--overwrite", "--verbose")
    assert code == 0
    assert "XNNPACK" in err


def test_own_warnings_are_seen(tmp_path):
    program = """
import warnings
from keras_efficientformer.cli.quiet import keep_libraries_quiet
keep_libraries_quiet()
warnings.warn("theirs")
exec(compile("import warnings; warnings.warn('ours')", "ours.py", "exec"), {"__name__": "keras_efficientformer.x"})
"""
    process = subprocess.run(
        [sys.executable, "-W", "default", "-c", "import efficientformer_command" + program],
        capture_output=True,
        text=True,
        timeout=HANG,
        cwd=ROOT,
    )
    assert "ours" in process.stderr
    assert "theirs" not in process.stderr


def test_a_crash_is_told(tmp_path):
    program = """
import efficientformer_command, ctypes
from keras_efficientformer.cli.quiet import keep_libraries_quiet
keep_libraries_quiet()
ctypes.string_at(0)
"""
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=HANG, cwd=ROOT)
    assert process.returncode < 0
    assert "Segmentation fault" in process.stderr


def test_a_closed_standard_error(tmp_path):
    """As services start commands: there is no place for errors, and reports come nevertheless."""
    program = "import efficientformer_command; efficientformer_command.main()"
    process = subprocess.run(
        ["sh", "-c", '"$0" -c "$1" --version 2>&-', sys.executable, program], capture_output=True, text=True, cwd=ROOT
    )
    assert (process.returncode, process.stdout) == (0, f"{__version__}\n")


def test_an_interrupt_that_a_library_takes_for_an_error(monkeypatch):
    """PyTorch's import does."""

    def interrupted(*_):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise RuntimeError("Error calling __set_name__") from None

    monkeypatch.setattr(sys, "argv", ["efficientformer", "predict", "a.jpg"])
    monkeypatch.setattr("keras_efficientformer.cli.photographs.predict.check_inputs", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(SystemExit) as ended:
            cli.main()
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.value.code == cli.INTERRUPTED


def test_heic_without_what_reads_it_is_told(tmp_path, exported):
    """A folder of an iPhone's photographs is not one without images."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    arguments = ("predict", tmp_path / "photos", "--model", exported / "m.tflite")
    code, _, _, err = start(tmp_path, *arguments, absent=["pillow_heif"])
    assert code == 1
    assert "IMG_1.HEIC' is not an image" in err
    assert "keras-efficientformer[heic]" in err
