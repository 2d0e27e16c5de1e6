"""A Mac with an iPhone that are not there: Xcode's tools, the phone behind them, and Core ML's binding.

What is faked is what only Apple's machines have: the programs `xcrun`, `devicectl`, `xcodebuild` and `sysctl`, the app
ModelRunner, which answers the requests that coremltools leaves in its folder, and coremltools' compiled binding to Core
ML. Everything above is coremltools' own code. Run as a program this file is those tools, by the name it is called by.
"""

import argparse
import importlib
import itertools
import json
import shutil
import struct
import sys
import tempfile
import types
from pathlib import Path

TEAM = "A1B2C3D4E5"
MODEL_RUNNER = Path("Documents") / "modelrunnerd"
TOOLS = ("devicectl", "sysctl", "xcodebuild", "xcrun")
LOAD_MS = 12.5
PLAN = "operations.json"


def phone(name="Anna's iPhone", **properties):
    """An iPhone 12 as `devicectl list devices` lists it, at rest; `properties` replace its own."""
    entry = {
        "connectionProperties": {"pairingState": "paired", "transportType": "wired", "tunnelState": "disconnected"},
        "deviceProperties": {
            "ddiServicesAvailable": True,
            "developerModeStatus": "enabled",
            "name": name,
            "osBuildUpdate": "21E236",
            "osVersionNumber": "17.4.1",
        },
        "hardwareProperties": {
            "deviceType": "iPhone",
            "marketingName": "iPhone 12",
            "platform": "iOS",
            "productType": "iPhone13,2",
            "udid": f"00008101-{name.encode().hex()}",
        },
        "identifier": f"6AE1F5B0-{name.encode().hex()}",
        "visibilityClass": "default",
    }
    for group in ("connection", "device", "hardware"):
        known = entry[f"{group}Properties"]
        known.update((key, value) for key, value in properties.items() if key in known)
    return entry


class FakeMac:
    """A folder with the tools, to be put on the PATH, and beside them what the phone holds and has been asked for."""

    def __init__(self, folder):
        self.folder = folder
        self.tools = folder / "tools"
        self.tools.mkdir()
        for tool in TOOLS:
            self.add_tool(tool)
        (folder / "ModelRunner.xcworkspace").mkdir()
        self.set(phones=[phone()], xcode="16.2")

    def add_tool(self, name):
        script = self.tools / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -E "{__file__}" "{self.folder}" {name} "$@"\n')
        script.chmod(0o755)

    def set(self, **state):
        """What the Mac and its phone are like: `phones`, `xcode`, and what goes wrong, `unreachable`, `unsigned`."""
        path = self.folder / "state.json"
        path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | state))

    def requests(self, method):
        """The parameters of the requests of one kind that the phone has answered."""
        log = [json.loads(line) for line in (self.folder / "log").read_text().splitlines()]
        return [request["params"] for request in log if request["method"] == method]


def install(monkeypatch, mac, release="15.1"):
    """Makes this process believe that it runs on the Mac, with coremltools' binding to Core ML."""
    from coremltools.models import compute_device, compute_plan, model, utils
    from coremltools.models.ml_program.experimental import compute_plan_utils, remote_device

    monkeypatch.setattr("platform.mac_ver", lambda: (release, ("", "", ""), "arm64"))
    monkeypatch.setenv("PATH", f"{mac.tools}:{shutil.os.environ['PATH']}")
    binding = types.ModuleType("coremltools.libcoremlpython")
    names = ("_MLModelProxy", "_MLComputePlanProxy", "_MLCPUComputeDeviceProxy", "_MLGPUComputeDeviceProxy")
    for name in (*names, "_MLNeuralEngineComputeDeviceProxy"):
        setattr(binding, name, globals()[name])
        for module in (model, compute_plan, compute_device):
            monkeypatch.setattr(module, name, globals()[name], raising=False)
    monkeypatch.setitem(sys.modules, binding.__name__, binding)
    for module in (model, utils):
        monkeypatch.setattr(module, "_macos_version", lambda: (15, 1))
    # The app's sources are in coremltools' packages for Macs only.
    monkeypatch.setattr(remote_device._ModelRunnerAppBuilder, "_get_project_path", lambda: mac.folder)
    importlib.reload(compute_plan_utils)


class _MLComputePlanProxy:
    """What coremltools' plan for a phone is derived from."""


