"""What the exported .tflite files do in older runtimes: right, refused or wrong, in every mode, for both families.

Phones keep old runtimes, and apps are pinned to them. Each release is installed from PyPI into an environment of its
own under .runtimes/ in the project (some 8 GB, with the Python it was made for: 3.9 for those before 2.14), and runs
the embedded checkpoint and a V2-S0 with random weights on 20 of CIFAR-10's test images. A result is right when it is no
further from Keras than four times as far as today's LiteRT is: XNNPACK's dynamic activations were coarser for two
releases, and nonsense is far beyond that. A runtime that raises an error refuses the file. Ends with exit code 1 if one
is wrong.

    python benchmarks/old_runtimes.py --cifar10 cifar10-images.zip --output benchmarks/results/old_runtimes.json
"""

import argparse
import json
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import keras
import numpy as np
from environments import make_environment
from random_networks import random_network
from rich.progress import track
from tflite_modes import CHECKPOINT, read_cifar10

from keras_efficientformer import from_checkpoint
from keras_efficientformer.deploy import export_tflite
from keras_efficientformer.deploy.tflite.modes import MODES
from keras_efficientformer.deploy.tflite.runtime import LiteRTModel
from keras_efficientformer.imagenet import preprocess_input, resize_and_crop
from keras_efficientformer.reporting import versions_of

ENVIRONMENTS = Path(__file__).resolve().parents[1] / ".runtimes"
# {name: (Python, packages)}. NumPy 2 cannot be used with what was built for the first.
RUNTIMES = {
    **{
        f"tflite-runtime {version}": ("3.9", (f"tflite-runtime=={version}", "numpy<2"))
        for version in ("2.9.1", "2.10.0", "2.11.0", "2.12.0", "2.13.0")
    },
    "tflite-runtime 2.14.0": ("3.11", ("tflite-runtime==2.14.0", "numpy<2")),
    **{
        f"TensorFlow {version}": ("3.11", (f"tensorflow-cpu=={version}",))
        for version in ("2.15.1", "2.16.1", "2.17.1", "2.18.1", "2.19.1", "2.20.0")
    },
    **{
        f"LiteRT {version}": ("3.11", (f"ai-edge-litert=={version}", "numpy<2"))
        for version in ("1.0.1", "1.2.0", "1.3.0", "1.4.0", "2.0.2", "2.1.0")
    },
}
IMAGES = 20
NOISE = 4
# A float32 file's last digits depend on the kernels.
ROUNDING = 1e-5

