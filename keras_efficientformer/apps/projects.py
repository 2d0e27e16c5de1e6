"""What app projects for phones have in common: the sample's files, a model in them, names in code. Room: apps.

The samples lie in `android/` and `ios/`, whole but for a model. A project is a copy of one, in which the lines that
tell of the model and the app are written anew.
"""

import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keras_efficientformer.classifiers.opening import Classifier
from keras_efficientformer.deploy.report_sidecar import sidecar_of
from keras_efficientformer.files import check_target, finished_file, size_of
from keras_efficientformer.imagenet import CROP
from keras_efficientformer.layers.names import MASKS

# {what a file gives: what an app does with it}.
TASKS = {"scores": "classification", MASKS: "segmentation"}
# What tools leave in a folder that they have opened.
LEFT_BY_TOOLS = shutil.ignore_patterns(".*", "build", "*.xcodeproj")


@dataclass(frozen=True)
class PhoneApp:
    """What was written.

    Attributes:
        folder: of the project.
        name: of the app, as it stands below its icon.
        app_id: Android's application id, or the bundle identifier of iOS.
        model: name of the exported file that the app runs.
        task: "classification" or "segmentation".
        sizes: (height, width) of each input size that the file has; the app starts with the first.
        labels: names of the classes, in the order of the scores.
        bytes: of the whole folder.
    """

    folder: str
    name: str
    app_id: str
    model: str
    task: str
    sizes: tuple[tuple[int, int], ...]
    labels: tuple[str, ...]
    bytes: int


@dataclass(frozen=True)
class Project:
    """A kind of project.

    Attributes:
        sample: its folder.
        mark: a file by which a project of this kind is known.
        models: the folder that the model lies in.
        id_pattern: what an app's identifier looks like.
        id_words: that in words, with an example.
        id_filler: what stands in an identifier for what may not.
    """

    sample: Path
    mark: str
    models: str
    id_pattern: str
    id_words: str
    id_filler: str

    def is_one(self, folder: Path) -> bool:
        return (folder / self.mark).is_file() and (folder / self.models).is_dir()

    def names(self, model: str, name: str | None, app_id: str | None) -> tuple[str, str]:
        """The app's name and identifier, checked: those that are given, else made of the model's name.

        Raises:
            ValueError: one is not fit.
        """
        name = " ".join(re.split(r"[\s_]+", model)).strip() or "App" if name is None else name
        if not name.strip() or not name.isprintable():
            raise ValueError(f"An app's name is one line of text that can be printed. Received: {name!r}")
        if app_id is None:
            words = re.sub(r"[^a-z0-9]+", self.id_filler, model.lower()).strip(self.id_filler)
            app_id = f"org.example.{words if words[:1].isalpha() else f'app{words}'}"
        if not re.fullmatch(self.id_pattern, app_id):
            raise ValueError(f"An app's identifier is {self.id_words}. Received: {app_id!r}")
        return name, app_id

    def write(
        self,
        folder: Path,
        overwrite: bool,
        model: Path,
        lines: Mapping[str, Mapping[str, str]],
        more: Mapping[str, str] | None = None,
    ) -> int:
        """Writes the project and gives the bytes of its folder.

        Args:
            folder: is made.
            overwrite: whether a project of this kind that stands there may be replaced.
            model: the exported file, which is copied, and its report, if there is one, into the project's folder.
            lines: of each file {how a line begins: how it goes on}.
            more: {file: its text}, for files that the sample does not have.

        Raises:
            OSError: the folder exists and may not be replaced, or cannot be written.
        """
        with finished_file(folder, overwrite, self.is_one) as partial:
            # Contents alone: an installed package may be read-only.
            shutil.copytree(self.sample, partial, ignore=LEFT_BY_TOOLS, copy_function=shutil.copyfile)
            for file, changes in lines.items():
                path = partial / file
                path.write_text(with_lines(path.read_text(encoding="utf-8"), changes), encoding="utf-8")
            models = partial / self.models
            models.mkdir(exist_ok=True)
            for file, text in (more or {}).items():
                (partial / file).write_text(text, encoding="utf-8")
            copy = shutil.copytree if model.is_dir() else shutil.copyfile
            copy(model, models / model.name)
            if sidecar_of(model).is_file():  # apart from what is packed into the app
                shutil.copyfile(sidecar_of(model), partial / sidecar_of(model).name)
        return size_of(folder)

    def check_target(self, folder: Path, overwrite: bool) -> None:
        """Checks that the project may be written, before anything is exported; errors are those of `write`."""
        check_target(folder, overwrite, self.is_one)


