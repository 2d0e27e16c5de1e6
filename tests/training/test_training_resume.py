"""A training run that is killed with signal 9, three times, one of them inside a save, ends with the same bits."""

import json
import os
import signal
import subprocess
import sys

import forked
import keras
import numpy as np
import pytest
import training_images
from project import HANG, KERAS_ALONE, ROOT

from keras_efficientformer.training import FineTuneConfig, finetune

STEPS = 4  # 36 images, 29 of them to train on, in batches of 7
CONFIG = {
    "epochs": 3,
    "batch_size": 7,
    "save_every": 1,
    "drop_path": 0.3,
    "ema": 0.8,
    "rand_augment": 0.1,
    "mixup": 0.3,
    "cutmix": 0.5,
    "class_weight": "balanced",
    "patience": 3,
}

PROGRAM = f"""
import json, os, signal, sys
from pathlib import Path

sys.path.insert(0, {str(ROOT / "tests" / "support")!r})
import keras, numpy as np
import training_images
from keras_efficientformer.training import FineTuneConfig, finetune, run_state as training_state

folder, output, kill = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
savez, saves = np.savez, 0


class Killer(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if [self.epoch, batch] == kill.get("step"):
            os.kill(os.getpid(), signal.SIGKILL)


def torn(file, **arrays):
    global saves
    saves += 1
    if saves == kill.get("save"):
        file.write(b"PK" * 10_000)
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    savez(file, **arrays)


np.savez = torn
finetune(
    training_images.make_model(),
    folder,
    output,
    config=FineTuneConfig(**json.loads(sys.argv[4])),
    callbacks=[Killer()],
    resume=True,
    verbose=False,
)
"""


def run(folder, output, kill, code):
    python = forked.programs(dict(os.environ)) / "python"
    command = [python, "-c", PROGRAM, folder, output, json.dumps(kill), json.dumps(CONFIG)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=HANG)
    assert result.returncode == code, result.stderr[-3000:]


def contents(output):
    """Everything a run leaves that time has no part in."""
    with np.load(output / "checkpoint.npz") as file:
        found = {name: file[name] for name in file.files if name != "state"}
    weights = keras.saving.load_model(output / "best.keras", compile=False).get_weights()
    history = json.loads((output / "history.json").read_text())
    rows = [[value for name, value in row.items() if name != "seconds"] for row in history]
    return {**found, **{f"best{index}": weight for index, weight in enumerate(weights)}, "history": np.array(rows)}


def assert_same(output, expected):
    found = contents(output)
    assert found.keys() == expected.keys()
    differing = [name for name in expected if not np.array_equal(found[name], expected[name])]
    assert differing == []


def test_killed_three_times(tmp_path):
    """Frozen and unfrozen epochs, augmentation, drop path, moving average: nothing is lost and nothing drawn twice."""
    folder = training_images.make_folder(tmp_path / "images")
    report = finetune(
        training_images.make_model(),
        folder,
        tmp_path / "unbroken",
        config=FineTuneConfig(**CONFIG),
        verbose=False,
    )
    expected = contents(tmp_path / "unbroken")
    assert len(report.history) == CONFIG["epochs"]

    first, last = sorted(
        int(step) for step in np.random.default_rng().choice(range(1, 3 * STEPS - 2), 2, replace=False)
    )
    print(f"killed after the steps {first} and {last}, and in the save between them")
    output = tmp_path / "killed"
    run(folder, output, {"step": divmod(first, STEPS)}, -signal.SIGKILL)
    run(folder, output, {"save": 1}, -signal.SIGKILL)
    assert any(output.glob(".partial-*"))
    assert (output / "checkpoint.npz").exists()
    run(folder, output, {"step": divmod(last, STEPS)}, -signal.SIGKILL)
    run(folder, output, {}, 0)
    assert_same(output, expected)
    assert not any(output.glob(".partial-*"))


# The model comes from a file, for on JAX each shape that is drawn is compiled.
OTHER_BACKEND = """
import json, sys
from pathlib import Path

import keras
from keras_efficientformer.training import FineTuneConfig, finetune

folder, model, output = map(Path, sys.argv[1:4])
config = FineTuneConfig(**json.loads(sys.argv[4]))


class Stop(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if batch == 2:
            raise KeyboardInterrupt


def run(output, callbacks=(), **options):
    finetune(model, folder, output, config=config, verbose=False, callbacks=callbacks, **options)


run(output / "unbroken")
try:
    run(output / "stopped", [Stop()])
except KeyboardInterrupt:
    run(output / "stopped", resume=True)
"""


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_other_backends(backend, tmp_path):
    # Three batches to train on, none of another size: what is compiled for one would be compiled for each.
    folder = training_images.make_folder(tmp_path / "images", dict.fromkeys(training_images.COLOURS, 5))
    training_images.make_model().save(tmp_path / "model.keras")
    config = {**CONFIG, "epochs": 1, "freeze_epochs": 0, "batch_size": 4, "save_every": 2}
    environment = {
        **os.environ,
        "KERAS_BACKEND": backend,
        "CUDA_VISIBLE_DEVICES": "",
        "JAX_PLATFORMS": "cpu",
        # So little is computed that JAX would take longer to optimize it.
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    command = [
        sys.executable,
        "-c",
        KERAS_ALONE + OTHER_BACKEND,
        folder,
        tmp_path / "model.keras",
        tmp_path,
        json.dumps(config),
    ]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HANG)
    assert result.returncode == 0, result.stderr[-3000:]
    assert_same(tmp_path / "stopped", contents(tmp_path / "unbroken"))
