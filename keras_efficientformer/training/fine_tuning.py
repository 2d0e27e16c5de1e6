"""Fine-tunes a pretrained model: checks the arguments, opens the data and starts or resumes a run. Room: training."""

import importlib.metadata
import os
import platform
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import keras

from keras_efficientformer.errors import listing, require
from keras_efficientformer.files import remove_unfinished, write_json, write_text
from keras_efficientformer.image_folders.class_places import class_places
from keras_efficientformer.image_folders.image_folder import (
    from_folder_on,
    hold_out,
    read_folder,
    read_validation,
    without_unreadable,
)
from keras_efficientformer.imagenet import imagenet_labels
from keras_efficientformer.images import count_other_files
from keras_efficientformer.labels import Labels, class_names
from keras_efficientformer.opening import open_model
from keras_efficientformer.pages.render import require_page_tools
from keras_efficientformer.segmentation.decoder import is_segmenter
from keras_efficientformer.segmentation.palette import Palette, read_palette
from keras_efficientformer.training.config import (
    BEST_FILE,
    CONFIG_FILE,
    REPORT_FILE,
    FineTuneConfig,
    given_as_objects,
    is_run,
    portable_arguments,
)
from keras_efficientformer.training.data.batches import Batches, TrainingImages, ValidationImages
from keras_efficientformer.training.data.loaders import LoaderBatches
from keras_efficientformer.training.data.mask_batches import TrainingMasks, ValidationMasks
from keras_efficientformer.training.data.masks import check_masks, hold_out_masked, read_masked
from keras_efficientformer.training.data.multi_label import read_multi_label, read_multi_label_validation
from keras_efficientformer.training.devices import Devices, open_devices
from keras_efficientformer.training.run import FineTuneReport, Run, RunData
from keras_efficientformer.training.run_state import CHECKPOINT_FILE, TrainingError
from keras_efficientformer.training.student import AnyNetwork, Network, SegmentationNetwork
from keras_efficientformer.training.teachers import open_teacher

__all__ = ["FineTuneReport", "TrainingError", "finetune"]

# What a run writes into its folder, and others may have there too.
WRITTEN = (
    BEST_FILE,
    CONFIG_FILE,
    REPORT_FILE,
    "average_precision.png",
    "confusion.png",
    "curves.png",
    "history.json",
    "labels.txt",
    "report.html",
)


