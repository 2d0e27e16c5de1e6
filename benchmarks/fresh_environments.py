"""What works where nothing but the package is installed, with each extra, on each Python.

For each Python and each of ENVIRONMENTS a new environment gets the wheel of this folder with those extras and the
newest packages that pip finds, without constraints.txt; all of CHECKS run there, in a folder and a home of their own,
and the environment goes again. Where the extras bring what a check needs, it must work and be quiet on standard error;
where not, it must end with one line that names an extra which would. Ends with exit code 1 if something else happens.

`--torch` says which PyTorch is installed, and pip's own settings (PIP_FIND_LINKS, PIP_EXTRA_INDEX_URL) where from.
Linux only; up to 5 GB at a time, and 9 where pip finds no PyTorch but the one with CUDA.

Environments are minutes each: the output is written after each, and what it holds of others stays.

    python benchmarks/fresh_environments.py --output benchmarks/results/fresh_environments.json
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import skimage.data
from environments import make_environment
from PIL import Image
from pillow_heif import register_heif_opener
from rich.progress import track

from keras_efficientformer import EfficientFormer, from_checkpoint
from keras_efficientformer.conversion import read_checkpoint, write_checkpoint
from keras_efficientformer.deploy import export_coreml, export_tflite

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINT = ROOT / "weights" / "efficientformer_l1_cifar10.safetensors"
PYTHONS = ("3.11", "3.13")
# {extra: what it brings}, in the words of `Check.needs`.
EXTRAS = {
    "tensorflow": {"backend"},
    "jax": {"backend"},
    "torch": {"backend", "torch"},
    "litert": {"litert", "pages"},
    "tflite": {"backend", "litert", "pages"},
    "npu-intel": {"litert", "pages", "npu"},
    "coreml": {"coreml", "pages"},
    "hub": {"backend", "hub"},
    "heic": {"heic"},
    "train": {"backend", "train", "pages"},
    "docs": set(),
    "test": set(),
}
EXTRAS["all"] = set().union(*EXTRAS.values())
ENVIRONMENTS: tuple[str, ...] = (
    *("", "tensorflow", "jax", "torch", "litert", "jax,litert", "tflite", "coreml", "coreml,jax", "heic,litert"),
    *("jax,npu-intel", "hub", "train", "train,tflite", "docs", "test", "all"),
)
NAMED: tuple[str, ...] = (
    "keras",
    "numpy",
    "tensorflow",
    "jax",
    "torch",
    "ai-edge-litert",
    "litert-quantizer",
    "coremltools",
)
NAMED += ("tensorflow-model-optimization", "matplotlib", "pillow-heif")
HANG = 900  # seconds


class Check(NamedTuple):
    """Something that the READMEs say the package does."""

    arguments: tuple  # of the command, or a Python program
    needs: frozenset = frozenset()
    code: int = 0  # the exit code, where what it needs is there
    says: str = ""  # what standard output must hold


class Done(NamedTuple):
    """What became of a process."""

    code: int
    stdout: str
    stderr: str


def command(line, *needs, code=0, says=""):
    return Check(tuple(line.split()), frozenset(needs), code, says)


BACKEND = "import keras_efficientformer, keras; print(keras.backend.backend())"
QUANTIZE_AWARE = """
import keras_efficientformer, keras, numpy as np
from keras_efficientformer.deploy import export_tflite
from keras_efficientformer.training import quantize_aware, to_keras
trained = quantize_aware(keras.saving.load_model("tiny.keras"))
import tf_keras
trained.compile(tf_keras.optimizers.Adam(1e-5), "sparse_categorical_crossentropy")
trained.fit(np.zeros((8, 64, 64, 3), "float32"), np.arange(8) % 2, verbose=0)
print(to_keras(trained).name)
export_tflite(trained, "trained.tflite", quantize="int8")
"""
PRUNE = """
import keras_efficientformer, keras
from keras_efficientformer.training import prune_low_magnitude, strip_pruning
print(strip_pruning(prune_low_magnitude(keras.saving.load_model("tiny.keras"))).name)
"""
HUB = """
from keras_efficientformer.hub import EfficientFormerBackbone
print(EfficientFormerBackbone((1, 1, 1, 2), (8, 16, 16, 32), num_meta3d=1).count_params())
"""
CHECKS = {
    "--help": command("--help", says="Classify photographs"),
    "--version": command("--version", says="."),
    "a typo": command("predikt photo.png", code=2),
    "a wrong path": command("convert missing.pth new.keras", code=1),
    "import": Check((BACKEND,), frozenset({"backend"})),
    "predict, checkpoint": command(
        "predict photo.png --model cifar10.safetensors --labels labels.txt", "backend", says="cat"
    ),
    "predict, .tflite": command("predict photo.png --model cifar10.tflite", "litert", says="cat"),
    "predict, .mlpackage": command("predict photo.png --model cifar10.mlpackage", "coreml", says="cat"),
    "predict, HEIC": command("predict photo.heic --model cifar10.tflite", "heic", "litert", says="cat"),
    "inspect, .pth": command("inspect cifar10.pth", "backend", "torch", says="sha256"),
    "inspect, .tflite": command("inspect cifar10.tflite", "litert", says="airplane"),
    "inspect, .mlpackage": command("inspect cifar10.mlpackage", "coreml", says="Neural Engine"),
    "convert": command("convert tiny.keras new.safetensors --dialect timm", "backend"),
    "convert, .pth": command("convert cifar10.pth new.keras", "backend", "torch"),
    "export tflite int8": command(
        "export tflite tiny.keras int8.tflite --quantize int8 --calibration PHOTOS --max-difference 1 --page int8.html",
        *("backend", "litert"),
    ),
    "export tflite --npu": command(
        "export tflite tiny.keras npu.tflite --npu intel --max-difference 1", *("backend", "litert", "npu")
    ),
    "inspect --against": command("inspect cifar10.tflite --against cifar10.safetensors", "backend", "litert"),
    "inspect --against, .mlpackage": command(
        "inspect cifar10.mlpackage --against cifar10.safetensors", "backend", "coreml"
    ),
    "export coreml int8": command(
        "export coreml tiny.keras int8.mlpackage --compress int8 --page coreml.html --max-difference 1",
        *("backend", "coreml"),
    ),
    "evaluate": command("evaluate PHOTOS --model tiny.keras", "backend", says="images per second"),
    "evaluate, .tflite": command("evaluate PHOTOS --model tiny.tflite", "backend", "litert", says="images per second"),
    "evaluate, .mlpackage": command(
        "evaluate PHOTOS --model tiny.mlpackage", "backend", "coreml", says="images per second"
    ),
    "finetune": command(
        "finetune PHOTOS --model tiny.keras --output run --epochs 1 --batch-size 8", "backend", "pages", says="best"
    ),
    "benchmark tflite": command("benchmark tflite cifar10.tflite --runs 3 --output .", "litert"),
    "quantization-aware training": Check((QUANTIZE_AWARE,), frozenset({"backend", "train", "litert"})),
    "pruning": Check((PRUNE,), frozenset({"backend", "train"})),
    "KerasHub": Check((HUB,), frozenset({"backend", "hub"})),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--python", nargs="+", default=PYTHONS, help="versions")
    parser.add_argument("--extras", nargs="+", default=ENVIRONMENTS, help='environments, e.g. "" jax coreml,jax')
    parser.add_argument("--torch", default="torch", help="requirement of PyTorch, which is installed first")
    parser.add_argument("--folder", type=Path, default=ROOT / ".runtimes", help="where environments are made")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    rows = json.loads(arguments.output.read_text()) if arguments.output and arguments.output.exists() else {}
    faults = False
    with tempfile.TemporaryDirectory() as folder:
        files, wheel = write_files(Path(folder, "files")), build_wheel(Path(folder))
        turns = [(extras, version) for version in arguments.python for extras in arguments.extras]
        for extras, version in track(turns, "environments"):
            row = check_environment(arguments, extras, version, wheel, files, Path(folder))
            rows.setdefault(extras, {})[version] = {"date": datetime.now(UTC).date().isoformat(), **row}
            for name, fault in row.get("faults", {}).items():
                faults = True
                print(f"Python {version} [{extras}], {name}: {fault}", flush=True)
            if arguments.output:
                arguments.output.write_text(json.dumps(rows, indent=2) + "\n")
    print_table(rows)
    sys.exit(faults)


def write_files(folder):
    """A folder with what the checks name: photographs, and models of each kind."""
    folder.mkdir()
    labels = (ROOT / "weights" / "cifar10_labels.txt").read_text()
    (folder / "labels.txt").write_text(labels)
    cat = Image.fromarray(skimage.data.chelsea())
    register_heif_opener()
    for name in ("photo.png", "photo.heic"):
        cat.save(folder / name)
    numbers = np.random.default_rng(0)
    for label in ("cats", "dogs"):
        (folder / "PHOTOS" / label).mkdir(parents=True)
        for index in range(16):
            Image.fromarray(numbers.integers(0, 256, (64, 64, 3), "uint8")).save(
                folder / "PHOTOS" / label / f"{index}.png"
            )
    shutil.copy(CHECKPOINT, folder / "cifar10.safetensors")
    write_checkpoint(folder / "cifar10.pth", read_checkpoint(CHECKPOINT))
    model = from_checkpoint(CHECKPOINT)
    for export, suffix in ((export_tflite, "tflite"), (export_coreml, "mlpackage")):
        export(model, folder / f"cifar10.{suffix}", labels=labels.split())
    keras.utils.set_random_seed(0)
    shape = {"depths": (1, 1, 1, 2), "widths": (8, 16, 16, 32), "num_meta3d": 1, "input_shape": (64, 64, 3)}
    tiny = EfficientFormer(**shape, classes=2, include_preprocessing=True, labels=["cats", "dogs"])
    tiny.save(folder / "tiny.keras")
    export_tflite(tiny, folder / "tiny.tflite")
    export_coreml(tiny, folder / "tiny.mlpackage")
    return folder


def build_wheel(folder):
    """The wheel, built from a copy: nothing is left here, and nothing of an older build gets in."""
    unwanted = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info", "*.safetensors")
    source = shutil.copytree(ROOT, folder / "source", ignore=unwanted)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, source], check=True
    )
    (wheel,) = folder.glob("*.whl")
    return wheel


def check_environment(arguments, extras, version, wheel, files, folder):
    """What works in a new environment."""
    brought = set().union(*(EXTRAS[extra] for extra in extras.split(",") if extra))
    installs = [[arguments.torch]] if "torch" in brought else []
    installs.append([f"{wheel}[{extras}]" if extras else str(wheel)])
    place = arguments.folder / "fresh"
    python = make_environment(place, version, *installs)
    megabytes = sum(file.stat().st_size for file in place.rglob("*") if not file.is_symlink()) / 1e6
    work, home = folder / "work", folder / "home"
    shutil.copytree(files, work)
    home.mkdir()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(lambda check: run(check, brought, python, work, home), CHECKS.values())
        checks = dict(zip(CHECKS, found, strict=True))
    found = {
        "python": subprocess.check_output(
            [python, "-c", "import platform; print(platform.python_version())"], text=True
        ).strip(),
        "megabytes": round(megabytes),
        "versions": versions(python),
        "cpu_seconds": {name: seconds for name, (_, seconds) in checks.items()},
        "faults": {name: fault for name, (fault, _) in checks.items() if fault},
        "works": [name for name, check in CHECKS.items() if check.needs <= brought and not checks[name][0]],
    }
    for used in (place, work, home):
        shutil.rmtree(used)
    return found


def versions(python):
    listed = json.loads(subprocess.check_output([python, "-m", "pip", "list", "--format", "json"], text=True))
    found = {package["name"].lower().replace("_", "-"): package["version"] for package in listed}
    return {name: found[name] for name in NAMED if name in found}


def run(check, brought, python, work, home):
    """(what is wrong or None, CPU seconds) of a check in an environment."""
    command = [python, "-c"] if is_program(check) else [python.with_name("efficientformer")]
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "CUDA_VISIBLE_DEVICES") if name in os.environ}
    environment = kept | {"HOME": str(home), "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(
            ["timeout", str(HANG), *command, *check.arguments], cwd=work, env=environment, stdout=out, stderr=err
        )
        _, status, used = os.wait4(process.pid, 0)  # what it used, though others run beside it
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0), err.seek(0)
        done = Done(process.returncode, out.read(), err.read())
    return fault_of(check, check.needs - brought, done), round(used.ru_utime + used.ru_stime, 2)


def is_program(check):
    return len(check.arguments) == 1 and "import" in check.arguments[0]


def fault_of(check, missing, done):
    """What is wrong with what a check did where it lacks `missing`; None where nothing is."""
    said = done.stderr.strip().splitlines()
    shown = "\n".join([f"exit code {done.code}", *said[-20:]])
    if missing:
        # A program of Python ends in a traceback, and its last line is the message.
        named = said and any(f"[{extra}]" in said[-1] for extra, brings in EXTRAS.items() if brings & missing)
        alone = is_program(check) or len(said) == 1
        return None if done.code == 1 and named and alone else shown
    if done.code != check.code or "Traceback" in done.stderr or check.says not in done.stdout:
        return shown
    # A command that works is quiet; one that refuses says why; a program of Python hears its libraries.
    return shown if said and not check.code and not is_program(check) else None


def print_table(rows):
    """As Markdown, for README.md."""
    pythons = sorted({version for found in rows.values() for version in found})
    print("\n| extras |", " | ".join(f"Python {version}" for version in pythons), "|")
    print("|---" * (len(pythons) + 1) + "|")
    for extras in (extras for extras in ENVIRONMENTS if extras in rows):
        cells = (cell_text(rows[extras].get(version)) for version in pythons)
        print(f"| {f'`[{extras}]`' if extras else 'none'} |", " | ".join(cells), "|")


def cell_text(row):
    if row is None:
        return "not tested"
    faults = f", {len(row['faults'])} FAULTS" if row["faults"] else ""
    return f"{len(row['works'])} of {len(row['cpu_seconds'])}{faults}; {row['megabytes']:,} MB"


if __name__ == "__main__":
    main()
