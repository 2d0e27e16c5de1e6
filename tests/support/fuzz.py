"""Reads thousands of mutated files with every reader: each ends in a result or in one clear ValueError or OSError.

Nothing else may come out: no other exception, no crash of the process, nothing that takes a minute or 4 GB. Files are
mutated in child processes, a few hundred in each, so that a crash says which file it was. With the same seed the same
files are made. `test_fuzz` runs a few of each kind; all of them, 100,000 files, take some hours:

    python tests/support/fuzz.py --files 8000 --keep FOLDER
"""

import argparse
import collections
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

BATCH = 250
SECONDS, GIGABYTES = 60, 4.0
IMAGE = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3)).astype("float32")


def read_model(path):
    from keras_efficientformer.classifiers import open_classifier

    open_classifier(path).predict(IMAGE)


def read_checkpoint(path):
    from keras_efficientformer import conversion

    conversion.infer_variant(conversion.read_checkpoint(path))


def read_image(path):
    from keras_efficientformer.imagenet import load_image, resize_and_crop

    resize_and_crop(load_image(path))


def read_labels(path):
    from keras_efficientformer.labels import class_names

    class_names(path)


def read_settings(path):
    from keras_efficientformer.training import FineTuneConfig

    FineTuneConfig.from_file(path)


def read_report(path):
    from keras_efficientformer.deploy.report_sidecar import check_sidecar

    check_sidecar(path.with_suffix(""))


# {kind: the reader of such files, by the names that `make_seeds` gives them}.
KINDS = {
    "model.keras": read_model,
    "model.tflite": read_model,
    "model.mlpackage": read_model,
    "model.weights.h5": read_checkpoint,
    "model.safetensors": read_checkpoint,
    "model.safetensors.index.json": read_checkpoint,
    "model.pth": read_checkpoint,
    "image.jpg": read_image,
    "image.png": read_image,
    "labels.txt": read_labels,
    "settings.toml": read_settings,
    "report.tflite.json": read_report,
}


def make_seeds(folder):
    """Writes one intact file of each kind."""
    import keras
    from PIL import Image

    import keras_efficientformer as kef
    from keras_efficientformer import conversion
    from keras_efficientformer.deploy import export_coreml, export_tflite
    from keras_efficientformer.imagenet import preprocess_input

    keras.utils.set_random_seed(0)
    shape = {"depths": (1, 1, 1, 2), "widths": (8, 8, 16, 16), "input_shape": (64, 64, 3), "classes": 10}
    model = kef.EfficientFormer(**shape, labels=[f"class {index}" for index in range(10)])
    model.predict(preprocess_input(IMAGE), verbose=0)
    model.save(folder / "model.keras")
    model.save_weights(folder / "model.weights.h5")
    state_dict = conversion.to_state_dict(model)
    for suffix in (".safetensors", ".pth"):
        conversion.write_checkpoint(folder / f"model{suffix}", state_dict)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict.fromkeys(state_dict, "model.safetensors")})
    )
    settings = {"quantize": "int8", "calibration": IMAGE, "max_difference": float("inf")}
    export_tflite(model, folder / "model.tflite", **settings)
    export_coreml(model, folder / "model.mlpackage")
    picture = Image.fromarray(IMAGE[0].astype("uint8"))
    picture.save(folder / "image.jpg")
    picture.save(folder / "image.png")
    (folder / "labels.txt").write_text("".join(f"class {index}\n" for index in range(10)))
    (folder / "settings.toml").write_text('[finetune]\nepochs = 3\nmixup = 0.2\nprecision = "float32"\n')
    (folder / "model.mlpackage.json").unlink()
    (folder / "model.tflite.json").rename(folder / "report.tflite.json")
    (folder / "report.tflite").write_bytes((folder / "model.tflite").read_bytes())
    for kind, read in KINDS.items():
        read(folder / kind)


def mutated(content, numbers):
    """Bytes with some of them changed, cut out, doubled, or cut off at the end."""
    content = bytearray(content)
    for _ in range(numbers.integers(1, 8)):
        if not content:
            return bytes(content)
        place, length = int(numbers.integers(len(content))), int(numbers.choice([1, 1, 4, 64, 1024]))
        kind = numbers.integers(6)
        if kind == 0:
            content[place] ^= 1 << int(numbers.integers(8))
        elif kind == 1:
            content[place : place + length] = numbers.bytes(len(content[place : place + length]))
        elif kind == 2:
            content[place : place + length] = bytes([int(numbers.choice([0, 255]))]) * len(
                content[place : place + length]
            )
        elif kind == 3:
            del content[place : place + length]
        elif kind == 4:
            content[place:place] = content[place : place + length]
        else:
            del content[place:]
    return bytes(content)