def finetune(
    model: keras.Model | str | os.PathLike[str],
    data: Any,
    output: str | os.PathLike[str],
    *,
    validation: Any = None,
    masks: str | os.PathLike[str] | None = None,
    palette: str | os.PathLike[str] | None = None,
    labels: Labels | None = None,
    teacher: Any = None,
    config: FineTuneConfig | None = None,
    resume: bool = False,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    verbose: int = 1,
    track: Callable[[Iterable], Iterable] = iter,
) -> FineTuneReport:
    """Fine-tunes an EfficientFormer on images of your classes, or a segmentation model on it on images and masks.

    The run's folder gets `best.keras` (softmax, the classes' own head, averaged weights with `ema`), `labels.txt`,
    `config.json` (settings, versions), `history.json`, `report.json`, `report.html`, `curves.png`, `confusion.png`
    and `checkpoint.npz`, from which a run that was stopped, at whatever moment, goes on with `resume`. With
    `multi_label` the model ends in a sigmoid, each class' score by itself, and there is an `average_precision.png` in
    the place of `confusion.png`. With `masks` the model is a `SemanticFPN`, and pixels are what is counted.

    Args:
        model: a `keras.Model` of this package, which stays as it is, and whose frozen layers are trained too; the path
            of one or of a checkpoint; or "l1", "l3", "l7", "v2_s0", "v2_s1", "v2_s2", "v2_l". Where several processes
            train together, a path or a name.
        data: a folder with a subfolder of images for each class, or with `train` and perhaps `val` alone; or a
            `keras.utils.PyDataset`, `tf.data.Dataset`, PyTorch `DataLoader` or other sized iterable of
            (images, labels): raw RGB (batch, height, width, 3) in 0..255 and integers (batch,) or rows of
            probabilities (batch, classes). With `multi_label` a folder's subfolders are called by all labels of their
            images, `cat+dog`, or `none`; or it holds `train.csv` and perhaps `val.csv`; or it is a CSV file itself
            (`data.multi_label`); and a loader gives rows (batch, classes), 1 for each label, else 0. With `masks` it is
            a folder of images, at any depth, or with `train` and perhaps `val` alone.
        output: the run's folder, which is made, outside of the images' folders; all processes must see it.
        validation: a folder, CSV file or loader to choose the best model by; None means `val` beside `train`, or else a
            share of each class held out, or, with a loader, nothing: then the last epoch's model is the best.
        masks: a folder with a PNG file at the place of each image of `data`, `a/1.png` for `a/1.jpg`: class numbers, of
            which 255 (65535 of 16 bits) stands for pixels that count for nothing, or the colours of `palette`.
        palette: a text file with the name and the colour of each class in a line, `sky #87ceeb`
            (`segmentation.palette`).
        labels: the class names in the order of the outputs, as for `labels.class_names`: a loader needs them, and a
            folder takes that order in place of the alphabet's. With `keep_head` they are the model's own, and needed
            where it does not know them; folders are found among them by name, index or WordNet id. With masks None
            means the palette's, or as many numbers as the masks have.
        teacher: for distillation (paper, section 5; DeiT, arXiv 2012.12877, section 4): a `keras.Model` of normalised
            images; any callable, raw RGB images (batch, height, width, 3) in 0..255 -> scores (batch, classes); or an
            array of scores (images, classes), a row for each image of the folder in the order of `list_images`; or the
            name or path of a model, as for `open_classifier`. Of a model that says what its classes are called, scores
            are taken in the data's order. A second head learns the teacher's choices; the saved
            model averages the two.
        config: the settings; None means the defaults.
        resume: go on with the run that is in `output`, with the same arguments (`config.read_run` reads them).
        callbacks: Keras callbacks for the training model, e.g. your own logging. They should not change it.
        verbose: as in Keras' `fit`: 0 shows nothing, 1 progress bars, 2 a line for each epoch.
        track: wraps the check of all images, e.g. `rich.progress.track`.

    Returns:
        A `FineTuneReport`.

    Raises:
        ValueError: an argument, the folder or an image is unfit; or training came to a loss, weights or answers that
            are not finite (`TrainingError`): the last good checkpoint and best.keras stay.
        FileExistsError: `output` holds a run and `resume` is False, or others' files of the names that a run writes.
        OSError: a file cannot be read or written; the checkpoint before stays.
        ImportError: matplotlib or Jinja2, or what `model` needs, is not installed.
    """
    require_page_tools("train")
    config = config or FineTuneConfig()
    if config.rand_augment or config.mixup or config.cutmix:
        # Keras' layers work in tf.data, and import TensorFlow on every backend.
        require("tensorflow", "Training with rand_augment, mixup or cutmix", "tensorflow")
    if config.multi_label and teacher is not None:
        raise ValueError("A teacher chooses one class for each image, which may have several here: leave it out.")
    if masks is None and palette is not None:
        raise ValueError("A palette is of masks: pass `masks` too, the folder that holds them.")
    if masks is not None:
        _check_for_masks(config, data, validation, labels, teacher, palette)
    output = Path(output)
    devices = open_devices(config.devices, config.batch_size)  # it must come before anything is computed
    _check_run_folder(output, resume, devices.process)
    _check_outside(output, data, validation, masks)
    keras.utils.set_random_seed(config.seed)

    model_given = model if isinstance(model, keras.Model) else open_model(model)
    _warn_of_frozen_layers(model_given)
    source: AnyNetwork
    if masks is None and is_segmenter(model_given):
        raise ValueError(f"{model_given.name} gives masks: pass `masks` (--masks), or a model that gives none.")
    if masks is None:
        source = Network.of(model_given, config)
        run_data = _open_data(data, validation, _class_order(source, labels), source, config, devices, track)
    else:
        source = SegmentationNetwork.of(model_given, config)
        colours = None if palette is None else read_palette(palette)
        order = _class_order(source, colours.names if colours else labels)
        run_data = _open_masked(data, masks, colours, order, source, config, devices, track)
    run_teacher = open_teacher(teacher, run_data.labels, run_data.images_listed)
    run = Run(config, output, devices, run_data, source, run_teacher, callbacks, verbose)
    restored = run.restore() if resume else None
    if devices.process == 0:
        output.mkdir(parents=True, exist_ok=True)
        remove_unfinished(output)
        write_text(output / "labels.txt", "".join(f"{label}\n" for label in run_data.labels))
        names = labels if isinstance(labels, str | os.PathLike | None) else output / "labels.txt"
        arguments = {
            "model": model,
            "data": data,
            "validation": validation,
            "masks": masks,
            "palette": palette,
            "labels": names,
            "teacher": teacher,
        }
        content = {
            "config": config.to_dict(),
            "arguments": portable_arguments(output, **arguments),
            "objects": given_as_objects(**arguments),
            "versions": _versions(),
        }
        write_json(output / CONFIG_FILE, content)
    run.train(restored)
    return run.report()


