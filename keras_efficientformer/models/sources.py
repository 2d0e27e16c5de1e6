"""Reads what the name of a model stands for: a published one, a repository on the hub, or a file. Room: models.

Keras is not needed for that, so that a wrong name is told before anything is imported or downloaded.
"""

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from keras_efficientformer.conversion.hub_config import crop_beside
from keras_efficientformer.conversion.pretrained import (
    PRETRAINED,
    download,
    download_repository,
    names,
    unknown_weights,
)
from keras_efficientformer.imagenet import CROP
from keras_efficientformer.variants import ALL_VARIANTS, class_name

HUB = "hf://"


@dataclass(frozen=True)
class PublishedModel:
    """A published variant with its pretrained weights: a key of `PRETRAINED`."""

    variant: str
    weights: str = "imagenet"


@dataclass(frozen=True)
class HubModel:
    """A repository on the Hugging Face hub, "owner/name", at a branch, tag or commit."""

    repo: str
    revision: str = "main"


def model_source(source: str | os.PathLike[str]) -> PublishedModel | HubModel | Path:
    """What a model's name or path stands for.

    Args:
        source: a published variant as "l1", "v2-s0", "EfficientFormerL1" or "l1:imagenet-300" (in capitals or not, with
            any separators); its repository, "timm/efficientformer_l1.snap_dist_in1k"; any repository of the hub,
            "hf://owner/name" or "hf://owner/name@revision"; or an existing file or .mlpackage folder.

    Raises:
        FileNotFoundError: it is none of these; the message has the nearest names.
        ValueError: the variant has no weights of that name, or the repository is not "owner/name".
    """
    text = os.fspath(source)
    if text.startswith(HUB):
        return _hub_model(text)
    name, _, weights = text.partition(":")
    variant = _published().get(_plain(name))
    if variant is not None:
        if weights and weights not in names(variant):
            raise unknown_weights(variant, weights)
        return PublishedModel(variant, weights or "imagenet")
    # Of what only begins with "~" pathlib would say that it has no home.
    path = Path(os.path.expanduser(text))
    if text and path.exists():
        return path
    published = _of_repository(text)
    if published is not None:
        return published
    nearest = _nearest(text)
    hint = f" Did you mean {' or '.join(nearest)}?" if nearest else ""
    raise FileNotFoundError(
        f"{text} is neither a file nor one of the names {', '.join(ALL_VARIANTS)}.{hint} A repository of the hub is "
        f"{HUB}owner/name."
    )


def local_file(source: str | os.PathLike[str]) -> Path:
    """The checkpoint or other file of what `model_source` takes, downloaded where it is not on this machine.

    Raises:
        OSError: it could not be downloaded; or as `model_source`.
    """
    found = model_source(source)
    if isinstance(found, PublishedModel):
        return download(found.variant, found.weights)
    return download_repository(found.repo, found.revision) if isinstance(found, HubModel) else found


def crop_of(source: str | os.PathLike[str]) -> float:
    """The share of the resized image's side that a model's evaluation keeps: its published weights' own, what the
    config.json of timm's or of a run, beside the file or in the repository, states, or 0.95.

    Raises:
        CheckpointError: that file is damaged.
        OSError: as `local_file`.
    """
    found = model_source(source)
    if isinstance(found, PublishedModel):
        return PRETRAINED[found.variant, found.weights].crop
    return crop_beside(local_file(source)) or CROP


def _hub_model(text: str) -> HubModel | PublishedModel:
    repo, _, revision = text.removeprefix(HUB).partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise ValueError(f"A repository of the hub is {HUB}owner/name or {HUB}owner/name@revision. Received: {text}")
    return (None if revision else _of_repository(repo)) or HubModel(repo, revision or "main")


def _of_repository(repo: str) -> PublishedModel | None:
    """The published weights that a repository holds."""
    found = [key for key, entry in PRETRAINED.items() if entry.repo.lower() == repo.lower()]
    return PublishedModel(*found[0]) if found else None


def _published() -> dict[str, str]:
    """{a variant's name without separators: the variant}, of "l1" and of "efficientformerl1"."""
    return {_plain(name): variant for variant in ALL_VARIANTS for name in (variant, class_name(variant))}


def _plain(name: str) -> str:
    return re.sub(r"[-_ ]", "", name.lower())


def _nearest(text: str) -> list[str]:
    """Names and files that a mistyped one may have been."""
    if "/" in text:
        known = {entry.repo.lower(): entry.repo for entry in PRETRAINED.values()}
    else:
        known = {name.lower(): name for variant in ALL_VARIANTS for name in (variant, class_name(variant))}
    found = [known[name] for name in difflib.get_close_matches(text.lower(), known, cutoff=0.5)]
    folder = Path(os.path.expanduser(text)).parent
    if folder.is_dir():
        siblings = {path.name: str(path) for path in folder.iterdir()}
        found += [siblings[name] for name in difflib.get_close_matches(Path(text).name, siblings, n=2, cutoff=0.75)]
    return found
