"""Timing .tflite files: here with LiteRT, and on a phone, of which adb and the phone are a script that replays texts.

The texts are what LiteRT's tools print: logs of real boards and phones, cut to the lines that matter. How the tables of
the classic tool are put together is in LiteRT's tflite/profiling/profile_summary_formatter.cc.
"""

import csv
import json
import os
import re
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from keras_efficientformer.cli.measurements.benchmark_tflite import benchmark_tflite_command
from keras_efficientformer.deploy import export_tflite
from keras_efficientformer.deploy.benchmark.android_phone import AndroidPhone, benchmark_on_phone
from keras_efficientformer.deploy.benchmark.computer import benchmark_tflite, input_batch, profile_tflite
from keras_efficientformer.deploy.benchmark.op_profile import median_profile, read_op_profile
from keras_efficientformer.deploy.benchmark.reports import DeviceReport
from keras_efficientformer.deploy.tflite.runtime import LiteRTModel
from keras_efficientformer.errors import DeviceError
from keras_efficientformer.images import seeded_images

CPU_RUN = """\
INFO: STARTING!
INFO: Log parameter values verbosely: [0]
INFO: Graph: [mobilenet_quant_v1_224.tflite]
INFO: Signature to run: []
INFO: Use gpu: [0]
INFO: Loaded model mobilenet_quant_v1_224.tflite
INFO: Created TensorFlow Lite XNNPACK delegate for CPU.
INFO: The input model file size (MB): 4.2761
INFO: Initialized session in 87.639ms.
INFO: Running benchmark for at least 1 iterations and at least 0.5 seconds but terminate if exceeding 150 seconds.
INFO: count=5 first=106436 curr=105929 min=105929 max=106436 avg=106065 std=193 p5=105929 median=105948 p95=106436

INFO: Running benchmark for at least 50 iterations and at least 1 seconds but terminate if exceeding 150 seconds.
INFO: count=50 first=106022 curr=105780 min=105416 max=106528 avg=105784 std=260 p5=105485 median=105718 p95=106281

INFO: Inference timings in us: Init: 87639, First inference: 106436, Warmup (avg): 106065, Inference (avg): 105784
INFO: Note: as the benchmark tool itself affects memory footprint, the following is only APPROXIMATE to the actual \
memory footprint of the model at runtime. Take the information at your discretion.
INFO: Memory footprint delta from the start of the tool (MB): init=14.4414 overall=14.8164
"""

GPU_RUN = """\
INFO: Use gpu: [1]
INFO: Created TensorFlow Lite delegate for GPU.
INFO: GPU delegate created.
INFO: Initialized OpenCL-based API.
INFO: Created 1 GPU delegate kernels.
INFO: Explicitly applied GPU delegate, and the model graph will be completely executed by the delegate.
INFO: Initialized session in 1361.24ms.
INFO: count=5 first=125113 curr=112537 min=111758 max=125113 avg=115344 std=4959 p5=111758 median=112912 p95=125113

INFO: count=50 first=119614 curr=115889 min=111842 max=119614 avg=115246 std=1329 p5=112107 median=115350 p95=116620

INFO: Memory footprint delta from the start of the tool (MB): init=132.816 overall=132.816
"""

