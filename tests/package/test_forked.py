"""The programs that `support/forked.py` gives to tests do what the real ones do. Room: tests."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import forked
import pytest
from project import HANG

pytestmark = pytest.mark.skipif(not forked.can_watch(), reason="the real programs run here")

ENVIRONMENT = dict(os.environ)
PIPES = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
PRINT = "import os, sys; print(sys.argv, sys.path[0], os.getcwd(), __name__, input(), os.environ['PATH'])"
CODES = {
    "ends": [
        "-c",
        PRINT,
        "a",
    ],
    "exit code": ["-c", "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"],
    "message": ["-c", "raise SystemExit('what is wrong')"],
    "error": ["-c", "def f(): return 1 / 0\nf()"],
    "signal": ["-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"],
    "Ctrl-C": ["-c", "raise KeyboardInterrupt"],
    "at exit": ["-c", "import atexit; atexit.register(print, 'bye'); print('hello')"],
    "script": ["script.py", "a"],
    "missing script": ["missing.py"],
    "another use": ["-m", "platform", "--terse"],
    "another backend": ["-c", "import os; print(os.environ['KERAS_BACKEND'])"],
}


@pytest.mark.parametrize("case", CODES)
def test_a_copy_is_as_the_real_one(case, tmp_path):
    (tmp_path / "script.py").write_text("import sys\nprint(__file__, __name__, sys.argv, sys.path[0])\nprint(1 / 0)\n")
    environment = {**ENVIRONMENT, "PATH": f"/own:{ENVIRONMENT['PATH']}"}
    if case == "another backend":
        environment["KERAS_BACKEND"] = "none"
    found = []
    for program in (Path(sys.executable), forked.programs(ENVIRONMENT) / "python"):
        options = {"cwd": tmp_path, "input": "in", "capture_output": True, "text": True, "timeout": HANG}
        done = subprocess.run([program, *CODES[case]], env=environment, **options)
        found.append((done.returncode, done.stdout, done.stderr))
    assert found[0] == found[1]
    assert any(found[0])


def test_the_command(tmp_path):
    """One that says what is wrong, and one that answers; Keras is there before the program is."""
    for arguments in (["predict", "missing.jpg"], ["convert", "--help"]):
        found = []
        for folder in (Path(sys.executable).parent, forked.programs(ENVIRONMENT)):
            command = [folder / "efficientformer", *arguments]
            done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=HANG)
            found.append((done.returncode, done.stdout, done.stderr))
        assert found[0] == found[1]
    program = "import sys; print('keras' in sys.modules, 'keras_efficientformer' in sys.modules)"
    command = [forked.programs(ENVIRONMENT) / "python", "-c", program]
    assert subprocess.check_output(command, env=ENVIRONMENT, text=True, timeout=HANG) == "True False\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_signals_reach_the_copy(number):
    # A shell that starts tests in the background has them ignore Ctrl-C, and what they start too.
    program = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    program += "import os, time; print(os.getpid(), flush=True); time.sleep(1000)"
    command = [forked.programs(ENVIRONMENT) / "python", "-c", program]
    with subprocess.Popen(command, env=ENVIRONMENT, **PIPES) as process:
        copy = Path("/proc", process.stdout.readline().strip())
        process.send_signal(number)
        _, log = process.communicate(timeout=HANG)
    assert process.returncode == -number
    assert log.endswith("KeyboardInterrupt\n") == (number == signal.SIGINT)
    while copy.exists():  # after signal 9 it is ended by the server, a moment later
        time.sleep(0.01)
