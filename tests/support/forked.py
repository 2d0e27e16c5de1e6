"""Processes for tests that need not import Keras: copies of one that has imported it, and computed nothing yet.

Importing Keras on TensorFlow takes four seconds of a core, more than half of what most programs take that tests start.
`programs` gives a folder with a `python` and an `efficientformer` that have such a process, one for each environment,
run what they are called with in a copy of itself: with their arguments, folder, environment and streams. They end as
the copy does. Where a test is about what is imported, or when, it starts the real programs.
"""

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import selectors
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import traceback
import types
from collections.abc import Iterable
from pathlib import Path

import numpy as np

# Variables that no import reads, and how the names of more of them begin: HF_ is of READS_VARIABLES.
READ_LATE = ("PATH", "PWD", "OLDPWD", "SHLVL", "_", "COLUMNS", "LINES", "NO_PROXY", "PYTEST_CURRENT_TEST", "TF_CONFIG")
READ_LATE_TOO = ("HF_", "KERAS_DISTRIBUTION_", "CUDA_")
# Keras would import it where it is there, and it reads its variables then.
READS_VARIABLES = "huggingface_hub"
# Keras, and what the command's own modules import.
IMPORTED = ("keras", "typer", "rich.console", "rich.progress", "rich.table", "rich.text")
BEGUN_IN = dict(os.environ)
SERVERS: list[subprocess.Popen] = []  # held, because one that nobody holds closes its pipes

# Each of the programs. It becomes the real one where it is called in another way, or the server is another.
CLIENT = """#!{python} -IS
import json, os, signal, socket, struct, sys
name = os.path.basename(sys.argv[0])
def become_real():
    path = os.path.join({scripts!r}, name)
    os.execv(path, [path, *sys.argv[1:]])
if name == "python" and not (sys.argv[1:2] == ["-c"] or sys.argv[1:] and os.path.isfile(sys.argv[1])):
    become_real()
request = json.dumps([name, sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    socket.send_fds(server, [struct.pack("!I", len(request))], [0, 1, 2])
    server.sendall(request)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: server.send(bytes([number])))
    answer = server.recv(16).decode()
if answer == "other":
    become_real()
code = os.waitstatus_to_exitcode(int(answer))
if code < 0:
    if code != -signal.SIGKILL:
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
os._exit(code)
"""


def programs(environment: dict[str, str]) -> Path:
    """A folder with the programs for this environment; the real ones where the system cannot watch processes so."""
    if not can_watch():
        return Path(sys.executable).parent
    return _programs(tuple(sorted((name, environment[name]) for name in _read_early(environment))))