# The tool of the same name since LiteRT 2, with --use_profiler.
LITERT_RUN = """\
INFO: Initialized session in 4.488ms.
INFO: count=358 first=1927 curr=1370 min=1363 max=1927 avg=1386.31 std=38 p5=1366 median=1377 p95=1428

INFO: count=1000 first=1407 curr=1370 min=1362 max=1452 avg=1379.64 std=14 p5=1365 median=1373 p95=1409

INFO: [./litert/tools/benchmark_litert_model.h:81]
========== BENCHMARK RESULTS ==========
INFO: [./litert/tools/benchmark_litert_model.h:114] Init footprint:       9.07 MB
INFO: [./litert/tools/benchmark_litert_model.h:116] Overall footprint:    11.25 MB
INFO: [./litert/tools/benchmark_litert_model.h:179]
============================== Run Order ==============================
\t                             [node type]\t  [first]\t [avg ms]\t     [%]\t  [cdf%]\t  [mem KB]\t[times called]\t[Name]
\t        LiteRT::Run[buffer registration]\t    0.026\t    0.018\t  1.392%\t  1.392%\t     0.000\t        1\t\
LiteRT::Run[buffer registration]/0
\t                         AllocateTensors\t    0.195\t    0.195\t  0.011%\t  1.403%\t    56.000\t        0\t\
AllocateTensors/0
\t                     Static Reshape (NC)\t    0.004\t    0.004\t  0.307%\t  1.710%\t     0.000\t        1\t\
Delegate/Static Reshape (NC):0
\t          Fully Connected (NC, F32) GEMM\t    1.564\t    1.269\t 97.059%\t 98.769%\t     0.000\t        1\t\
Delegate/Fully Connected (NC, F32) GEMM:1
\t                LiteRT::Run[Buffer sync]\t    0.018\t    0.016\t  1.231%\t100.000%\t     0.000\t        1\t\
LiteRT::Run[Buffer sync]/0

============================== Top by Computation Time ==============================
\t                             [node type]\t  [first]\t [avg ms]\t     [%]\t  [cdf%]\t  [mem KB]\t[times called]\t[Name]
\t          Fully Connected (NC, F32) GEMM\t    1.564\t    1.269\t 97.059%\t 97.059%\t     0.000\t        1\t\
Delegate/Fully Connected (NC, F32) GEMM:1

Number of nodes executed: 5
"""

# Classic benchmark_model with XNNPACK: the graph's table with the delegate as one row, and one of what is inside.
CLASSIC_PROFILE = """\
INFO: Profiling Info for Benchmark Initialization:
============================== Run Order ==============================
\t[node type]\t  [first]\t [avg ms]\t     [%]\t  [cdf%]\t  [mem KB]\t[times called]\t[Name]
\t ModifyGraphWithDelegate\t   50.000\t   50.000\t 90.0%\t 90.0%\t  0.000\t        1\tModifyGraphWithDelegate/0

INFO: Operator-wise Profiling Info for Regular Benchmark Runs:
============================== Run Order ==============================
\t             [node type]\t  [first]\t [avg ms]\t     [%]\t  [cdf%]\t  [mem KB]\t[times called]\t[Name]
\t   TfLiteXNNPackDelegate\t    9.000\t    8.000\t 80.000%\t 80.000%\t     0.000\t        1\t[]:40
\t                    GELU\t    2.000\t    1.500\t 15.000%\t 95.000%\t     0.000\t        1\t[a/gelu]:3
\t                    GELU\t    0.600\t    0.500\t  5.000%\t100.000%\t     0.000\t        1\t[b/gelu]:7

============================== Summary by node type ==============================
\t             [Node type]\t  [count]\t  [avg ms]\t    [avg %]\t    [cdf %]\t  [mem KB]\t[times called]
\t   TfLiteXNNPackDelegate\t        1\t     8.000\t    80.000%\t    80.000%\t     0.000\t        1

Timings (microseconds): count=50 first=11600 curr=10000 min=9000 max=11600 avg=10000 std=260
Memory (bytes): count=0
3 nodes observed

Delegate internal:
============================== Run Order ==============================
\t             [node type]\t  [first]\t [avg ms]\t     [%]\t  [cdf%]\t  [mem KB]\t[times called]\t[Name]
\tConvolution (NHWC, F32) IGEMM\t    7.000\t    6.000\t 75.000%\t 75.000%\t     0.000\t        1\tDelegate/Convolution:0
\t                Add (ND)\t    2.000\t    2.000\t 25.000%\t100.000%\t     0.000\t        1\tDelegate/Add (ND):1
"""

FAILED_RUN = """\
INFO: Loaded model tiny_int8.tflite
VERBOSE: Replacing 2136 out of 2168 node(s) with delegate (TfLiteXNNPackDelegate) node, yielding 65 partitions.
ERROR: Node number 57 (BATCH_MATMUL) failed to prepare.
ERROR: Failed to allocate tensors!
ERROR: Benchmarking failed.
"""

PROPERTIES = {
    "ro.product.manufacturer": "Google",
    "ro.product.model": "Pixel 8",
    "ro.build.version.release": "16",
    "ro.soc.manufacturer": "Google",
    "ro.soc.model": "Tensor G3",
}

