"""Writes files that get their name only when they are complete, whatever their format. Room: top level."""

import json
import os
import secrets
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any


@contextmanager
def finished_file(
    path: str | os.PathLike[str], overwrite: bool = False, may_replace: Callable[[Path], bool] = Path.is_file
) -> Iterator[Path]:
    """Gives a path to write to, which becomes `path` when the block ends well and is removed when it does not.

    Args and errors are those of `finished_files`.
    """
    with finished_files([path], overwrite, may_replace) as (partial,):
        yield partial


@contextmanager
def finished_files(
    paths: Sequence[str | os.PathLike[str]],
    overwrite: bool = False,
    may_replace: Callable[[Path], bool] = Path.is_file,
) -> Iterator[list[Path]]:
    """Gives paths to write to, which become `paths` together when the block ends well; else all are removed.

    Args:
        paths: files, or folders where a format's files are folders. They are in the same folder.
        overwrite: whether what stands there may be replaced.
        may_replace: says of what stands there whether it is of the kind that is written; by default a file.

    Raises:
        FileExistsError: one of them exists and `overwrite` is False.
        FileNotFoundError: their folder does not exist.
        IsADirectoryError: one is a folder that `may_replace` refuses.
    """
    files = list(map(Path, paths))
    for file in files:
        check_target(file, overwrite, may_replace)
    # It is in the same folder, so that the last step is a rename. Its name is chosen before it is made: an interrupt
    # right after that leaves nothing either, as it would with tempfile's.
    folder = files[0].parent / f".partial-{secrets.token_hex(6)}"
    # The suffixes are kept, as they decide the format.
    partials = [folder / file.name for file in files]
    try:
        folder.mkdir(mode=0o700)
        with Interrupts() as interrupts:
            yield partials
            interrupts.hold()
            for partial, file in zip(partials, files, strict=True):
                # A folder cannot replace another that is not empty.
                if file.exists() and partial.is_dir():
                    os.replace(file, folder / "replaced")
                os.replace(partial, file)
    except shutil.Error as error:  # a list of what could not be copied, each with its reason
        reason = str(error.args[0][0][-1]).partition(": ")[0]
        raise OSError(f"{files[0]} cannot be written: {reason}") from error
    except OSError as error:
        _name_wanted(error, {os.fspath(folder): files[0]} | dict(zip(map(os.fspath, partials), files, strict=True)))
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _name_wanted(error: OSError, wanted: dict[str, Path]) -> None:
    """Has an error be about the file that was wanted, not about the name that it has until it is complete.

    Args:
        error: what writing has raised.
        wanted: {path until then: the file}, those within another last.
    """
    written = str(error.filename if error.filename2 is None else error.filename2)
    found = [file for path, file in wanted.items() if Path(written).is_relative_to(path)]
    # An error that has a message of its own, and no file, would lose the message by a file name, even by None.
    if found:
        error.filename = os.fspath(found[-1])
        if error.filename2 is not None:
            del error.filename2


def cache_folder(kind: str, variable: str) -> Path:
    """Where files of a kind are kept: the folder that the environment variable names, or one in the user's cache. Its
    path begins with "~" where there is no home folder."""
    return Path(os.path.expanduser(os.environ.get(variable) or f"~/.cache/keras_efficientformer/{kind}"))


def check_target(
    path: str | os.PathLike[str], overwrite: bool, may_replace: Callable[[Path], bool] = Path.is_file
) -> None:
    """Checks that a file may be written; arguments and errors are those of `finished_files`."""
    path = Path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists. Choose another name, or replace it: overwrite=True, --overwrite.")
    if path.is_dir() and not may_replace(path):
        raise IsADirectoryError(f"{path} is a folder of another kind, which is not replaced. Choose another name.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"The folder {path.parent} does not exist. Make it first, or choose another.")


class Interrupts:
    """Has every Ctrl-C of a block end it by KeyboardInterrupt, also one that a library swallows or takes for an error.

    Python drops what is raised in a destructor or a callback of its garbage collector; TensorFlow and JAX have such.
    Elsewhere than in the main thread, and where Ctrl-C means something else already, this does nothing.
    """

    def __init__(self) -> None:
        self._heard = self._held = False
        self._before: Any = None

    def __enter__(self) -> "Interrupts":
        before = signal.getsignal(signal.SIGINT)
        is_ours = before is signal.default_int_handler or isinstance(getattr(before, "__self__", None), Interrupts)
        if threading.current_thread() is threading.main_thread() and is_ours:
            self._before = before
            signal.signal(signal.SIGINT, self._interrupt)
        return self

    def check(self) -> None:
        """Ends the block by KeyboardInterrupt where one was heard and lost."""
        if self._heard:
            raise KeyboardInterrupt

    def hold(self) -> None:
        """Lets what follows in the block happen as a whole: an interrupt waits for the block's end."""
        self._held = True
        self.check()

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self._heard = True
        if not self._held:
            raise KeyboardInterrupt

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
        if self._heard and (error is None or isinstance(error, Exception)):
            raise KeyboardInterrupt from error


def remove_unfinished(folder: str | os.PathLike[str]) -> None:
    """Takes away what a killed process had half written into a folder."""
    for partial in Path(folder).glob(".partial-*"):
        shutil.rmtree(partial)


def bare_name(path: str | os.PathLike[str]) -> str:
    """The name of a file or folder without the folders above it: reports go to others, whom those do not concern."""
    return Path(os.path.abspath(path)).name


def size_of(path: str | os.PathLike[str]) -> int:
    """Bytes of a file, or of all files in a folder."""
    path = Path(path)
    return sum(item.stat().st_size for item in (path.rglob("*") if path.is_dir() else [path]) if item.is_file())


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a UTF-8 text file in the place of an older one, whole or not at all."""
    with finished_file(path, overwrite=True) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Writes plain values as indented JSON in the place of an older file, whole or not at all."""
    write_text(path, json.dumps(content, indent=2) + "\n")