@functools.cache
def can_watch() -> bool:
    """Linux can since 5.3, but not in every sandbox."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):
        return False
    return True


@functools.cache
def _programs(variables: tuple[tuple[str, str], ...]) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="forked-"))
    paths = {"scripts": str(Path(sys.executable).parent), "address": str(folder / "socket")}
    for name in ("python", "efficientformer"):
        (folder / name).write_text(CLIENT.format(python=sys.executable, **paths))
        (folder / name).chmod(0o755)
    command, pipe = [sys.executable, __file__, str(folder)], subprocess.PIPE
    # Its end is that of its standard input, and so of this process. Ctrl-C is for those who use it.
    server = subprocess.Popen(command, env=dict(variables), stdin=pipe, stdout=pipe, start_new_session=True)
    assert server.stdout is not None
    assert server.stdout.readline(), "The process that imports Keras for others has not begun."
    SERVERS.append(server)
    return folder


def _read_early(names: Iterable[str]) -> set[str]:
    return {name for name in names if name not in READ_LATE and not name.startswith(READ_LATE_TOO)}


def _is_as_begun(environment: dict[str, str]) -> bool:
    """Libraries set some variables themselves: whoever has imported them may hand those on."""
    names = _read_early(environment.keys() | BEGUN_IN)
    return all(environment.get(name) in (BEGUN_IN.get(name), os.environ.get(name)) for name in names)


def _receive(connection: socket.socket) -> tuple[list, list[int]]:
    """What a program asks for, and its three streams."""
    header, streams, _, _ = socket.recv_fds(connection, 4, 3)
    return json.loads(connection.recv(struct.unpack("!I", header)[0], socket.MSG_WAITALL)), streams


def _serve(folder: str) -> tuple[list, list[int]]:
    """Makes copies of this process, each of which returns from here with a request and its streams."""
    listener, events = socket.socket(socket.AF_UNIX), selectors.DefaultSelector()
    listener.bind(os.path.join(folder, "socket"))
    listener.listen(16)
    events.register(listener, selectors.EVENT_READ)
    events.register(sys.stdin, selectors.EVENT_READ)
    print("listening", flush=True)
    connections: dict[int, socket.socket] = {}  # by the copies' numbers
    while True:
        for event, _ in events.select():
            if event.fileobj is sys.stdin:
                shutil.rmtree(folder)
                os._exit(0)
            elif event.fileobj is listener:
                connection, _ = listener.accept()
                request, streams = _receive(connection)
                copy = os.fork() if _is_as_begun(request[-1]) else None
                if copy == 0:
                    return request, streams
                for stream in streams:
                    os.close(stream)
                if copy is None:
                    connection.sendall(b"other")
                    connection.close()
                else:
                    connections[copy] = connection
                    events.register(connection, selectors.EVENT_READ, copy)
                    events.register(os.pidfd_open(copy), selectors.EVENT_READ, copy)
            elif isinstance(event.fileobj, int):  # a copy has ended
                _, status = os.waitpid(event.data, 0)
                events.unregister(event.fileobj)
                os.close(event.fileobj)
                with connections.pop(event.data) as connection, contextlib.suppress(KeyError, OSError):
                    events.unregister(connection)
                    connection.sendall(str(status).encode())
            elif event.data in connections:  # a program hands on a signal, or has been killed
                number = connections[event.data].recv(1)
                os.kill(event.data, number[0] if number else signal.SIGKILL)
                if not number:
                    events.unregister(event.fileobj)


def _become(request: list, streams: list[int]) -> None:
    """Makes this copy what a new process would be."""
    _, arguments, folder, environment = request
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(folder)
    for name in os.environ.keys() - _read_early(os.environ):
        del os.environ[name]
    os.environ.update(environment)
    sys.path[0] = "" if arguments[:1] == ["-c"] else os.path.dirname(os.path.abspath(arguments[0]))
    np.random.seed()  # each process begins elsewhere
    sys.excepthook = _print_without_own_lines
    gc.enable()


def _run(name: str, arguments: list[str]) -> None:
    if name == "efficientformer":
        sys.path[0] = os.path.dirname(sys.executable)
        arguments = [os.path.join(sys.path[0], name), *arguments]
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    if arguments[0] == "-c":
        sys.argv, path, source = ["-c", *arguments[2:]], "<string>", arguments[1].encode()
    else:
        sys.argv, path = arguments, os.path.abspath(arguments[0])
        main.__file__, source = path, Path(path).read_bytes()
    exec(compile(source, path, "exec"), main.__dict__)


def _print_without_own_lines(kind, error, lines) -> None:
    while lines and lines.tb_frame.f_code.co_filename == __file__:
        lines = lines.tb_next
    traceback.print_exception(kind, error, lines)


def _main(folder: str) -> None:
    gc.disable()
    sys.modules[READS_VARIABLES] = None  # type: ignore[assignment]  # says that it is not there
    for module in IMPORTED:
        importlib.import_module(module)
    del sys.modules[READS_VARIABLES]
    gc.freeze()
    request, streams = _serve(folder)
    _become(request, streams)
    try:
        _run(*request[:2])
    except SystemExit as end:
        if end.code:
            raise
    # What the interpreter would do, but for taking apart each of a million objects.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    _main(sys.argv[1])