FAKE_ADB = f"""\
#!{sys.executable}
import json, os, pathlib, shlex, shutil, sys
state = pathlib.Path(os.environ["FAKE_ADB"])
arguments = sys.argv[1:]
with (state / "calls").open("a") as calls:
    calls.write(json.dumps(arguments) + "\\n")
if arguments == ["devices"]:
    print("* daemon started successfully\\nList of devices attached\\n" + (state / "devices").read_text())
elif arguments == ["version"]:
    print("Android Debug Bridge version 1.0.41\\nVersion 35.0.2-12147458")
elif arguments[2] == "push":
    shutil.copy(arguments[3], state / "phone" / pathlib.Path(arguments[4]).name)
    print(f"{{arguments[3]}}: 1 file pushed, 0 skipped. 38.1 MB/s")
else:
    command = shlex.split(arguments[3])
    if command[0] == "getprop":
        print(json.loads((state / "properties").read_text()).get(command[1], ""))
    elif command[0].endswith("/benchmark_model"):
        graph = pathlib.Path(command[1].partition("=")[2]).name
        assert (state / "phone" / graph).exists() and (state / "phone" / "benchmark_model").exists()
        answers = state / ("profile" if "--enable_op_profiling=true" in command else "run")
        print(answers.read_text())
        sys.exit(int((state / "code").read_text()))
    elif command[0] == "rm":
        shutil.rmtree(state / "phone")
"""


@pytest.fixture(scope="module")
def exported(build, tmp_path_factory):
    """A small network as float32, and as int8 with int8 input, and its reports' data."""
    folder = tmp_path_factory.mktemp("exported")
    model = build()
    images = seeded_images((64, 64, 3))
    limit = float("inf")  # these weights are for differences between images, not for int8
    export_tflite(model, folder)
    export_tflite(model, folder, quantize="int8", io="int8", calibration=images, max_difference=limit)
    return sorted(folder.glob("*.tflite"))


def run(*arguments):
    app = typer.Typer()
    app.command()(benchmark_tflite_command)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_latency_on_this_computer(exported):
    turns = []

    def progress(steps):
        for step in steps:
            turns.append(step)
            yield step

    report = benchmark_tflite(exported, threads=2, runs=7, warmup=3, command="a command", progress=progress)
    assert turns == list(range(10))  # one for all files: they take turns
    assert (report.kind, report.command, report.versions["ai-edge-litert"]) == ("computer", "a command", "2.3.0")
    for result, file in zip(report.results, exported, strict=True):
        assert (result.file, result.bytes) == (file.name, file.stat().st_size)
        assert (result.runs, result.threads, result.unit) == (7, 2, "cpu")
        assert 0 < result.min_ms <= result.median_ms <= result.p90_ms
        assert result.load_ms > 0
    assert [result.mode for result in report.results] == ["float32", "int8"]
    assert DeviceReport.from_json(report.to_json()) == report


def test_memory_is_the_files_own(exported, tmp_path):
    """This process holds TensorFlow, hundreds of megabytes: what it holds must not be counted."""
    big = tmp_path / "big.tflite"
    content = exported[0].read_bytes()
    big.write_bytes(content)
    peak = int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024 / 1e6
    (result,) = benchmark_tflite([big], runs=1, warmup=0).results
    assert peak > 300
    assert 0.5 * len(content) / 1e6 < result.memory_mb < 50


@pytest.mark.parametrize("index", [0, 1])
def test_the_timed_input_fills_the_range(exported, index):
    model = LiteRTModel(exported[index])
    batch = input_batch(model)
    low = (0, -128)[index]
    assert batch.shape == (1, 64, 64, 3)
    assert batch.dtype == model.inputs[0].dtype
    assert (batch.min(), batch.max()) == (low, low + 255)
    assert batch.std() > 20


