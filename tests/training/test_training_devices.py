"""Several devices and processes train as one does: the same losses, on simulated devices and on loopback.

Without augmentation and drop path the runs differ in nothing but the order of float32 sums.
"""

import json
import os
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
import training_images
from project import HANG

CONFIG = {"epochs": 2, "freeze_epochs": 0, "batch_size": 8, "min_crop": 1, "flip": False, "save_every": 1}

PROGRAM = """
import json, os, signal, sys

import keras

folder, model, output, config, devices, kill_at = *sys.argv[1:4], json.loads(sys.argv[4]), *map(int, sys.argv[5:7])
if keras.backend.backend() == "tensorflow" and devices > 1:
    import tensorflow as tf

    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * devices)

from keras_efficientformer.training import FineTuneConfig, finetune


class Killer(keras.callbacks.Callback):
    steps = 0

    def on_train_batch_end(self, batch, logs=None):
        self.steps += 1
        if self.steps == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


finetune(model, folder, output, config=FineTuneConfig(**config), callbacks=[Killer()], resume=True, verbose=False)
"""


SECOND_RUN = """
import sys

import keras, numpy as np

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)

from keras_efficientformer.training import FineTuneConfig, TrainingError, finetune

model, output = sys.argv[1:]
config = FineTuneConfig(epochs=1, freeze_epochs=1, batch_size=4, devices="all")


def run(classes, *batches):
    loader = [(np.zeros((images, 40, 40, 3)), np.zeros(images, int)) for images in batches]
    finetune(model, loader, f"{output}/{classes}", labels=list("abcde")[:classes], config=config, verbose=False)


run(3, 4)
run(5, 4)
try:
    run(2, 4, 3)
except TrainingError as error:
    assert "step 2 of epoch 1 has 3 images, which cannot be divided evenly among 2 devices" in str(error), error
else:
    raise AssertionError("three images on two devices")
"""


class Setting:
    """A folder of images, a model's file, and runs on them."""

    def __init__(self, folder, backend):
        self.folder, self.backend = folder, backend
        training_images.make_folder(folder / "images", dict.fromkeys(training_images.COLOURS, 8))
        training_images.make_model().save(folder / "model.keras")

    def start(self, output, processes_devices="one", devices=1, kill_at=0, **environment):
        config = json.dumps({**CONFIG, "devices": processes_devices})
        arguments = [self.folder / "images", self.folder / "model.keras", self.folder / output, config]
        return self.start_program(PROGRAM, devices, [*arguments, devices, kill_at], **environment)

    def start_program(self, program, devices, arguments, **environment):
        environment = {
            **os.environ,
            "KERAS_BACKEND": self.backend,
            "CUDA_VISIBLE_DEVICES": "",
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            **environment,
        }
        command = [sys.executable, "-c", program, *map(str, arguments)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

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
            processes.append(self.start(output, "all", kill_at=kill_at * index, **environment))
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
    for process in processes:
        printed, _ = process.communicate(timeout=HANG)
        assert process.returncode == 0, printed[-3000:]


@pytest.fixture(scope="module", params=["tensorflow", "jax"])
def setting(request, tmp_path_factory):
    setting = Setting(tmp_path_factory.mktemp(request.param), request.param)
    finish(setting.start("one"))
    return setting


def assert_same_losses(setting, output):
    difference = np.abs(np.subtract(setting.losses(output), setting.losses("one"))).max()
    print(f"{setting.backend}, {output}: losses differ by {difference:.1e}")
    assert difference < 1e-4


def test_two_devices(setting):
    finish(setting.start("devices", "all", devices=2))
    assert_same_losses(setting, "devices")


def test_second_run(setting):
    """In the same process, with another head; and a batch that cannot be divided is refused."""
    finish(setting.start_program(SECOND_RUN, 2, [setting.folder / "model.keras", setting.folder / "runs"]))


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
