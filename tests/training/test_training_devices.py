"""Several devices and processes train as one does: the same losses, on simulated devices and on loopback.

Without augmentation and drop path the runs differ in nothing but the order of float32 sums.
"""

import json
import os
import signal
import socket
import subprocess
import sys

import forked
import numpy as np
import pytest
import training_images
from project import HANG, KERAS_ALONE

CONFIG = {"epochs": 2, "freeze_epochs": 0, "batch_size": 8, "min_crop": 1, "flip": False, "save_every": 1}

# Where PyTorch or JAX compute, TensorFlow is made as if not installed: Keras imports it wherever it can.
BEGIN = f"""
import json, os, signal, sys

if os.environ["KERAS_BACKEND"] != "tensorflow":
    sys.modules["tensorflow"] = None

{KERAS_ALONE}
import keras, numpy as np

folder, model, output, config = *sys.argv[1:4], json.loads(sys.argv[4])
"""

# On one device, on two, and on two again with another head; then a batch that cannot be divided.
SEVERAL_RUNS = f"""{BEGIN}
if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)

from keras_efficientformer.training import FineTuneConfig, TrainingError, finetune
from keras_efficientformer.training.devices import open_devices
from keras_efficientformer.training.student import compile_student, pixel_weights


def run(name, data, devices, **options):
    # Of another head the head alone is trained, of which less is compiled.
    phases = {{"epochs": 1, "freeze_epochs": 1}} if "labels" in options else {{}}
    settings = FineTuneConfig(**config | phases | {{"devices": devices}})
    finetune(model, data, f"{{output}}/{{name}}", config=settings, verbose=False, **options)


def loader(*batches):
    return [(np.zeros((images, 40, 40, 3)), np.zeros(images, int)) for images in batches]


run("one", folder, "one")
run("devices", folder, "all")
run("another head", loader(8), "all", labels=list("abcde"))


def pixel_losses(name):
    # Of the first image nearly all pixels have a class, of the second nearly none.
    devices = open_devices(name, 2)
    rng = np.random.default_rng(0)
    masks = np.where(rng.random((2, 8, 8)) < np.reshape((0.9, 0.1), (2, 1, 1)), rng.integers(0, 3, (2, 8, 8)), -1)
    batch = rng.normal(size=(2, 8, 8, 3)).astype("float32"), masks.astype("int32"), pixel_weights(masks, None)
    with devices.scope():
        layer = keras.layers.Conv2D(3, 1, kernel_initializer=keras.initializers.RandomNormal(seed=1))
        model = keras.Sequential([keras.Input((8, 8, 3)), layer])
        settings = FineTuneConfig(learning_rate=0.1)
        compile_student(model, settings, 0, None, distilled=False, masks=True, share=devices.share)
        return [devices.step(model, batch)["loss"] for _ in range(3)]


print(json.dumps([pixel_losses("one"), pixel_losses("all")]))
try:
    run("refused", loader(8, 3), "all", labels=list("abcde"))
except TrainingError as error:
    print(json.dumps(str(error)))
"""

# In each of several processes.
ONE_RUN = f"""{BEGIN}
from keras_efficientformer.training import FineTuneConfig, finetune

kill_at = int(sys.argv[5])


class Killer(keras.callbacks.Callback):
    steps = 0

    def on_train_batch_end(self, batch, logs=None):
        self.steps += 1
        if self.steps == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


finetune(model, folder, output, config=FineTuneConfig(**config), callbacks=[Killer()], resume=True, verbose=False)
"""


class Setting:
    """A folder of images, a model's file, and runs on them."""

    def __init__(self, folder, backend):
        self.folder, self.backend = folder, backend
        training_images.make_folder(folder / "images", dict.fromkeys(training_images.COLOURS, 8))
        training_images.make_model().save(folder / "model.keras")

    def start(self, program, output, config, *arguments, python=None, **environment):
        """A process, by default a copy of one that has imported Keras."""
        environment |= {"KERAS_BACKEND": self.backend, "CUDA_VISIBLE_DEVICES": ""}
        if self.backend == "jax":  # so little is computed that JAX would take longer to optimize it
            environment |= {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
        environment = {**os.environ, **environment}
        values = [self.folder / "images", self.folder / "model.keras", output, json.dumps(config), *arguments]
        python = python or forked.programs(environment) / "python"
        command = [python, "-c", program, *map(str, values)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def start_two(self, output, kill_at=0):
        """Two processes on loopback; the second one is killed after so many steps, if any."""
        addresses = [f"127.0.0.1:{free_port()}" for _ in range(2)]
        processes = []
        for index in range(2):
            cluster = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
            environment = {
                "TF_CONFIG": json.dumps(cluster),
                "KERAS_DISTRIBUTION_JOB_ADDRESSES": addresses[0],
                "KERAS_DISTRIBUTION_NUM_PROCESSES": "2",
                "KERAS_DISTRIBUTION_PROCESS_ID": str(index),
            }
            config = {**CONFIG, "devices": "all"}
            processes.append(self.start(ONE_RUN, self.folder / output, config, kill_at * index, **environment))
        return processes

    def losses(self, output):
        history = json.loads((self.folder / output / "history.json").read_text())
        assert len(history) == CONFIG["epochs"]
        return [[row["loss"], row["val_loss"]] for row in history]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def finish(*processes):
    """What each printed."""
    printed = []
    for process in processes:
        output, log = process.communicate(timeout=HANG)
        assert process.returncode == 0, log[-3000:]
        printed.append(output)
    return printed


@pytest.fixture(scope="module", params=["tensorflow", "jax"])
def setting(request, tmp_path_factory):
    """With its runs on one device and on two."""
    setting = Setting(tmp_path_factory.mktemp(request.param), request.param)
    two = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "python": sys.executable}
    (setting.printed,) = finish(setting.start(SEVERAL_RUNS, setting.folder, CONFIG, **two))
    return setting


def assert_same_losses(setting, output):
    difference = np.abs(np.subtract(setting.losses(output), setting.losses("one"))).max()
    print(f"{setting.backend}, {output}: losses differ by {difference:.1e}")
    assert difference < 1e-4


def test_two_devices(setting):
    assert_same_losses(setting, "devices")


def test_pixels_count_alike_on_all_devices(setting):
    one, several = json.loads(setting.printed.splitlines()[-2])
    np.testing.assert_allclose(several, one, rtol=1e-5)
    assert one[2] < one[0]


def test_another_run_with_another_head(setting):
    """In the same process."""
    assert json.loads((setting.folder / "another head" / "report.json").read_text())["labels"] == list("abcde")


def test_a_batch_that_cannot_be_divided(setting):
    expected = "step 2 of epoch 1 has 3 images, which cannot be divided evenly among 2 devices"
    assert expected in json.loads(setting.printed.splitlines()[-1])


def test_two_processes_one_killed(setting):
    """The one that is left cannot go on; both started again go on from the last checkpoint, and nothing is lost."""
    left, killed = setting.start_two("processes", kill_at=2)
    assert killed.wait(timeout=HANG) == -signal.SIGKILL
    left.kill()
    for process in (left, killed):
        process.communicate()
    with np.load(setting.folder / "processes" / "checkpoint.npz") as file:
        assert 1 <= json.loads(str(file["state"]))["progress"]["step"] <= 2
    finish(*setting.start_two("processes"))
    assert_same_losses(setting, "processes")