def test_operations_of_this_computer(exported):
    """LiteRT's own profiler, through the C API that its wheel brings."""
    profile = profile_tflite(exported[0])
    calls = {cost.name: cost.calls for cost in profile}
    operations = LiteRTModel(exported[0]).operations()
    assert calls["GELU (NC)"] == operations["GELU"]
    assert calls["Softmax (NC, F32)"] == operations["SOFTMAX"]
    assert sum(cost.share for cost in profile) == pytest.approx(1)
    assert [cost.amount for cost in profile] == sorted((cost.amount for cost in profile), reverse=True)
    (result,) = benchmark_tflite(exported[:1], runs=20).results
    # The same inference on the same thread, timed from outside; a busy machine makes either longer.
    assert 0.2 < sum(cost.amount for cost in profile) / result.median_ms < 5


@pytest.mark.parametrize("arguments", [{"threads": 0}, {"runs": 0}, {"warmup": -1}])
def test_numbers_out_of_range(exported, arguments):
    with pytest.raises(ValueError, match=f"{next(iter(arguments))}={next(iter(arguments.values()))}"):
        benchmark_tflite(exported, **arguments)


def test_files_that_cannot_be_timed(exported, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing\.tflite"):
        benchmark_tflite([exported[0], tmp_path / "missing.tflite"])
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(exported[0].read_bytes()[:1000])
    for measure in (lambda: benchmark_tflite([broken]), lambda: profile_tflite(broken)):
        with pytest.raises(ValueError, match=r"broken\.tflite is not a TFLite file"):
            measure()


def test_command_prints_a_table_and_saves(exported, tmp_path):
    result = run(*exported, "--runs", 3, "--profile", "--output", tmp_path)
    assert result.exit_code == 0
    assert all(heading in result.stdout for heading in ("median ms", "p90 ms", "load ms", "MB"))
    assert "GELU (NC)" in result.stdout
    (saved,) = tmp_path.glob("*.json")
    report = DeviceReport.from_json(saved.read_text())
    assert report.standard_name == saved.name
    names = " ".join(file.name for file in exported)
    assert report.command == f"efficientformer benchmark tflite {names} --threads=1 --runs=3 --warmup=5"
    assert saved.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / f"{saved.stem}_profile.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["file"] for row in rows} == {file.name for file in exported}
    assert sum(float(row["share"]) for row in rows) == pytest.approx(2)
    again = run(exported[0], "--runs", 1, "--output", tmp_path)
    assert isinstance(again.exception, FileExistsError)
    assert not again.stdout  # nothing was measured
    assert DeviceReport.from_json(saved.read_text()) == report


def test_command_prints_json(exported):
    result = run(exported[0], "--runs", 2, "--json")
    content = json.loads(result.stdout)
    assert content["report"]["results"][0]["runs"] == 2
    assert content["profiles"] == {}


def test_command_checks_the_folder_first(exported, tmp_path):
    result = run(tmp_path / "missing.tflite", "--output", tmp_path / "nowhere")
    assert isinstance(result.exception, FileNotFoundError)
    assert "nowhere does not exist" in str(result.exception)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--serial", "A"],
        ["--gpu", "--profile"],
        ["--unit", "gpu", "--emulate", "cortex-a76"],
        ["--emulate", "cortex-a76", "--threads", "2"],
    ],
    ids=" ".join,
)
def test_options_that_do_not_go_together(arguments):
    result = run("a.tflite", *arguments)
    assert result.exit_code == 2


def test_profile_of_the_newer_tool():
    profile = read_op_profile(LITERT_RUN)
    assert [(cost.name, cost.calls, cost.amount) for cost in profile] == [
        ("Fully Connected (NC, F32) GEMM", 1, 1.269),
        ("LiteRT::Run[buffer registration]", 1, 0.018),
        ("LiteRT::Run[Buffer sync]", 1, 0.016),
        ("Static Reshape (NC)", 1, 0.004),
    ]
    assert profile[0].share == pytest.approx(1.269 / 1.307)


def test_profile_of_the_classic_tool():
    profile = read_op_profile(CLASSIC_PROFILE)
    # The delegate's own row is the sum of what is inside, and the initialisation no part of an inference.
    assert [(cost.name, cost.calls, cost.amount) for cost in profile] == [
        ("Convolution (NHWC, F32) IGEMM", 1, 6.0),
        ("GELU", 2, 2.0),
        ("Add (ND)", 1, 2.0),
    ]