class _LocalPlan(_MLComputePlanProxy):
    """Core ML's plan for this Mac."""

    def __init__(self, path, unit):
        self.unit = unit
        self.model_structure = _MLModelProxy.get_model_structure(path)

    def get_compute_device_usage_for_mlprogram_operation(self, operation):
        from coremltools.models import compute_device as devices
        from coremltools.models.compute_plan import MLComputePlanDeviceUsage

        kinds = {
            "cpu": (devices.MLCPUComputeDevice, _MLCPUComputeDeviceProxy),
            "neuralEngine": (devices.MLNeuralEngineComputeDevice, _MLNeuralEngineComputeDeviceProxy),
        }
        if operation.operator_name == "const":
            return None
        device, proxy = kinds[preferred(operation.operator_name, self.unit)]
        return MLComputePlanDeviceUsage(device(proxy()), [device(proxy())])

    def get_estimated_cost_for_mlprogram_operation(self, operation):
        from coremltools.models.compute_plan import MLComputePlanCost

        return None if operation.operator_name == "const" else MLComputePlanCost(weight(operation.operator_name))


class _MLCPUComputeDeviceProxy:
    pass


class _MLGPUComputeDeviceProxy:
    pass


class _MLNeuralEngineComputeDeviceProxy:
    pass


class _MLModelProxy:
    """A model that Core ML has loaded on this Mac; predictions take 1.00, 1.01, 1.02 ... milliseconds."""

    def __init__(self, path, unit, function, hints, asset):
        self._compiled = self.compileModel(path)
        self._milliseconds = (1 + 0.01 * count for count in itertools.count())

    def predict(self, inputs, state):
        self._last = next(self._milliseconds)
        return {}

    def get_compiled_model_path(self):
        return self._compiled

    def get_load_duration_in_nano_seconds(self):
        return int(1e6 * LOAD_MS)

    def get_last_predict_duration_in_nano_seconds(self):
        return round(1e6 * self._last)

    @staticmethod
    def maximum_supported_specification_version():
        return 9

    @staticmethod
    def compileModel(path):
        """A compiled model that holds nothing but the kinds and outputs of the program's operations."""
        import coremltools as ct

        function = ct.models.MLModel(str(path), skip_model_load=True).get_spec().mlProgram.functions["main"]
        block = function.block_specializations[function.opset]
        operations = [(operation.type, [output.name for output in operation.outputs]) for operation in block.operations]
        compiled = Path(tempfile.mkdtemp()) / "model.mlmodelc"
        compiled.mkdir()
        (compiled / PLAN).write_text(json.dumps(operations))
        return str(compiled)

    @staticmethod
    def get_model_structure(path):
        from coremltools.models import compute_plan as structure

        operations = [
            structure.MLModelStructureProgramOperation(
                {}, kind, [structure.MLModelStructureProgramNamedValueType(name, None) for name in outputs], [], None
            )
            for kind, outputs in json.loads((Path(path) / PLAN).read_text())
        ]
        block = structure.MLModelStructureProgramBlock([], operations, [])
        function = structure.MLModelStructureProgramFunction([], block)
        return structure.MLModelStructure(None, structure.MLModelStructureProgram({"main": function}), None)

    @staticmethod
    def get_compute_plan(path, unit):
        from coremltools.models.compute_plan import MLComputePlan

        return MLComputePlan(_LocalPlan(path, unit))


def preferred(kind, unit):
    return "cpu" if unit == "CPU_ONLY" or kind == "linear" else "neuralEngine"


def weight(kind):
    return 0.008 if kind == "conv" else 0.001


def main(folder, tool, *arguments):
    folder = Path(folder)
    state = json.loads((folder / "state.json").read_text())
    if tool == "xcrun":
        if arguments[0] == "--find":
            print(folder / "tools" / arguments[1])
            return 0
        tool, *arguments = arguments
    return globals()[tool](folder, state, list(arguments))


def sysctl(folder, state, arguments):
    print({"hw.model": "MacBookPro18,3", "machdep.cpu.brand_string": "Apple M1 Pro"}[arguments[-1]])
    return 0


def xcodebuild(folder, state, arguments):
    if arguments == ["-version"]:
        print(f"Xcode {state['xcode']}\nBuild version 16C5032a")
        return 0
    settings = dict(argument.split("=", 1) for argument in arguments if "=" in argument and argument[0].isupper())
    if state.get("unsigned") or settings.get("DEVELOPMENT_TEAM") != TEAM:
        print("error: No Account for Team. Add a new account in Accounts settings.")
        return 65
    app = Path(settings["SYMROOT"]) / "Release-iphoneos" / "modelrunner.app"
    app.mkdir(parents=True)
    (app / "bundle").write_text(settings["PRODUCT_BUNDLE_IDENTIFIER"])
    return 0


