"""The other backends, JAX and PyTorch, each in a process of its own: the same answers, gradients and files.

The process gets timm's loud weights and a model saved on TensorFlow, and writes what it finds; here it is compared.
"""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import safetensors.numpy
import timm_reference
import torch
from project import HANG, NO_COLLECTOR

import keras_efficientformer as kef

SMALL = {"depths": (1, 0, 0, 2), "widths": (8, 16, 24, 32), "num_meta3d": 1, "classes": 10, "input_shape": (64, 96, 3)}
# A policy each, because JAX compiles for ten seconds, and what is close to float32 under it.
POLICIES = {"jax": ("mixed_bfloat16", 2e-2), "torch": ("mixed_float16", 2e-3)}

PROGRAM = """
import json, sys
from pathlib import Path
import keras, numpy as np
import keras_efficientformer as kef
from keras_efficientformer import conversion

folder, small = Path(sys.argv[1]), json.loads(sys.argv[2])
arrays = dict(np.load(folder / "inputs.npz"))
images, factors = arrays["small_images"], arrays["factors"]
found, facts = {}, {"backend": keras.backend.backend()}

# L1 against timm, compiled as `predict` does it, and every bit of its weights.
model = kef.EfficientFormerL1(weights=folder / "l1.safetensors", head="both", classifier_activation=None)
found["head"], found["head_dist"] = model.predict(arrays["images"], verbose=0)
tensors, expected = conversion.to_state_dict(model), conversion.read_checkpoint(folder / "l1.safetensors")
facts["changed"] = [name for name, t in tensors.items() if t.dtype == "float32" and (t != expected[name]).any()]


def gradients(model):
    if facts["backend"] == "torch":
        (model(images, training=False) * keras.ops.convert_to_tensor(factors)).sum().backward()
        return [variable.value.grad.cpu().numpy() for variable in model.trainable_variables]
    import jax

    def loss(trainable):
        probabilities, _ = model.stateless_call(trainable, model.non_trainable_variables, images, training=False)
        return (probabilities * factors).sum()

    return jax.jit(jax.grad(loss))([variable.value for variable in model.trainable_variables])


# A file from TensorFlow.
model = keras.saving.load_model(folder / "tensorflow.keras", safe_mode=True)
found["opened"] = model.predict(images, verbose=0)

# Gradients take the places of the weights for a moment, and so get their names.
weights = model.get_weights()
for variable, gradient in zip(model.trainable_variables, gradients(model), strict=True):
    variable.assign(np.asarray(gradient))
np.savez(folder / "gradients.npz", **conversion.to_state_dict(model))
model.set_weights(weights)

# A training step, and a file for TensorFlow.
model.compile(keras.optimizers.SGD(0.1), "categorical_crossentropy")
before = [keras.ops.convert_to_numpy(weight) for weight in model.trainable_weights]
facts["loss"] = model.fit(images, np.eye(10, dtype="float32")[:2], verbose=0).history["loss"][0]
after = [keras.ops.convert_to_numpy(weight) for weight in model.trainable_weights]
facts["still"] = [w.path for w, a, b in zip(model.trainable_weights, before, after, strict=True) if (a == b).all()]
found["trained"] = model.predict(images, verbose=0)
model.save(folder / "other.keras")

keras.config.set_dtype_policy(sys.argv[3])
found["mixed"] = kef.EfficientFormer(**small, weights=folder / "small.safetensors").predict(images, verbose=0)
np.savez(folder / "found.npz", **found)
(folder / "facts.json").write_text(json.dumps(facts))
"""


@pytest.fixture(scope="module", params=POLICIES)
def run(request, tmp_path_factory, loud_l1, loud_state_dict):
    """(name of the backend, what its process found, its folder)."""
    folder = tmp_path_factory.mktemp(request.param)
    network = timm_reference.at_resolution(timm_reference.small_model(SMALL["depths"]), (2, 3))
    safetensors.numpy.save_file(loud_state_dict, folder / "l1.safetensors")
    safetensors.numpy.save_file(timm_reference.state_dict(network), folder / "small.safetensors")
    inputs = {
        "images": timm_reference.images(224, 224),
        "small_images": timm_reference.images(64, 96),
        "factors": np.random.default_rng(0).standard_normal((2, 10)).astype("float32"),
    }
    np.savez(folder / "inputs.npz", **inputs)
    keras.utils.set_random_seed(0)  # by chance, drop path leaves a branch out for both images
    model = kef.EfficientFormer(**SMALL, weights=folder / "small.safetensors", drop_path_rate=0.1)
    model.save(folder / "tensorflow.keras")

    environment = {**os.environ, "KERAS_BACKEND": request.param, "CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}
    environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # most of what is compiled runs once
    command = [sys.executable, "-c", NO_COLLECTOR + PROGRAM, folder, json.dumps(SMALL), POLICIES[request.param][0]]
    subprocess.run(command, env=environment, check=True, timeout=HANG)
    found = {**np.load(folder / "found.npz"), **json.loads((folder / "facts.json").read_text())}
    assert found["backend"] == request.param
    found["model"], found["network"], found["inputs"] = model, network, inputs
    found["expected"] = timm_reference.logits(loud_l1, inputs["images"])
    return request.param, found, folder


def close(found, expected, tolerance):
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


def test_logits(run):
    name, found, _ = run
    _, head, head_dist = found["expected"]
    differences = [np.abs(found["head"] - head).max(), np.abs(found["head_dist"] - head_dist).max()]
    print(f"L1 on {name} differs from timm by {max(differences):.1e}")
    assert max(differences) < 1e-5
    assert found["changed"] == []


def test_gradients(run):
    _, found, folder = run
    network, inputs = found["network"], found["inputs"]
    images = torch.from_numpy(inputs["small_images"].transpose(0, 3, 1, 2))
    network.zero_grad()
    (network(images).softmax(-1) * torch.from_numpy(inputs["factors"])).sum().backward()
    gradients = np.load(folder / "gradients.npz")
    for name, parameter in network.named_parameters():
        expected = parameter.grad.numpy()
        assert np.abs(expected).max() > 0, name
        close(gradients[name], expected, 1e-4 * np.abs(expected).max())


def test_file_from_tensorflow(run):
    _, found, _ = run
    close(found["opened"], found["model"].predict(found["inputs"]["small_images"], verbose=0), 1e-6)


def test_file_for_tensorflow(run):
    _, found, folder = run
    model = keras.saving.load_model(folder / "other.keras", safe_mode=True)
    close(model.predict(found["inputs"]["small_images"], verbose=0), found["trained"], 1e-6)


def test_training(run):
    """Only the biases before a BatchNorm, which takes them out again, may stay what they were."""
    _, found, _ = run
    assert np.isfinite(found["loss"])
    assert np.abs(found["trained"] - found["opened"]).max() > 1e-4
    assert [path for path in found["still"] if not path.endswith(("conv/bias", "fc1/bias", "fc2/bias"))] == []


def test_mixed_precision(run):
    name, found, _ = run
    assert found["mixed"].dtype == "float32"
    assert np.abs(found["mixed"] - found["opened"]).max() > 0
    close(found["mixed"], found["opened"], POLICIES[name][1])
