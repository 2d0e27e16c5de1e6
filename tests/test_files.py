"""Files that get their names when they are complete: together, and whatever Ctrl-C meets. Room: top level."""

import contextlib
import errno
import functools
import os
import shutil
import signal
from pathlib import Path

import pytest

from keras_efficientformer.files import finished_file, finished_files


@pytest.fixture(autouse=True)
def ctrl_c():
    """Ctrl-C as in a terminal: a shell that starts tests in the background has them ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


class InterruptedWhenDestroyed:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)


def swallowed_by_a_destructor():
    InterruptedWhenDestroyed()


def swallowed_by_a_library():
    with contextlib.suppress(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def taken_for_an_error():
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        raise SystemError("bad argument to internal function") from None


def plain():
    signal.raise_signal(signal.SIGINT)


def write(path, then):
    with finished_file(path) as partial:
        partial.write_text("whole")
        then()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("how", [plain, swallowed_by_a_destructor, swallowed_by_a_library, taken_for_an_error])
def test_interrupt_leaves_nothing(tmp_path, how):
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "file", how)
    assert list(tmp_path.iterdir()) == []


def test_interrupt_as_soon_as_there_is_a_folder(tmp_path, monkeypatch):
    mkdir = Path.mkdir

    def interrupted_mkdir(*args, **kwargs):
        mkdir(*args, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "mkdir", interrupted_mkdir)
    with pytest.raises(KeyboardInterrupt), finished_file(tmp_path / "file"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_interrupt_between_two_names_waits(tmp_path, monkeypatch):
    replace = os.replace

    def interrupted_replace(*args):
        replace(*args)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(os, "replace", interrupted_replace)
    paths = [tmp_path / "file", tmp_path / "report"]
    with pytest.raises(KeyboardInterrupt), finished_files(paths) as partials:
        assert [partial.write_text("whole") for partial in partials] == [5, 5]
    assert sorted(tmp_path.iterdir()) == paths


def test_one_file_of_two_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError), finished_files([tmp_path / "report", tmp_path / "file"]) as partials:
        partials[1].write_text("whole")
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_block_is_kept(tmp_path):
    with pytest.raises(ZeroDivisionError):
        write(tmp_path / "file", lambda: 1 / 0)
    assert list(tmp_path.iterdir()) == []


def test_a_handler_of_ones_own_is_left_alone(tmp_path):
    calls = []
    signal.signal(signal.SIGINT, lambda *_: calls.append(1))
    write(tmp_path / "file", plain)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    assert calls == [1]
    assert (tmp_path / "file").read_text() == "whole"


def write_into_a_folder(target):
    with finished_file(target) as partial:
        partial.mkdir()
        partial.write_text("no file")


def test_errors_keep_their_own_words(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"^photos is not a folder of images\.$"), finished_file(tmp_path / "a"):
        raise FileNotFoundError("photos is not a folder of images.")


def test_errors_name_the_file_that_was_wanted(tmp_path, monkeypatch):
    target = tmp_path / "a.txt"
    with pytest.raises(IsADirectoryError) as raised:
        write_into_a_folder(target)
    assert raised.value.filename == str(target)
    assert "partial" not in str(raised.value)

    def full(path, mode):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(OSError, match=r"a\.txt") as raised:
        write_into_a_folder(target)
    assert "partial" not in str(raised.value)


@pytest.mark.parametrize("copy", [shutil.copyfile, shutil.copytree])
def test_a_full_disk_is_told_of_the_file_that_was_wanted(tmp_path, copy):
    def full(source, target, **_):
        raise OSError(errno.ENOSPC, "No space left on device", str(source), None, str(target))

    source = tmp_path / "source"
    source.mkdir()
    (source / "b").write_text("b")
    written = full if copy is shutil.copyfile else functools.partial(copy, copy_function=full)

    def copy_into(target):
        with finished_file(target) as partial:
            partial.mkdir()
            written(source, partial / "inside")

    with pytest.raises(OSError, match="No space left on device") as raised:
        copy_into(tmp_path / "wanted")
    assert "wanted" in str(raised.value)
    assert "partial" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