def test_profile_without_a_table():
    with pytest.raises(ValueError, match=r"No table of operations was found.*STARTING"):
        read_op_profile(CPU_RUN)


class FakePhone:
    """What the script that stands for adb answers, and what it was asked."""

    def __init__(self, state):
        self.state = state
        (state / "phone").mkdir()
        self.answer(devices="28201FDH2000AB\tdevice\n", properties=json.dumps(PROPERTIES), run=CPU_RUN, code="0")

    def answer(self, **texts):
        for name, text in texts.items():
            (self.state / name).write_text(text)

    def commands(self):
        calls = [json.loads(line) for line in (self.state / "calls").read_text().splitlines()]
        return [call[3] for call in calls if call[2:3] == ["shell"]]


@pytest.fixture
def phone(tmp_path, monkeypatch):
    adb = tmp_path / "bin" / "adb"
    adb.parent.mkdir()
    adb.write_text(FAKE_ADB)
    adb.chmod(0o755)
    state = tmp_path / "state"
    state.mkdir()
    monkeypatch.setenv("FAKE_ADB", str(state))
    monkeypatch.setenv("PATH", f"{adb.parent}{os.pathsep}{os.environ['PATH']}")
    return FakePhone(state)


@pytest.fixture
def tool(tmp_path):
    """The head of a program for 64-bit Arm."""
    file = tmp_path / "benchmark_model"
    file.write_bytes(b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x03\x00\xb7\x00" + bytes(100))
    return file


def test_phone_report(phone, tool, exported):
    with AndroidPhone(tool) as connected:
        report = benchmark_on_phone(exported, connected, threads=4, runs=30, warmup=2, command="a command")
    assert (report.device, report.os, report.soc, report.kind) == (
        "Google Pixel 8",
        "Android 16",
        "Google Tensor G3",
        "phone",
    )
    assert report.standard_name == "google_pixel_8_android_16.json"
    assert report.versions["adb"] == "1.0.41"
    assert report.versions["benchmark_model"].startswith("sha256 ")
    result = report.results[0]
    assert (result.runs, result.threads, result.unit) == (50, 4, "cpu")
    # Of the second line of statistics: the first is the warm-up's.
    assert (result.median_ms, result.mean_ms, result.min_ms) == (105.718, 105.784, 105.416)
    assert result.p90_ms is None
    assert "p95 106.3 ms" in result.note
    assert result.load_ms == 87.639
    assert result.memory_mb == pytest.approx(14.8164 * 2**20 / 1e6)
    benchmark = next(command for command in phone.commands() if "--graph" in command)
    for flag in ("--num_threads=4", "--num_runs=30", "--warmup_runs=2", "--use_xnnpack=true"):
        assert flag in benchmark
    assert not (phone.state / "phone").exists()  # nothing is left on it


def test_phone_gpu(phone, tool, exported):
    phone.answer(run=GPU_RUN)
    with AndroidPhone(tool) as connected:
        result = connected.measure(exported[0], gpu=True)
        assert (result.unit, result.threads, result.median_ms) == ("gpu", None, 115.35)
        partly = GPU_RUN.replace(
            "completely executed by the delegate", "partially executed by the delegate w/ 3 delegate kernels"
        )
        phone.answer(run=partly)
        assert "in 3 GPU kernels" in connected.measure(exported[0], gpu=True).note
        phone.answer(
            run=GPU_RUN.replace(
                "Explicitly applied GPU delegate, and the model graph will be completely executed by the delegate",
                "Though GPU delegate is explicitly applied, the model graph will not be executed by the delegate",
            )
        )
        with pytest.raises(DeviceError, match="GPU takes no operation"):
            connected.measure(exported[0], gpu=True)
    assert "--use_gpu=true" in next(command for command in phone.commands() if "--graph" in command)


def test_phone_with_the_newer_tool(phone, tool, exported):
    phone.answer(run=LITERT_RUN, profile=LITERT_RUN)
    with AndroidPhone(tool) as connected:
        result = connected.measure(exported[0])
        assert (result.runs, result.median_ms, result.load_ms) == (1000, 1.373, 4.488)
        assert result.memory_mb == pytest.approx(11.25 * 2**20 / 1e6)
        assert connected.profile(exported[0])[0].name == "Fully Connected (NC, F32) GEMM"


def test_phone_where_all_runs_took_the_same(phone, tool, exported):
    phone.answer(run="INFO: Initialized session in 1e+03ms.\nINFO: count=50 curr=12(all same) p5=12 median=12 p95=12\n")
    with AndroidPhone(tool) as connected:
        result = connected.measure(exported[0])
    assert (result.mean_ms, result.min_ms, result.load_ms, result.memory_mb) == (0.012, 0.012, 1000, None)


def test_an_existing_report_of_a_phone_is_refused_first(phone, tool, exported, tmp_path):
    (tmp_path / "google_pixel_8_android_16.png").touch()
    result = run(exported[0], "--adb", tool, "--output", tmp_path)
    assert isinstance(result.exception, FileExistsError)
    assert not any("--graph" in command for command in phone.commands())


def test_phone_by_the_command(phone, tool, exported):
    phone.answer(profile=CLASSIC_PROFILE)
    result = run(exported[0], "--adb", tool, "--profile", "--threads", 4)
    assert result.exit_code == 0
    assert "Google Pixel 8, Android 16, Google Tensor G3" in result.stdout
    assert "Convolution (NHWC, F32) IGEMM" in result.stdout
    assert str(tool.parent) not in result.stdout


@pytest.mark.parametrize(
    ("devices", "serial", "message"),
    [
        ("", None, "No Android phone is connected"),
        ("A\tdevice\nB\tdevice\n", None, "Several phones are connected: A, B. Name one with --serial"),
        ("A\tdevice\n", "C", "No phone C is connected. Connected: A"),
        ("A\tunauthorized\n", None, "A does not trust this computer yet. Unlock it and allow USB debugging"),
        ("A\toffline\n", None, "adb says 'offline'"),
        ("A\tno permissions (missing udev rules? user is in the plugdev group)\n", None, "no permissions"),
    ],
)
def test_phones_that_cannot_be_used(phone, tool, devices, serial, message):
    phone.answer(devices=devices)
    with pytest.raises(DeviceError, match=re.escape(message)):
        AndroidPhone(tool, serial)


def test_one_of_several_phones(phone, tool):
    phone.answer(devices="A\tdevice\nB\tdevice\n")
    assert AndroidPhone(tool, "B").serial == "B"
    assert phone.commands()  # all of them to B
    calls = [json.loads(line) for line in (phone.state / "calls").read_text().splitlines()]
    assert {tuple(call[:2]) for call in calls if len(call) > 1} == {("-s", "B")}


def test_phone_without_adb(tool, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeviceError, match=r"adb was not found\. Install Android's platform-tools"):
        AndroidPhone(tool)


def test_tools_that_are_none(phone, tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing"):
        AndroidPhone(tmp_path / "nothing")
    for content in (Path(sys.executable).resolve().read_bytes()[:64], b"#!/bin/sh\n", b""):
        other = tmp_path / "other"
        other.write_bytes(content)
        with pytest.raises(ValueError, match="other is not a program for arm64 phones"):
            AndroidPhone(other)


def test_phone_failures(phone, tool, exported, tmp_path):
    with AndroidPhone(tool) as connected:
        with pytest.raises(FileNotFoundError, match=r"missing\.tflite"):
            connected.measure(tmp_path / "missing.tflite")
        phone.answer(run=FAILED_RUN, code="1")
        with pytest.raises(DeviceError, match=r"failed: ERROR: Node number 57 \(BATCH_MATMUL\) failed to prepare"):
            connected.measure(exported[0])
        older = re.sub(r" p5=.*", "", CPU_RUN)
        phone.answer(run=older, code="0")
        with pytest.raises(ValueError, match=r"was not understood: expected a line 'count=.*newer build"):
            connected.measure(exported[0])


def test_one_interrupted_run_does_not_show():
    runs = [CLASSIC_PROFILE, CLASSIC_PROFILE, CLASSIC_PROFILE.replace("    6.000", "  900.000")]
    assert median_profile([read_op_profile(text) for text in runs]) == read_op_profile(CLASSIC_PROFILE)