@contextmanager
def exported(model: Any, suffix: str, export: Callable[..., Any], settings: Mapping[str, Any]) -> Iterator[Path]:
    """The exported file of an app: the one that is given, or one that is made for the block.

    Args:
        model: a Keras model, or the path of an exported file.
        suffix: of such files.
        export: exports a model into a folder, with settings.
        settings: for the export; None leaves one to the exporter.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no file of that suffix, or settings are given for what is exported already.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    if not isinstance(model, Path):
        with tempfile.TemporaryDirectory() as place:
            export(model, place, **given)
            (file,) = Path(place).glob(f"*{suffix}")
            yield file
        return
    file = model
    if file.suffix != suffix:
        raise ValueError(f"This app runs a {suffix} file, or a Keras model that is exported. Received: {file}")
    if not file.exists():
        raise FileNotFoundError(f"{file} does not exist.")
    if given:
        raise ValueError(f"{file} is exported already: leave {', '.join(given)} out, or give the model that it is of.")
    yield file


def task_of(file: Path, network: Classifier) -> str:
    """What an app does with an exported file.

    Raises:
        ValueError: it gives something else, takes other than colours, or does not know its classes' names.
    """
    if network.output not in TASKS:
        raise ValueError(f"{file.name} is neither a classifier nor a segmenter: it gives {network.output}.")
    if network.channels != 3:
        raise ValueError(f"{file.name} takes images of {network.channels} channels, and photographs have three.")
    return TASKS[network.output]


def crop_for(task: str, crop: float | None) -> float:
    """The share of a photograph's short side that the network sees.

    Raises:
        ValueError: it is out of (0, 1], or there is one for a segmenter.
    """
    if task == TASKS[MASKS]:
        if crop is not None:
            raise ValueError("A segmenter sees whole photographs: leave the crop out.")
        return 1.0
    crop = CROP if crop is None else float(crop)
    if not 0 < crop <= 1:
        raise ValueError(f"`crop` should be in (0, 1]. Received: crop={crop}")
    return crop


def no_labels(file: Path) -> ValueError:
    """The error of a file whose classes have no names."""
    return ValueError(
        f"{file.name} does not say what its classes are called, and an app shows names: pass labels, a text file with "
        "one in each line."
    )


def with_lines(text: str, changes: Mapping[str, str]) -> str:
    """A text in which lines go on otherwise: {how one begins after its indent: the rest}. Each is there once."""
    for start, rest in changes.items():
        line = rf"^([ \t]*{re.escape(start)}).*$"
        # In a pattern's replacement every backslash would have a meaning of its own.
        text, count = re.subn(line, rf"\g<1>{rest.replace(chr(92), chr(92) * 2)}", text, flags=re.MULTILINE)
        if count != 1:
            raise RuntimeError(f"The sample has {count} lines that begin with {start!r}.")
    return text


def quoted(text: str, special: Mapping[str, str], escape: Callable[[str], str]) -> str:
    """A string literal of Kotlin or Swift.

    Args:
        special: {character: how it is written}.
        escape: writes any other character that cannot be printed.
    """
    return '"' + "".join(special.get(c) or (c if c.isprintable() else escape(c)) for c in text) + '"'