def mutate(source, target, numbers):
    """Writes a mutated copy: of a folder one of its files is; of an archive, half of the time, one of its members."""
    if source.is_dir():
        files = sorted(file for file in source.rglob("*") if file.is_file())
        chosen = files[numbers.integers(len(files))]
        for file in files:
            copy = target / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(mutated(file.read_bytes(), numbers) if file == chosen else file.read_bytes())
    elif source.suffix == ".keras" and numbers.integers(2):
        with zipfile.ZipFile(source) as archive, zipfile.ZipFile(target, "w") as changed:
            names = archive.namelist()
            chosen = names[numbers.integers(len(names))]
            for name in names:
                content = archive.read(name)
                changed.writestr(name, mutated(content, numbers) if name == chosen else content)
    else:
        target.write_bytes(mutated(source.read_bytes(), numbers))


def run_batch(kinds, seeds, first, files):
    """Says what comes of files number `first` and on, a line of JSON for each, and before that which one is next."""
    warnings.simplefilter("ignore")
    for kind in kinds:
        with tempfile.TemporaryDirectory() as folder:
            for file in seeds.iterdir():  # what stands beside the file: the parts of a sharded one
                if not file.is_dir() and file.name != kind:
                    shutil.copy(file, folder)
            with contextlib.suppress(Exception):
                KINDS[kind](seeds / kind)  # what it imports takes none of the first file's time
            for number in range(first, first + files):
                print(json.dumps({"kind": kind, "number": number}), flush=True)
                outcome = run_one(kind, seeds / kind, Path(folder) / kind, number)
                print(json.dumps({"kind": kind, "number": number, "outcome": outcome}), flush=True)


def run_one(kind, seed, target, number):
    """What comes of a file: "read", "refused", or what is wrong."""
    mutate(seed, target, np.random.default_rng([number, list(KINDS).index(kind)]))
    started = time.monotonic()
    try:
        KINDS[kind](target)
        outcome = "read"
    except (ValueError, OSError) as error:
        outcome = "refused" if str(error).strip() else f"no message: {type(error).__name__}"
    except BaseException as error:
        outcome = f"{type(error).__name__}: {error}"[:300]
    seconds = time.monotonic() - started
    # Not getrusage's ru_maxrss, which starts at the size of the process that started this one.
    peak = int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024 / 1e9
    if seconds > SECONDS or peak > GIGABYTES:
        outcome = f"{seconds:.0f} s, {peak:.1f} GB"
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    return outcome


def fuzz(kinds, seeds, files, first=0, python=sys.executable):
    """({(kind, outcome): how often}, {(kind, number of a file): what is wrong}), in a process of their own."""
    command = [python, __file__, "--batch", ",".join(kinds), str(seeds), str(first), str(files)]
    process = subprocess.run(command, capture_output=True, text=True, errors="replace")
    rows = [json.loads(line) for line in process.stdout.splitlines() if line.startswith('{"kind"')]
    done = [row for row in rows if "outcome" in row]
    wrong = {(r["kind"], r["number"]): r["outcome"] for r in done if r["outcome"] not in ("read", "refused")}
    if len(done) < files * len(kinds):
        place = (rows[-1]["kind"], rows[-1]["number"]) if rows else (kinds[0], first)
        wrong[place] = f"the process ended with {process.returncode}: {process.stderr[-300:]}"
    return collections.Counter((row["kind"], row["outcome"]) for row in done), wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--files", type=int, default=8400, help="mutated files of each kind")
    parser.add_argument("--first", type=int, default=0, help="number of the first, which is its seed")
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--keep", type=Path, help="folder for the files that were not read rightly")
    parser.add_argument("--batch", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.batch:
        kinds, seeds, first, files = arguments.batch
        run_batch(kinds.split(","), Path(seeds), int(first), int(files))
        return
    with tempfile.TemporaryDirectory() as name:
        make_seeds(Path(name))
        failed = [fuzz_kind(kind, Path(name), arguments) for kind in arguments.kinds]
    sys.exit(any(failed))


def fuzz_kind(kind, seeds, arguments):
    """Whether anything was wrong with the files of a kind, which is printed."""
    counted, failed = collections.Counter(), False
    first, end = arguments.first, arguments.first + arguments.files
    while first < end:
        count = min(BATCH, end - first)
        outcomes, wrong = fuzz([kind], seeds, count, first)
        counted.update(outcomes)
        for (_, number), what in wrong.items():
            failed = True
            print(f"{kind} {number}: {what}", flush=True)
            if arguments.keep:
                target = arguments.keep / str(number) / kind
                target.parent.mkdir(parents=True, exist_ok=True)
                mutate(seeds / kind, target, np.random.default_rng([number, list(KINDS).index(kind)]))
        # After a crash the next process goes on behind the file that it came from.
        first = max([number for _, number in wrong] or [0]) + 1 if sum(outcomes.values()) < count else first + count
    print(kind, {outcome: number for (_, outcome), number in counted.items()}, flush=True)
    return failed


if __name__ == "__main__":
    main()
