"""Where things are that tests use: the project, the embedded checkpoint, and extra images where there are some."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT = ROOT / "weights" / "efficientformer_l1_cifar10.safetensors"
# A folder with cifar10-images.zip and imagenet-samples.zip, which are not part of the project.
IMAGES_VARIABLE = "EFFICIENTFORMER_IMAGES"
IMAGES = Path(os.environ.get(IMAGES_VARIABLE, "")) if os.environ.get(IMAGES_VARIABLE) else None

# Seconds after which a process that a test waits for is taken to hang. It is no measure: busy machines are slow.
HANG = 900


def documents() -> list[Path]:
    """The project's Markdown files."""
    found: list[Path] = []
    for folder, folders, files in os.walk(ROOT):
        # Environments, caches and builds have thousands of folders.
        folders[:] = [name for name in folders if not name.startswith(".") and name not in ("build", "node_modules")]
        found += [Path(folder, name) for name in files if name.endswith(".md")]
    return sorted(found)


# How programs begin that tests start with `python -c`: the collector would walk again and again through the million
# objects that the frameworks' imports leave, which takes a fifth of such a program's time.
NO_COLLECTOR = "import gc; gc.disable()\n"
# Or so, where they need rooms of the package but none of the names that the package itself has: Keras as the command
# imports it, in half the time.
KERAS_ALONE = """
import efficientformer_command
from keras_efficientformer.cli.quiet import import_keras_alone
import_keras_alone()
"""