# Runs a .tflite file on images with the one runtime that an environment has, and saves its first output. What the
# runtime raises is said on standard output, with an exit code of its own.
REFUSED = 3
RUN = f"""
import importlib, importlib.util, sys
import numpy as np
MODULES = ("tflite_runtime.interpreter", "ai_edge_litert.interpreter", "tensorflow")
found = next(name for name in MODULES if importlib.util.find_spec(name.partition(".")[0]))
module = importlib.import_module(found)
interpreter = getattr(module, "lite", module).Interpreter
results = []
try:
    opened = interpreter(sys.argv[1], num_threads=2)
    opened.allocate_tensors()
    (image,), output = opened.get_input_details(), opened.get_output_details()[0]
    for pixels in np.load(sys.argv[2]):
        opened.set_tensor(image["index"], pixels[None])
        opened.invoke()
        results.append(opened.get_tensor(output["index"])[0].copy())
except (RuntimeError, ValueError) as error:
    print(error)
    sys.exit({REFUSED})
np.save(sys.argv[3], results)
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cifar10", type=Path, required=True, help="zip with train/CLASS/*.jpg and test/CLASS/*.jpg")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    runtimes = {name: open_environment(*of) for name, of in track(RUNTIMES.items(), description="installing")}
    with tempfile.TemporaryDirectory() as folder:
        rows = {family: {} for family in ("v1", "v2")}
        for family, files in export_all(Path(folder), arguments.cifar10).items():
            for name, python in track(runtimes.items(), description=family):
                rows[family][name] = {mode: run(python, file) for mode, file in files.items()}
    report = {
        "date": datetime.now(UTC).date().isoformat(),
        "versions": versions_of("keras-efficientformer", "ai-edge-litert", "litert-quantizer"),
        "families": rows,
    }
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")
    print_tables(rows)
    sys.exit(
        any(cell["verdict"] == "wrong" for family in rows.values() for row in family.values() for cell in row.values())
    )


def open_environment(version, packages):
    """The Python of an environment with those packages, made where it does not exist yet."""
    folder = ENVIRONMENTS / packages[0].replace("==", "-")
    made = folder / ".made"
    if made.exists():
        return folder / "bin" / "python"
    python = make_environment(folder, version, packages)
    made.touch()
    return python


def export_all(folder, archive):
    """{family: {mode: a file, beside which lie its images and Keras' results}}."""
    files = {}
    for family, (model, pixels, calibration) in networks_and_images(archive).items():
        (folder / family).mkdir()
        np.save(folder / family / "images.npy", pixels)
        np.save(folder / family / "keras.npy", model.predict(preprocess_input(pixels), verbose=0))
        files[family] = {}
        for mode in MODES:
            file = folder / family / f"{mode}.tflite"
            export_tflite(model, file, quantize=mode, calibration=calibration)
            np.save(file.with_suffix(".npy"), next(iter(LiteRTModel(file).predict(pixels).values())))
            files[family][mode] = file
    return files


def networks_and_images(archive):
    """{family: (network, images to compare on, images to calibrate on)}."""
    images, _, calibration = read_cifar10(archive)
    images = images[:: len(images) // IMAGES][:IMAGES]
    large, large_calibration = (enlarged(part) for part in (images, calibration[:: len(calibration) // IMAGES]))
    return {
        "v1": (from_checkpoint(CHECKPOINT), images, calibration),
        "v2": (with_telling_classes(random_network("v2_s0"), large), large, large_calibration),
    }


def with_telling_classes(model, images):
    """A network with random weights, its classifier such that images differ: else all classes are as probable."""
    logits = keras.Model(model.inputs, model.get_layer("head_average").output).predict(preprocess_input(images))
    mean, factor = logits.mean(0), 3 / logits.std(0).mean()
    for head in (model.get_layer("head"), model.get_layer("head_dist")):
        head.kernel.assign(head.kernel * factor)
        head.bias.assign((head.bias - mean) * factor)
    return model


def enlarged(images):
    return np.stack([resize_and_crop(image.astype("uint8"), (224, 224), 1.0) for image in images]).astype("float32")


def run(python, file):
    """What a runtime does with a file: {"verdict": "right", "wrong" or "refused", ...}."""
    keras, today = np.load(file.with_name("keras.npy")), np.load(file.with_suffix(".npy"))
    result = file.with_name("result.npy")
    command = [str(python), "-c", RUN, str(file), str(file.with_name("images.npy")), str(result)]
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode < 0:
        return {"verdict": "wrong", "crashed": -process.returncode}
    if process.returncode == REFUSED:
        return {"verdict": "refused", "error": process.stdout.strip()}
    if process.returncode:
        sys.exit(f"{python} does not run {file.name}:\n{process.stderr}")
    found = np.load(result)
    from_keras, from_keras_today = (float(np.abs(results - keras).max()) for results in (found, today))
    return {
        "verdict": "right" if from_keras <= max(NOISE * from_keras_today, ROUNDING) else "wrong",
        "from_keras": from_keras,
        "from_keras_in_todays_litert": from_keras_today,
        "from_todays_litert": float(np.abs(found - today).max()),
        "same_top1_as_keras": float(np.mean(found.argmax(1) == keras.argmax(1))),
    }


def print_tables(rows):
    """As Markdown, for tflite/README.md."""
    for family, runtimes in rows.items():
        print(f"\n| {family} |", " | ".join(f"`{mode}`" for mode in MODES), "|")
        print("|---" * (len(MODES) + 1) + "|")
        for name, row in runtimes.items():
            print(f"| {name} |", " | ".join(map(cell_text, row.values())), "|")


def cell_text(cell):
    if cell["verdict"] == "refused":
        return "refused"
    if "crashed" in cell:
        return f"**crashes** ({cell['crashed']})"
    text = f"{cell['from_keras']:.2g}, {cell['same_top1_as_keras']:.0%}"
    return text if cell["verdict"] == "right" else f"**{text}**"


if __name__ == "__main__":
    main()
