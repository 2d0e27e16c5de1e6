"""Finds files of weights that keep HDF5 busy for ever, or crash it, before they are read. Room: conversion.

Some damaged bytes send HDF5's code, which nothing in this process can interrupt, round in circles. So whoever reads an
HDF5 file has another process read it first; what is said of a file in words, the reader says.
"""

import functools
import os
import signal
import subprocess
import sys

from keras_efficientformer.errors import CheckpointError

READER = """
import io, sys, zipfile
import h5py
def read(name, item):
    dict(item.attrs)
    if isinstance(item, h5py.Dataset):
        item[()]
path = sys.argv[1]
file = io.BytesIO(zipfile.ZipFile(path).read("model.weights.h5")) if path.lower().endswith(".keras") else path
with h5py.File(file) as content:
    content.visititems(read)
"""
# A whole file is read in this time, or at this rate, from a slow disk on a busy machine too.
READER_SECONDS = 20
BYTES_PER_SECOND = 10e6


def check_hdf5(path: str | os.PathLike[str]) -> None:
    """Raises CheckpointError for a `.keras` or `.weights.h5` file that crashes HDF5 or keeps it busy for too long."""
    file = os.stat(path)
    _read_in_another_process(os.fspath(path), file.st_dev, file.st_ino, file.st_size, file.st_mtime_ns)


# A file that was read whole is not read again until it changes: opening a model asks twice or more.
@functools.lru_cache(maxsize=256)
def _read_in_another_process(path: str, device: int, inode: int, size: int, modified: int) -> None:
    command = [sys.executable, "-P", "-c", READER, path]
    advice = "it is damaged. Compare its size and sha256 with its source's and bring it again"
    seconds = READER_SECONDS + size / BYTES_PER_SECOND
    try:
        process = subprocess.run(command, capture_output=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired as error:
        raise CheckpointError(f"{path} keeps HDF5 busy for more than {seconds:.0f} s: {advice}.") from error
    if process.returncode < 0:
        raise CheckpointError(f"{path} crashes HDF5 ({signal.Signals(-process.returncode).name}): {advice}.")
