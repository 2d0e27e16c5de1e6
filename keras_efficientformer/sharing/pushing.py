"""Gathers a model's repository, checks all that is in it, and uploads it. Room: sharing."""

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_efficientformer import conversion, segmentation
from keras_efficientformer.deploy.report_sidecar import sidecar_of
from keras_efficientformer.errors import listing, require
from keras_efficientformer.files import finished_file, write_json, write_text
from keras_efficientformer.imagenet import CROP
from keras_efficientformer.layers.names import HEADS
from keras_efficientformer.layers.predictions import labels_of
from keras_efficientformer.models.sources import crop_of
from keras_efficientformer.opening import open_model
from keras_efficientformer.segmentation.decoder import decoder_arguments, is_segmenter
from keras_efficientformer.sharing.export_checks import check_exports
from keras_efficientformer.sharing.export_reports import read_reports
from keras_efficientformer.sharing.finished_runs import PICTURES, read_finished_run
from keras_efficientformer.sharing.model_card import CardFacts, model_card
from keras_efficientformer.sharing.timm_config import timm_config, timm_reads
from keras_efficientformer.sharing.upload import Repository, Upload, check_repo_id, check_token, upload_repository

WEIGHTS_FILE, KERAS_FILE = "model.safetensors", "model.keras"
# What this package's published weights are under, and so what is made of them unless it is said otherwise.
PUBLISHED_LICENSE = "apache-2.0"


def push(
    source: keras.Model | str | os.PathLike[str],
    repo_id: str,
    *,
    exports: Sequence[str | os.PathLike[str]] = (),
    private: bool = False,
    license: str | None = None,
    token: str | None = None,
    commit_message: str = "Upload model with keras-efficientformer",
) -> Upload:
    """Publishes a classifier on the Hugging Face hub, or a segmentation model: `from_checkpoint("hf://owner/name")`
    reads it back, `segmentation.from_checkpoint` the latter.

    Args:
        source: as of `write_repository`.
        repo_id: as of `write_repository`. The repository is made where there is none; in one that is there the files of
            the same names, the card too, and exports of an earlier upload are replaced, in one commit.
        exports: as of `write_repository`.
        license: as of `write_repository`.
        private: whether only its owner may see a new repository.
        token: with the right to write; None takes the one of `hf auth login` or HF_TOKEN.
        commit_message: its first line.

    Raises:
        ValueError, OSError, ImportError: as `write_repository`.
        UploadError: there is no token, or the hub refuses or cannot be reached. Nothing is committed.
    """
    check_repo_id(repo_id)
    check_token(token)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "repository")
        repository = write_repository(source, repo_id, folder, exports=exports, license=license)
        return upload_repository(repository, private=private, token=token, message=commit_message)


def write_repository(
    source: keras.Model | str | os.PathLike[str],
    repo_id: str,
    folder: str | os.PathLike[str],
    *,
    exports: Sequence[str | os.PathLike[str]] = (),
    license: str | None = None,
) -> Repository:
    """Writes what `push` would upload into a folder.

    That is `model.safetensors`, of a classifier in timm's dialect with the `config.json` by which timm, and
    transformers through timm, read it, of a segmentation model with mmsegmentation's names; `model.keras`;
    `labels.txt`; exports with their reports; the run's curves; and a card, `README.md`. The weights are read back and
    compared bit for bit, exports are run and compared, before the folder has its name.

    Args:
        source: the folder of a finished run of `finetune`, a .keras file, a checkpoint, or a model of this package.
        repo_id: "owner/name", for the card.
        folder: is made.
        exports: .tflite files and .mlpackage folders of this model, with their reports beside them.
        license: as the hub calls it, e.g. "apache-2.0"; None means that for runs that began from published weights,
            which are under it, and states nothing of others.

    Returns:
        A `Repository`.

    Raises:
        ValueError: `repo_id` is no "owner/name", the model is no classifier or segmentation model of this package
            alone, the run has not ended, its weights are not finite, or an export is another model's or was not
            checked.
        OSError: a file cannot be read or written, or `folder` exists.
        ImportError: Jinja2, or what runs an export, is not installed.
    """
    check_repo_id(repo_id)
    require("jinja2", "A model's card", "train")
    reports = read_reports(exports)
    run = None if isinstance(source, keras.Model) or not Path(source).is_dir() else read_finished_run(source)
    model = source if isinstance(source, keras.Model) else open_model(run.model if run else source)
    _check_publishable(model)
    check_exports(model, reports)
    if license is None and run and run.published:
        license = PUBLISHED_LICENSE
    pictures = {name: run.folder / name for name in PICTURES if run and (run.folder / name).exists()}
    facts = CardFacts(repo_id, model, run, reports, tuple(pictures), license)
    with finished_file(folder) as partial:
        partial.mkdir()
        _write_model(model, run.model if run else source, partial)
        if not is_segmenter(model):
            write_json(partial / "config.json", timm_config(model, _crop(run.model if run else source)))
        for name, picture in pictures.items():
            shutil.copyfile(picture, partial / name)
        for file in reports:
            (shutil.copytree if file.is_dir() else shutil.copyfile)(file, partial / file.name)
            shutil.copyfile(sidecar_of(file), sidecar_of(partial / file.name))
        write_text(partial / "README.md", model_card(facts))
        files = sorted(path for path in partial.rglob("*") if path.is_file())
        sizes = {path.relative_to(partial).as_posix(): path.stat().st_size for path in files}
    return Repository(repo_id, os.fspath(folder), sizes, timm_reads(model), license)


def _check_publishable(model: keras.Model) -> None:
    if is_segmenter(model):
        decoder_arguments(model)
    elif not any(layer.name == HEADS[0] for layer in model.layers):
        raise ValueError(
            f"{model.name} has no classifier of this package and gives no masks, and only such models are published."
        )


def _crop(source: Any) -> float:
    """The share of the resized image's side that the model's evaluation keeps."""
    return CROP if isinstance(source, keras.Model) else crop_of(source)


def _write_model(model: keras.Model, source: Any, folder: Path) -> None:
    """Writes the weights, the Keras model and the names of its classes."""
    to_state_dict = segmentation.to_state_dict if is_segmenter(model) else conversion.to_state_dict
    tensors = to_state_dict(model)
    conversion.write_checkpoint(folder / WEIGHTS_FILE, tensors)
    again = to_state_dict(open_model(folder / WEIGHTS_FILE))
    different = [name for name in tensors if name not in again or not np.array_equal(tensors[name], again[name])]
    if different or len(again) != len(tensors):
        raise ValueError(f"{model.name} does not come back as it is from {WEIGHTS_FILE}: {listing(different)} differ.")
    if isinstance(source, str | os.PathLike) and Path(source).suffix == ".keras":
        shutil.copyfile(source, folder / KERAS_FILE)
    else:
        model.save(folder / KERAS_FILE)
    labels = labels_of(model)
    if labels:
        write_text(folder / "labels.txt", "".join(f"{label}\n" for label in labels))
