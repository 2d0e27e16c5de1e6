"""What trials of roundings have found is kept for exports with another limit, and made again where it is damaged."""

import dataclasses
import os

import numpy as np
import pytest
from networks import small

from keras_efficientformer.deploy.network.fuse import fuse
from keras_efficientformer.deploy.network.rounding.trials import kept_effects

EFFECTS = {3: 0.1 + 0.2, 11: 1e-9}


@pytest.fixture(scope="module")
def network():
    return fuse(small())


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).integers(0, 256, (2, 64, 64, 3)).astype("float32")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("EFFICIENTFORMER_TRIALS", str(tmp_path / "trials"))
    return tmp_path / "trials"


def never():
    raise AssertionError("trials are made again")


def with_weight(network, number, change):
    """The network with one of a step's weights changed by so much."""
    step = network.steps[number]
    weights = step.arguments["weights"].copy()
    weights.flat[0] += np.float32(change)
    changed = dataclasses.replace(step, arguments=step.arguments | {"weights": weights})
    return dataclasses.replace(network, steps=(*network.steps[:number], changed, *network.steps[number + 1 :]))


def test_trials_are_made_once(network, images, folder):
    assert kept_effects(network, images, "palettes", lambda: EFFECTS) == EFFECTS
    assert kept_effects(network, images, "palettes", never) == EFFECTS
    assert kept_effects(fuse(small()), images.copy(), "palettes", never) == EFFECTS


def test_other_trials_are_others(network, images, folder):
    number = next(number for number, step in enumerate(network.steps) if "weights" in step.arguments)
    asked = [
        (network, images, "palettes"),
        (network, images, "linear"),
        (network, images[::-1], "palettes"),
        (network, images[:1], "palettes"),
        (with_weight(network, number, 1e-4), images, "palettes"),
        (dataclasses.replace(network, steps=network.steps[:-2]), images, "palettes"),
    ]
    for place, arguments in enumerate(asked):
        assert kept_effects(*arguments, lambda place=place: {place: 1.0}) == {place: 1.0}
    assert len(list(folder.iterdir())) == len(asked)


@pytest.mark.parametrize("content", ["", '{"3": 0.', "[1, 2]", '{"3": null}', '{"three": 0.1}'])
def test_a_damaged_file_is_made_again(network, images, folder, content):
    kept_effects(network, images, "palettes", lambda: EFFECTS)
    (file,) = folder.iterdir()
    file.write_text(content)
    with pytest.warns(UserWarning, match=rf"{file.name} cannot be read \(.*: trials are made again"):
        assert kept_effects(network, images, "palettes", lambda: EFFECTS) == EFFECTS
    assert kept_effects(network, images, "palettes", never) == EFFECTS


def test_a_folder_that_cannot_be_written_to(network, images, folder):
    folder.write_text("a file")
    with pytest.warns(UserWarning, match="Trials are not kept"):
        assert kept_effects(network, images, "palettes", lambda: EFFECTS) == EFFECTS


def test_without_a_home_folder(network, images, monkeypatch, tmp_path):
    monkeypatch.delenv("EFFICIENTFORMER_TRIALS", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as where no home is known
    monkeypatch.chdir(tmp_path)
    with pytest.warns(UserWarning, match="Trials are not kept: there is no home folder"):
        assert kept_effects(network, images, "palettes", lambda: EFFECTS) == EFFECTS
    assert list(tmp_path.iterdir()) == []