def _check_for_masks(
    config: FineTuneConfig, data: Any, validation: Any, labels: Labels | None, teacher: Any, palette: Any
) -> None:
    """Checks that nothing is asked for that masks do not go with."""
    unfit = {
        "multi_label": (config.multi_label, "a pixel has one class"),
        "rand_augment": (config.rand_augment, "it shifts and turns images and not masks; color_jitter changes colours"),
        "mixup": (config.mixup, "it mixes labels of whole images"),
        "cutmix": (config.cutmix, "it mixes labels of whole images"),
        "a teacher": (teacher is not None, "it chooses one class for each image"),
        "`validation`": (validation is not None, "put train and val into the images' and the masks' folder"),
        "labels beside a palette": (labels is not None and palette is not None, "the palette names the classes"),
        "a loader": (not isinstance(data, str | Path), "a folder of images is needed"),
    }
    found = [f"{name} ({why})" for name, (is_asked, why) in unfit.items() if is_asked]
    if found:
        raise ValueError(f"Masks do not go with {', '.join(found)}. Leave it out.")


def _class_order(source: AnyNetwork, labels: Labels | None) -> tuple[str, ...] | None:
    """The classes' names in the order of the outputs, where that is given or kept with the head."""
    given = None if labels is None else class_names(labels)
    if source.classes is None:
        return given
    kept = source.labels
    if kept is None and source.classes == len(imagenet_labels()):
        kept = tuple(name for _, name in imagenet_labels())
    if given is not None and len(given) != source.classes:
        raise ValueError(f"`keep_head` needs data with the model's {source.classes} classes; these have {len(given)}.")
    if given is not None and source.labels is not None and given != source.labels:
        different = next(pair for pair in zip(source.labels, given, strict=True) if pair[0] != pair[1])
        raise ValueError(
            f"`keep_head` keeps the model's classes, and `labels` are others: {different[1]!r} in the place of "
            f"{different[0]!r}. Leave labels out, or keep_head."
        )
    if given is None and kept is None:
        raise ValueError(
            "`keep_head` keeps the model's classes, and the model does not know their names: pass `labels`, in the "
            "order of its outputs."
        )
    return given or kept


def _open_data(
    data: Any,
    validation: Any,
    order: tuple[str, ...] | None,
    source: Network,
    config: FineTuneConfig,
    devices: Devices,
    track: Callable[[Iterable], Iterable],
) -> RunData:
    """The data of `finetune`'s arguments, checked, for images of the network's size."""
    if not isinstance(data, str | Path):
        return _open_loaders(data, validation, order, config, source.size, track)
    if not isinstance(validation, str | Path | None):
        raise ValueError(f"`validation` should be a folder where the data are one. Received: {validation!r}")
    read = read_multi_label if config.multi_label else read_folder
    names, listed, held_out = read(data, validation)
    training, skipped = without_unreadable(listed, names, config.skip_bad, track)
    skipped_too: dict[str, str] = {}
    if held_out is None:
        training, held_out = hold_out(names, training, config.validation_split, config.seed)
    else:
        held_out, skipped_too = without_unreadable(held_out, _needed(names, config), config.skip_bad, track)
    if order is not None:
        if len(order) != len(names):
            raise ValueError(
                f"`keep_head` needs data with the model's {len(order)} classes; these have {len(names)}. "
                "Leave keep_head out for a new classifier."
                if source.classes is not None
                else f"{data} has {len(names)} classes, and there are {len(order)} labels: one for each is needed."
            )
        places, _, _ = class_places(Path(data), names, len(order), order)
        training, held_out = training.moved(places, len(names)), held_out.moved(places, len(names))
    labels, size = tuple(order or names), source.size
    return RunData(
        labels,
        TrainingImages(training, len(names), size, config, devices.process, devices.processes),
        ValidationImages(held_out, len(names), size, config.crop_fraction, config.batch_size),
        training.counts(len(names)),
        {"training": training.digest, "validation": held_out.digest},
        len(listed),
        from_folder_on(data, skipped) | from_folder_on(validation or data, skipped_too),
        count_other_files(data),
    )


