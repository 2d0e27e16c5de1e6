"""What all tests share: quiet backends, timm as reference, loud weights, and the data folder where there is one."""

import gc
import os

# The frameworks' imports leave close to a million objects; `pytest_collection_finish` has them looked at once.
gc.disable()

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# Each of several processes has a core of its own: more threads would wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import timm_reference
from project import IMAGES, IMAGES_VARIABLE


def pytest_configure(config):
    """Lets the processes that tests start share the trials of roundings and, on JAX, what they compile, all of it: most
    takes less than a second."""
    os.environ.setdefault("EFFICIENTFORMER_TRIALS", str(config.cache.mkdir("trials")))
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(config.cache.mkdir("jax")))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    if os.environ["KERAS_BACKEND"] == "jax":  # all tests on JAX: most of what they compile is run once
        os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")


def pytest_collection_finish():
    """Has the garbage collector look less often, and never again at what the frameworks made when they were imported.

    Close to a million objects, which it would walk through whenever it looks everywhere: a fifth of some files' time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)
    gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item, nextitem):
    """Does the same between files for what the last one imported: coremltools has it all looked at in each export."""
    result = yield
    if nextitem is not None and nextitem.path != item.path:
        gc.collect()
        gc.freeze()
    return result


# The files that take longest, some of few tests: begun last, one of them would keep one process busy while the others
# have nothing left to do.
LONGEST = (
    "test_readme_blocks.py",
    "test_training_devices.py",
    "test_coreml.py",
    "test_conversion.py",
    "test_tflite.py",
    "test_qat.py",
    "test_training_finetune.py",
    "test_images_and_labels.py",
    "test_cli.py",
    "test_gpu.py",
    "test_training_resume.py",
    "test_v2_conversion.py",
    "test_training_multi_label.py",
    "test_demo.py",
    "test_hub.py",
    "test_arm_emulator.py",
    "test_models.py",
    "test_site.py",
    "test_bad_checkpoints.py",
    "test_tflite_modes.py",
    "test_heads.py",
    "test_backends.py",
    "test_cli_training.py",
    "test_fuzz.py",
    "test_training_masks.py",
    "test_layer_errors.py",
    "test_start.py",
    "test_network.py",
    "test_push.py",
    "test_v2_network.py",
    "test_pretrained_models.py",
    "test_web_app.py",
)


def pytest_collection_modifyitems(items):
    """Orders the files: the longest first. Within a file nothing is moved."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONGEST)))


@pytest.fixture(scope="session")
def data_folder():
    """The folder of extra images that an environment variable names."""
    if IMAGES is None:
        pytest.skip(f"needs photographs and CIFAR-10 images, which are not part of the project: {IMAGES_VARIABLE}")
    return IMAGES


@pytest.fixture(scope="session")
def loud_l1():
    """timm's EfficientFormer-L1 with loud weights."""
    return timm_reference.loud_model("l1")


@pytest.fixture(scope="session")
def loud_state_dict(loud_l1):
    return timm_reference.state_dict(loud_l1)


@pytest.fixture(scope="session")
def build():
    """Makes a small model whose outputs differ from image to image."""
    from networks import SMALL

    import keras_efficientformer as kef
    from keras_efficientformer import conversion

    tensors = timm_reference.state_dict(timm_reference.small_model())
    for name, tensor in tensors.items():  # so that it is the image that decides, not the biases
        if name.endswith(("bias", "running_mean")):
            tensor *= 0.1
        elif tensor.ndim == 4:
            tensor *= 2
        elif name in ("head.weight", "head_dist.weight"):
            tensor *= 20

    def build(**arguments):
        model = kef.EfficientFormer(**{**SMALL, **arguments})
        conversion.load_state_dict(model, tensors)
        return model

    return build
