"""The command `efficientformer embed`: vectors of photographs, and the most similar ones. Room: cli/photographs."""

import json
import zipfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Column, Table

from keras_efficientformer import classifiers, models
from keras_efficientformer.cli.options import (
    Crop,
    Json,
    ModelOption,
    Overwrite,
    Size,
    SkipBad,
    check_inputs,
    output,
    prepare_for,
)
from keras_efficientformer.cli.photographs.batches import answers_of, read_batches, tell_bad
from keras_efficientformer.files import check_target, finished_file
from keras_efficientformer.images import seeded_images
from keras_efficientformer.photographs import find_photographs

# The cosine of two vectors of one image is at least this for one model, quantized or not.
SAME_MODEL = 0.9


def embed(
    images: Annotated[
        list[str], typer.Argument(help="Image files, folders, patterns such as '*.jpg', http(s) URLs, - for stdin.")
    ],
    model: ModelOption = "l1",
    save: Annotated[
        Path | None, typer.Option("--output", help="The .npz file to write: names, and float32 vectors of each image.")
    ] = None,
    search: Annotated[
        Path | None, typer.Option(help="A .npz file of the same model: print the most similar of its images.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="How many similar images to print.")] = 5,
    normalize: Annotated[bool, typer.Option("--normalize", help="Give every vector the length 1.")] = False,
    size: Size = None,
    crop: Crop = None,
    skip_bad: SkipBad = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write the embeddings of photographs, or find the most similar ones among written ones."""
    if (save is None) == (search is None):
        raise typer.BadParameter(
            "Say what the vectors are for: --output FILE.npz writes them, --search FILE.npz compares."
        )
    if save is not None and save.suffix != ".npz":
        raise typer.BadParameter(f"--output should end in .npz. Received: {save}")
    check_inputs(model, search)
    if save is not None:
        check_target(save, overwrite)
    names, vectors, written = _read_index(search) if search is not None else ((), np.empty((0, 0)), None)
    photographs = find_photographs(images)
    prepare_for(model)
    embedder = classifiers.open_embedder(model, size)
    crop = models.crop_of(model) if crop is None else crop
    probe = embedder.predict(seeded_images((*embedder.size, embedder.channels))[:1])[0]
    if search is not None:
        _check_same_model(probe, vectors, written, search)
    found: dict[str, np.ndarray] = {}
    bad: dict[str, str] = {}
    for batch in read_batches(photographs, embedder.size, crop, bad):
        rows = answers_of(embedder, batch, model)
        found |= zip([photograph.name for photograph in batch], unit(rows) if normalize else rows, strict=True)
    if search is not None:
        _print_similar(found, names, vectors, top, as_json)
    elif save is not None and found:
        _write(found, probe, save, overwrite)
        values, (height, width) = len(next(iter(found.values()))), embedder.size
        facts = {"file": save.name, "images": len(found), "size": [height, width], "values": values}
        print(json.dumps(facts)) if as_json else output.print(
            f"{save}: {len(found)} vectors of {values} values, of images of {height}x{width} pixels"
        )
    tell_bad(bad, skip_bad)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors (number, values) of length 1; a vector of zeros stays."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


def _write(found: dict[str, np.ndarray], probe: np.ndarray, path: Path, overwrite: bool) -> None:
    vectors = np.stack(list(found.values())).astype("float32")
    with finished_file(path, overwrite) as partial:
        np.savez(partial, names=np.array(list(found)), vectors=vectors, probe=probe.astype("float32"))


def _read_index(path: Path) -> tuple[tuple[str, ...], np.ndarray, np.ndarray | None]:
    """What `--output` has written: names, vectors (number, values), and the vector of a seeded image, by which models
    are told apart, or None in an older file."""
    try:
        with np.load(path) as arrays:
            names, vectors = tuple(map(str, arrays["names"])), arrays["vectors"]
            probe = arrays.get("probe")
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} holds no vectors that `efficientformer embed --output` has written.") from error
    if vectors.ndim != 2 or vectors.dtype.kind != "f" or len(vectors) != len(names) or not np.isfinite(vectors).all():
        raise ValueError(f"{path} holds {len(names)} names and vectors of the shape {vectors.shape}.")
    return names, vectors, probe


def _check_same_model(probe: np.ndarray, vectors: np.ndarray, written: np.ndarray | None, index: Path) -> None:
    """Checks that a model's vectors can be compared with written ones; `probe` is its vector of the seeded image."""
    if len(probe) != vectors.shape[1]:
        raise ValueError(
            f"{index} has vectors of {vectors.shape[1]} values, and this model gives {len(probe)}: search with the "
            "model that they were written with."
        )
    if written is not None and (unit(written[None]) @ unit(probe[None])[0])[0] < SAME_MODEL:
        raise ValueError(
            f"{index} was written with another model, or at another size: its vector of a test image is another. "
            "Search with the model that it was written with."
        )


def _print_similar(
    found: dict[str, np.ndarray], names: tuple[str, ...], vectors: np.ndarray, top: int, as_json: bool
) -> None:
    """Prints for each image the written ones with the largest cosine."""
    answers: dict[str, list[dict[str, Any]]] = {}
    for name, vector in found.items():
        cosines = unit(vectors) @ unit(vector[None])[0]
        order = np.argsort(-cosines, kind="stable")[:top]
        answers[name] = [{"image": names[index], "cosine": float(cosines[index])} for index in order]
    if as_json:
        print(json.dumps(answers, indent=2))
        return
    table = Table(Column("image", overflow="fold"), Column("most similar", overflow="fold"), "cosine")
    for name, rows in answers.items():
        for rank, row in enumerate(rows):
            table.add_row(name if rank == 0 else "", row["image"], f"{row['cosine']:.3f}", end_section=row is rows[-1])
    output.print(table)
