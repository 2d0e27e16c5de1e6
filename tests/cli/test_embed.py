"""`efficientformer embed`: vectors of images in a file, and the most similar ones among them."""

import json

import keras
import numpy as np
import pytest
from PIL import Image
from project import CHECKPOINT
from typer.testing import CliRunner

import keras_efficientformer as kef
from keras_efficientformer.cli import app
from keras_efficientformer.deploy import export_tflite
from keras_efficientformer.imagenet import load_image, preprocess_input, resize_and_crop


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four images, the fourth almost the first; the embedded checkpoint with and without its top, as files."""
    folder = tmp_path_factory.mktemp("embed")
    (folder / "images").mkdir()
    numbers = np.random.default_rng(0)
    blocks = [numbers.integers(0, 256, (4, 4, 3)) for _ in range(3)]
    for name, block in zip("abcd", [*blocks, np.clip(blocks[0] + 3, 0, 255)], strict=True):
        image = Image.fromarray(block.astype("uint8")).resize((80, 80), Image.Resampling.BICUBIC)
        image.save(folder / "images" / f"{name}.png")
    model = kef.from_checkpoint(CHECKPOINT)
    export_tflite(model, folder / "classifier.tflite")
    export_tflite(keras.Model(model.input, model.get_layer("avg_pool").output), folder / "embedding.tflite")
    (folder / "bad.jpg").write_bytes(b"no image")
    return folder


def run(*arguments):
    return CliRunner().invoke(app, ["embed", *map(str, arguments)])


def pixels(folder):
    return np.stack([resize_and_crop(load_image(folder / "images" / f"{n}.png"), (64, 64)) for n in "abcd"])


@pytest.mark.parametrize("source", ["embedding.tflite", "checkpoint"])
def test_vectors_and_search(folder, tmp_path, source):
    source = CHECKPOINT if source == "checkpoint" else folder / source
    index = tmp_path / "index.npz"
    done = run(folder / "images", "--model", source, "--output", index, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {"file": "index.npz", "images": 4, "size": [64, 64], "values": 448}
    with np.load(index) as arrays:
        names, vectors = arrays["names"], arrays["vectors"]
    assert [name[-5:] for name in names] == ["a.png", "b.png", "c.png", "d.png"]
    assert vectors.dtype == "float32"
    model = kef.from_checkpoint(CHECKPOINT)
    embedding = keras.Model(model.input, model.get_layer("avg_pool").output)
    expected = embedding.predict(preprocess_input(pixels(folder).astype("float32")), verbose=0)
    np.testing.assert_allclose(vectors, expected, atol=1e-5 * np.abs(expected).max())

    done = run(folder / "images" / "a.png", "--model", source, "--search", index, "--top", 2, "--json")
    ((first, second),) = json.loads(done.stdout).values()
    assert first["image"][-5:] == "a.png"
    assert first["cosine"] == pytest.approx(1, abs=1e-5)
    assert second["image"][-5:] == "d.png"
    done = run(folder / "images" / "a.png", "--model", source, "--search", index)
    assert [line for line in done.stdout.splitlines() if "1.000" in line]


def test_length_one(folder, tmp_path):
    arguments = ("--model", folder / "embedding.tflite", "--output", tmp_path / "index.npz", "--normalize")
    assert run(folder / "images", *arguments).exit_code == 0
    with np.load(tmp_path / "index.npz") as arrays:
        np.testing.assert_allclose(np.linalg.norm(arrays["vectors"], axis=1), 1, atol=1e-6)
    done = run(folder / "images", *arguments)
    assert isinstance(done.exception, FileExistsError)
    assert run(folder / "images", *arguments, "--overwrite").exit_code == 0


def test_a_bad_image_does_not_end_the_others(folder, tmp_path):
    arguments = (folder / "images", folder / "bad.jpg", "--model", folder / "embedding.tflite", "--output")
    assert run(*arguments, tmp_path / "a.npz").exit_code == 1
    assert run(*arguments, tmp_path / "b.npz", "--skip-bad").exit_code == 0
    with np.load(tmp_path / "a.npz") as one, np.load(tmp_path / "b.npz") as other:
        assert len(one["names"]) == len(other["names"]) == 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "classifier.tflite", "--output", "x.npz"], "gives scores, and no embedding: export a model"),
        (["--model", "embedding.tflite", "--search", "images/a.png"], "holds no vectors that"),
        (["--model", "embedding.tflite", "--search", "small.npz"], "vectors of 3 values, and this model gives 448"),
        (["--model", "embedding.tflite", "--search", "other.npz"], "written with another model, or at another size"),
        (["--model", "embedding.tflite", "--search", "odd.npz"], r"1 names and vectors of the shape \(2, 3\)"),
        (["--model", "embedding.tflite", "--search", "array.npy"], "holds no vectors that"),
        (["--model", "embedding.tflite", "--search", "words.npz"], "1 names and vectors of the shape"),
        (["--model", "embedding.tflite", "--search", "missing.npz"], "missing.npz does not exist"),
        (["--model", "l1", "--output", "missing/x.npz"], "The folder missing does not exist"),
    ],
)
def test_refusals(folder, monkeypatch, arguments, words):
    monkeypatch.chdir(folder)
    np.savez("small.npz", names=np.array(["a"]), vectors=np.ones((1, 3), "float32"))
    np.savez("odd.npz", names=np.array(["a"]), vectors=np.ones((2, 3), "float32"))
    other = np.random.default_rng(0).standard_normal(448)
    np.savez("other.npz", names=np.array(["a"]), vectors=np.ones((1, 448), "float32"), probe=other)
    np.savez("words.npz", names=np.array(["a"]), vectors=np.array([["b"]]))
    np.save("array.npy", np.ones((1, 3)))
    with pytest.raises((ValueError, OSError), match=words):
        raise run("images", *arguments).exception
    assert not (folder / "x.npz").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--output"),
        (["--output", "a.npz", "--search", "b.npz"], "--search"),
        (["--output", "a.txt"], "end in .npz"),
    ],
)
def test_options(arguments, words):
    done = run("images", *arguments)
    assert done.exit_code == 2
    assert words in done.output
