"""Reads photographs in batches, and tells of those that cannot be read. Room: cli/photographs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from keras_efficientformer.classifiers import Classifier
from keras_efficientformer.cli.options import say, track
from keras_efficientformer.cli.photographs.annotated_copies import copy_of
from keras_efficientformer.imagenet import resize_and_crop
from keras_efficientformer.images import of_channels, scaled
from keras_efficientformer.photographs import read_photograph

BATCH_SIZE = 32
# The scores of all pixels of so many photographs are gigabytes.
MASKS_BATCH_SIZE = 4


@dataclass(frozen=True)
class Photograph:
    """One that was read: its name, what the network sees of it (uint8), and a copy to draw on, where that is wanted."""

    name: str
    pixels: np.ndarray
    copy: Image.Image | None


def read_batches(
    names: Sequence[str], size: tuple[int, int], crop: float | None, bad: dict[str, str], with_copies: bool = False
) -> Iterator[list[Photograph]]:
    """The photographs in batches, whole ones where `crop` is None; what cannot be read is put into `bad` with the
    reason."""
    batch_size = BATCH_SIZE if crop else MASKS_BATCH_SIZE
    batch: list[Photograph] = []
    for name in track(names, "Reading"):
        try:
            image = read_photograph(name)
        except (ValueError, OSError) as error:
            bad[name] = str(error)
            continue
        copy = copy_of(image) if with_copies else None
        pixels = resize_and_crop(image, size, crop) if crop else scaled(image, size)
        batch.append(Photograph(name, pixels, copy))
        if len(batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


def answers_of(network: Classifier, batch: Sequence[Photograph], model: str) -> np.ndarray:
    """What a network answers for photographs, (number, values), or (number, h, w, classes) of masks.

    Raises:
        ValueError: some of it is not finite; `model` is what the message calls the network.
    """
    pixels = np.stack([photograph.pixels for photograph in batch]).astype("float32")
    answers = network.predict(of_channels(pixels, network.channels))
    if not np.isfinite(answers).all():
        what = "values" if network.output == "embedding" else "scores"
        raise ValueError(f"{model} answers with {what} that are not finite: its weights are damaged.")
    return answers


def tell_bad(bad: Mapping[str, str], skip_bad: bool) -> None:
    """Says which photographs could not be read, and ends the command with 1 unless they may be left out."""
    for reason in bad.values():
        say(f"{'left out' if skip_bad else 'error'}: {reason}")
    if bad and not skip_bad:
        raise SystemExit(1)
