"""What the tests of the exporters share: exports in processes of their own, what they leave, and LiteRT alone."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import forked
import numpy as np
import pytest
from project import CHECKPOINT, HANG

# Exports checkpoint argv[2] to argv[3] by the function argv[1] with the arguments argv[4] (JSON); says how much CPU
# time that took, as a multiple of what importing took, which is as slow where a machine is slow or busy; and the whole
# process' peak memory. Then, no longer measured, come more exports of the same model: the arguments' "then", a list of
# [path, arguments]. argv[5:] are packages that are made as if not installed.
SCRIPT = """
import json, re, signal, sys, time
from importlib.machinery import PathFinder

class Installed(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in sys.argv[5:] else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Installed
# A shell that starts tests in the background has them ignore Ctrl-C, and what they start too.
signal.signal(signal.SIGINT, signal.default_int_handler)
started = time.process_time()
from keras_efficientformer import deploy, from_checkpoint
importing = time.process_time() - started
exporter, source, path, arguments = *sys.argv[1:4], json.loads(sys.argv[4])
model, then = from_checkpoint(source, **arguments.pop("model", {})), arguments.pop("then", [])
started = time.process_time()
getattr(deploy, exporter)(model, path, **arguments)
imports = (time.process_time() - started) / importing
# Not getrusage's ru_maxrss, which starts at the size of the process that started this one.
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
for path, arguments in then:
    getattr(deploy, exporter)(model, path, **arguments)
print(json.dumps({"imports": imports, "gigabytes": peak * 1024 / 1e9}))
"""


def start(exporter, source, path, arguments=None, blocked=(), prefix=(), program=sys.executable, **env):
    """A process that exports, by a Python; `prefix` is a command that runs it."""
    command = [str(program), "-c", SCRIPT, exporter, str(source), str(path), json.dumps(arguments or {}), *blocked]
    return subprocess.Popen(
        [*prefix, *command], env={**os.environ, **env}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process):
    """(exit code, standard output, standard error)."""
    output, log = process.communicate(timeout=HANG)
    return process.returncode, output, log


def contents(folder):
    return sorted(path.name for path in Path(folder).iterdir())


def assert_interrupt_leaves_nothing(exporter, path, arguments=None):
    """Ctrl-C as soon as there is a partial file in the folder."""
    folder, program = path.parent, forked.programs(dict(os.environ)) / "python"
    with start(exporter, CHECKPOINT, path, arguments, program=program) as process:
        deadline = time.monotonic() + HANG
        while not contents(folder) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert [name for name in contents(folder) if name.startswith(".partial-")]
        process.send_signal(signal.SIGINT)
        code, output, log = finish(process)
    assert code != 0
    assert not output
    assert "KeyboardInterrupt" in log
    assert contents(folder) == []


def assert_read_only_folder_is_refused(exporter, source, path):
    # A read-only disk in a namespace of its own: permissions alone would not stop root.
    script = 'mount -t tmpfs -o ro tmpfs "$FOLDER" && exec "$@"'
    prefix, folder = ["unshare", "--map-root-user", "--mount", "sh", "-c", script, "sh"], str(path.parent)
    if subprocess.run([*prefix, "true"], env={**os.environ, "FOLDER": folder}, capture_output=True).returncode:
        pytest.skip("a read-only folder is made with a tmpfs, and this system lets nobody mount one in a namespace")
    # What takes long to import is not needed.
    blocked = ["tensorflow", "torch"]
    process = start(exporter, source, path, blocked=blocked, prefix=prefix, FOLDER=folder, KERAS_BACKEND="jax")
    code, _, log = finish(process)
    assert code != 0
    assert log.strip().splitlines()[-1].startswith("OSError: [Errno 30] Read-only file system")
    assert contents(folder) == []


def run_litert(path, images):
    """Every output for batches that are the file's own, {name: array}, by LiteRT alone."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path))
    interpreter.allocate_tensors()
    (image,) = interpreter.get_input_details()
    results = {output["name"]: [] for output in interpreter.get_output_details()}
    for start in range(0, len(images), image["shape"][0]):
        interpreter.set_tensor(image["index"], images[start : start + image["shape"][0]])
        interpreter.invoke()
        for output in interpreter.get_output_details():
            results[output["name"]].append(interpreter.get_tensor(output["index"]).copy())
    return {name: np.concatenate(parts) for name, parts in results.items()}