def _open_masked(
    data: str | Path,
    masks: str | os.PathLike[str],
    palette: Palette | None,
    order: tuple[str, ...] | None,
    source: SegmentationNetwork,
    config: FineTuneConfig,
    devices: Devices,
    track: Callable[[Iterable], Iterable],
) -> RunData:
    """The images and masks of `finetune`'s arguments, checked, for images of the network's size."""
    listed, held_out = read_masked(data, masks)
    training, skipped = without_unreadable(listed, (), config.skip_bad, track)
    if held_out is None:
        training, held_out = hold_out_masked(training, config.validation_split, config.seed)
    else:
        held_out, skipped_too = without_unreadable(held_out, (), config.skip_bad, track)
        skipped |= skipped_too
    counts = check_masks(training, palette, len(order) if order else None, track)
    check_masks(held_out, palette, len(counts), track)
    names, size = order or tuple(map(str, range(len(counts)))), source.size
    return RunData(
        names,
        TrainingMasks(training, palette, len(names), size, config, devices.process, devices.processes),
        ValidationMasks(held_out, palette, len(names), size, config.batch_size),
        counts,
        {"training": training.digest, "validation": held_out.digest},
        len(listed),
        from_folder_on(data, skipped),
        count_other_files(data),
        masks=True,
    )


def _open_loaders(
    data: Any,
    validation: Any,
    order: tuple[str, ...] | None,
    config: FineTuneConfig,
    size: tuple[int, int],
    track: Callable[[Iterable], Iterable],
) -> RunData:
    """The data of a training loader, and of a folder or loader to validate on."""
    names = order or ()
    if not names:
        raise ValueError("A loader does not say what its classes are called: pass `labels`, their names in order.")
    if len(names) == 1 and not config.multi_label:
        raise ValueError(f"There is one class, {names[0]!r}, and nothing to tell apart: pass `labels`, two at least.")
    if validation is None and config.patience is not None:
        raise ValueError("`patience` needs images to validate on: pass `validation`, or leave patience out.")
    held_out: Batches | None = None
    skipped: dict[str, str] = {}
    if isinstance(validation, str | Path):
        read = read_multi_label_validation if config.multi_label else read_validation
        found = read(validation, names)
        images, unreadable = without_unreadable(found, _needed(names, config), config.skip_bad, track)
        skipped = from_folder_on(validation, unreadable)
        held_out = ValidationImages(images, len(names), size, config.crop_fraction, config.batch_size)
    elif validation is not None:
        held_out = LoaderBatches(validation, len(names), size, config.multi_label)
    return RunData(names, LoaderBatches(data, len(names), size, config.multi_label), held_out, skipped=skipped)


def _needed(names: Sequence[str], config: FineTuneConfig) -> Sequence[str]:
    """The classes that must have an image to validate on; where images have several labels, one that has any does."""
    return () if config.multi_label else names


def _check_run_folder(output: Path, resume: bool, process: int) -> None:
    """Checks that a run can have the folder."""
    if not output.exists():
        return
    if not output.is_dir():
        raise NotADirectoryError(f"{output} is a file: the run needs a folder.")
    has_run = is_run(output) or (output / CHECKPOINT_FILE).exists()
    others = [name for name in WRITTEN if (output / name).exists()]
    # What process 0 is just writing is not others'.
    if others and not has_run and process == 0:
        raise FileExistsError(
            f"{output} holds {listing(others)}, which a run would replace, and no run. Choose another folder."
        )
    # A run that has left neither of these ended before it had anything to keep.
    if not resume and any((output / name).exists() for name in (CHECKPOINT_FILE, BEST_FILE)):
        raise FileExistsError(f"{output} holds a run. Go on with it (--resume, resume=True), or choose another folder.")


def _warn_of_frozen_layers(model: keras.Model) -> None:
    """Warns of layers that somebody has frozen, as for Keras' own `fit`: a run freezes the body or nothing."""
    frozen = [layer.name for layer in model.layers if layer.weights and len(layer.trainable_weights) < _learnt(layer)]
    if frozen:
        warnings.warn(
            f"Layers of {model.name} are frozen, {listing(frozen)}: finetune trains them all the same, after "
            "freeze_epochs. Keras' own fit leaves them.",
            stacklevel=3,
        )


def _learnt(layer: keras.Layer) -> int:
    """How many weights of a layer, or of those in it, learn where nothing is frozen."""
    return sum(len(inner._trainable_variables) for inner in layer._flatten_layers())


def _check_outside(output: Path, *folders: Any) -> None:
    """Checks that the run's folder is in none of the images' folders; loaders are passed over."""
    for folder in folders:
        if isinstance(folder, str | Path) and output.resolve().is_relative_to(Path(folder).resolve()):
            raise ValueError(
                f"The run's folder {output} is in the images' folder {folder}, where it would be taken for a class. "
                "Choose one outside."
            )


def _versions() -> dict[str, str]:
    """What computes the run, for config.json: {"python", "backend" or package: version or name}."""
    backend = keras.backend.backend()
    packages = ("keras", backend, "numpy", "pillow")
    versions = {package: importlib.metadata.version(package) for package in packages}
    return {"python": platform.python_version(), "backend": backend, **versions}
