"""Finds which of a model's classes each folder of images is of. Room: image_folders."""

from collections.abc import Sequence
from pathlib import Path

from keras_efficientformer.errors import listing
from keras_efficientformer.imagenet import imagenet_labels
from keras_efficientformer.labels import composed

IN_THEIR_ORDER = "in the order of their names, because the model's labels are not known"


def class_places(
    folder: Path, names: Sequence[str], classes: int, labels: Sequence[str] | None
) -> tuple[list[int], tuple[str, ...], str]:
    """The places of folders among a model's classes: by the model's labels, WordNet ids or indices.

    Args:
        folder: that holds them, for messages.
        names: of the subfolders.
        classes: how many the model has.
        labels: their names in the order of its outputs; None where they are not known, which for 1000 classes means
            ImageNet's.

    Returns:
        The place of each subfolder's class; the names of all classes in the order of the outputs; and one line that
        says how the folders were taken.

    Raises:
        ValueError: a name is none of these, or stands for two classes; or labels are not known, the names are no
            indices, and there is not one for each class.
    """
    imagenet = imagenet_labels()
    ids = {wordnet_id: place for place, (wordnet_id, _) in enumerate(imagenet)}
    is_imagenet = classes == len(imagenet)
    known = [name for _, name in imagenet] if labels is None and is_imagenet else labels
    all_names = tuple(known or (str(index) for index in range(classes)))
    names, known = list(map(composed, names)), known and list(map(composed, known))

    if known is not None and set(names) <= set(known):
        twice = [name for name in names if known.count(name) > 1]
        if twice:
            raise ValueError(
                f"{folder} has folders whose names stand for two of the model's classes each: {listing(twice)}. Call "
                "all folders by the classes' indices instead, or by ImageNet's WordNet ids."
            )
        return [known.index(name) for name in names], all_names, "by the model's labels"
    if is_imagenet and set(names) <= ids.keys():
        return [ids[name] for name in names], all_names, "by ImageNet's WordNet ids"
    if all(name.isdecimal() for name in names):
        return _by_index(folder, names, classes), all_names, "by the indices of the classes"
    if known is not None:
        unknown = sorted(set(names) - set(known))
        raise ValueError(f"{folder} has classes that the model does not know: {listing(unknown)}.")
    if len(names) == classes:
        return (
            list(range(classes)),
            tuple(names),
            "in the order of their names, because the model's labels are not known",
        )
    raise ValueError(f"{folder} has {len(names)} classes and the model {classes}: say which are which with labels.")


def _by_index(folder: Path, names: Sequence[str], classes: int) -> list[int]:
    places = [int(name) for name in names]
    beyond = [name for name, place in zip(names, places, strict=True) if place >= classes]
    if beyond:
        raise ValueError(
            f"{folder} has folders called by indices of classes, and the model has those from 0 to {classes - 1}. "
            f"Found: {listing(beyond)}"
        )
    if len(set(places)) < len(places):
        raise ValueError(f"{folder} has two folders of one index. Found: {listing(names)}")
    return places