def devicectl(folder, state, arguments):
    parser = argparse.ArgumentParser()
    parser.add_argument("words", nargs="*")
    parser.add_argument("-j", "--json-output", dest="answer")
    parser.add_argument("-d", "--device")
    for option in ("--source", "--destination", "--user", "--domain-type", "--domain-identifier"):
        parser.add_argument(option)
    parser.add_argument("--console", action="store_true")
    call = parser.parse_intermixed_args(arguments)
    result = {}
    match call.words:
        case ["list", "devices"]:
            result = {"devices": state["phones"]}
        case ["device", "info", "details"] if state.get("unreachable"):
            print("ERROR: The device is not available.", file=sys.stderr)
            return 1
        case ["device", "install", "app", app]:
            bundle = (Path(app) / "bundle").read_text()
            result = {"installedApplications": [{"bundleID": bundle, "databaseUUID": "1"}]}
        case ["device", "process", "launch", _]:
            sys.stdin.read()  # the app runs until it is stopped
        case ["device", "copy", "to"]:
            receive(folder, state, Path(call.source), Path(call.destination))
            result = {"source": call.source, "destination": call.destination}
        case ["device", "copy", "from"]:
            shutil.copy(folder / "phone" / call.source, call.destination)
            result = {"source": call.source, "destination": call.destination}
    if call.answer:
        Path(call.answer).write_text(json.dumps({"info": {"outcome": "success"}, "result": result}))
    return 0


def receive(folder, state, source, destination):
    """A file reaches the app's folder on the phone; of a request there is an answer at once."""
    target = folder / "phone" / destination
    target.parent.mkdir(parents=True)
    if source.is_dir():
        shutil.copytree(source, target)
        return
    shutil.copy(source, target)
    if destination.name != "message.json":
        return
    request = json.loads(target.read_text())
    with (folder / "log").open("a") as log:
        log.write(json.dumps(request) + "\n")
    home = folder / "phone" / MODEL_RUNNER
    resource = home / "requests" / "resources" / request["id"] / request.get("resource", "")
    answer = home / "responses" / request["id"]
    answer.mkdir(parents=True)
    message = {"jsonrpc": "2.0", "id": request["id"]}
    if state.get("refuses") == request["method"]:
        message["error"] = {"code": -32001, "message": "Failed to build the model execution plan."}
    else:
        message |= run(folder / request["params"]["modelID"], request, resource, answer)
    (answer / "message.json").write_text(json.dumps(message))


def run(model, request, resource, answer):
    """What ModelRunner answers, as in coremltools/modelrunner; predictions take 1.00, 1.01, 1.02 ... milliseconds."""
    result = {"modelID": request["params"]["modelID"]}
    method = request["method"]
    if method == "MLModelService.Load":
        model.mkdir()
        shutil.copy(resource / PLAN, model)
        (model / "unit").write_text(request["params"]["computeUnits"])
        return {"result": result | {"duration": int(1e6 * LOAD_MS), "isCached": False}}
    if method == "MLModelService.Prediction":
        (tensor,) = request["params"]["inputs"].values()
        assert resource.stat().st_size == tensor["storage"]["size"]
        count = len(list(model.glob("prediction*")))
        (model / f"prediction{count}").touch()
        (answer / "outputs.bin").write_bytes(struct.pack("<f", 0.5))
        storage = {"offset": 0, "size": 4}
        logits = {"shape": [1, 1], "strides": [1, 1], "dataType": "Float32", "storage": storage}
        duration = round(1e6 * (1 + 0.01 * count))
        return {"result": result | {"outputs": {"logits": logits}, "duration": duration}, "resource": "outputs.bin"}
    if method == "MLModelService.ComputePlan":
        unit = (model / "unit").read_text()
        infos = [
            info(kind, name, unit)
            for kind, outputs in json.loads((model / PLAN).read_text())
            for name in outputs
            if kind != "const"
        ]
        return {"result": result | {"infos": infos}}
    shutil.rmtree(model)  # MLModelService.Unload
    return {"result": result}


def info(kind, name, unit):
    device = {preferred(kind, unit): {"totalCoreCount": 16}}
    steps = [
        {"program": {}},
        {"programFunction": {"data": {"name": "main"}}},
        {"programBlock": {"data": {"index": -1}}},
        {"programOperation": {"data": {"outputName": name}}},
    ]
    return {
        "deviceUsage": {"preferred": device, "supported": [device]},
        "estimatedCost": weight(kind),
        "path": {"components": steps},
    }


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
