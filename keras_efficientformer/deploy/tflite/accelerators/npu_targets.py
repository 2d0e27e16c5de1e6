"""Names the NPUs that LiteRT compiles for, and finds what their makers bring. Room: deploy/tflite/accelerators.

The chips are those of LiteRT's own tables. A maker's compiler is no part of LiteRT: it comes in a package of LiteRT's,
which downloads it from the maker while it is installed, and which the user installs. OpenVINO is Intel's, and is
published as a package of its own.
"""

import contextlib
import difflib
import importlib
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from keras_efficientformer.errors import first_line, listing, require

NPU_JOB = "Compiling for an NPU"
# {maker, as `npu` names it: LiteRT's name of its folder and package}.
MAKERS = {
    "google": "google_tensor",
    "intel": "intel_openvino",
    "mediatek": "mediatek",
    "qualcomm": "qualcomm",
    "samsung": "samsung",
}
INTEL_CPU = "intel"
# What LiteRT's plugin is linked to, e.g. libopenvino.so.2631 of OpenVINO 2026.3.1: no other release can take its place.
OPENVINO_LIBRARY = re.compile(rb"libopenvino\.so\.(\d\d)(\d)(\d)\b")


@dataclass(frozen=True)
class NPUTarget:
    """An NPU to compile for.

    Attributes:
        name: "qualcomm:SM8750"; "intel" is OpenVINO on the CPU, which needs no NPU.
        litert: LiteRT's `Target`.
        suffix: what LiteRT adds to a compiled file's name, e.g. "_Qualcomm_SM8750".
        packages: the maker's, whose versions a report has.
        options: of LiteRT's compiler.
        libraries: the folder of what runs a compiled file on this computer; None where nothing can.
    """

    name: str
    litert: Any
    suffix: str
    packages: tuple[str, ...]
    options: Mapping[str, str] = field(default_factory=dict)
    libraries: Path | None = None


def npu_target(name: str) -> NPUTarget:
    """The NPU of a name, for which everything is installed.

    Args:
        name: "maker:chip" in any spelling of its letters, one of `npu_names`.

    Raises:
        ValueError: there is none of that name; the message has the nearest.
        ImportError: LiteRT, what the maker brings, or the right release of it is not installed, or it is empty.
    """
    require("ai_edge_litert.aot.aot_compile", NPU_JOB, "litert")
    known = {known_name.lower(): known_name for known_name in npu_names()}
    found = known.get(name.lower())
    if found is None:
        raise ValueError(f"`npu` should name an NPU that LiteRT compiles for. Received: {name!r}. {_hint(name, known)}")
    maker, _, chip = found.partition(":")
    tables = _tables(maker)
    if maker == "intel":
        return _intel(found, tables.Target(tables.SocModel(chip or _chips("intel")[0])))
    target = tables.Target(tables.SocModel(chip))
    package = f"ai_edge_litert_sdk_{MAKERS[maker]}"
    # MediaTek's package holds an SDK for each generation of its chips.
    generation = [target.recommended_np_version] if maker == "mediatek" else []
    _sdk(found, package, *generation)
    return NPUTarget(found, target, f"_{target!r}", (package.replace("_", "-"),))


def npu_names() -> list[str]:
    """The names that `npu_target` takes, by maker."""
    return [INTEL_CPU, *(f"{maker}:{chip}" for maker in MAKERS for chip in _chips(maker))]


def _chips(maker: str) -> list[str]:
    return [chip.value for chip in _tables(maker).SocModel if chip.name != "ALL"]


def _tables(maker: str) -> Any:
    return importlib.import_module(f"ai_edge_litert.aot.vendors.{MAKERS[maker]}.target")


def _hint(name: str, known: Mapping[str, str]) -> str:
    maker = name.lower().partition(":")[0]
    nearest = [known[found] for found in difflib.get_close_matches(name.lower(), known)]
    if nearest and ":" in name:
        return f"Did you mean {' or '.join(nearest)}?"
    if maker in MAKERS:
        return f"Its names are {listing([f'{maker}:{chip}' for chip in _chips(maker)])}."
    return f"A name is a maker and a chip, qualcomm:SM8750; the makers are {', '.join(MAKERS)}."


def _sdk(name: str, package: str, *arguments: str) -> Path:
    """The folder of a maker's compiler."""
    pip_name = package.replace("_", "-")
    try:
        module = importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f"Compiling for {name} needs its maker's compiler: pip install {pip_name}, which downloads it from the "
            "maker (Linux on x86; its licence is the maker's).",
            name=package,
        ) from error
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # it prints what is said here
            libraries = module.path_to_sdk_libs(*arguments)
    except NotImplementedError as error:
        raise ImportError(f"{pip_name} cannot be used here: {first_line(error)}.", name=package) from error
    if libraries is None or not Path(libraries).is_dir():
        raise ImportError(
            f"{pip_name} is installed without the compiler that it should have downloaded from the maker: install it "
            f"again where that can be reached, pip install --force-reinstall --no-cache-dir {pip_name}",
            name=package,
        )
    return Path(libraries)


def _intel(name: str, target: Any) -> NPUTarget:
    libraries = _openvino()
    if name != INTEL_CPU:
        _sdk(name, "ai_edge_litert_sdk_intel")
        return NPUTarget(name, target, f"_{target!r}", ("openvino", "ai-edge-litert-sdk-intel"))
    options = {"intel_openvino_graph_backends": "cpu"}
    return NPUTarget(name, target, f"_{target.soc_manufacturer.value}_CPU", ("openvino",), options, libraries)


def _openvino() -> Path:
    """The folder of the OpenVINO libraries that LiteRT's plugin is linked to."""
    from ai_edge_litert.aot.vendors.intel_openvino.intel_openvino_backend import get_compiler_plugin_dir

    folder = get_compiler_plugin_dir()
    if folder is None:
        raise ImportError("ai-edge-litert brings no compiler for Intel on this system: it does on Linux on x86.")
    openvino = require("openvino", NPU_JOB, "npu-intel")
    libraries = Path(openvino.__file__).parent / "libs"
    for plugin in Path(folder).iterdir():
        wanted = OPENVINO_LIBRARY.search(plugin.read_bytes())
        if wanted and not (libraries / wanted[0].decode()).exists():
            year, release, patch = (part.decode() for part in wanted.groups())
            raise ImportError(
                f"ai-edge-litert {version('ai-edge-litert')} is made for OpenVINO 20{year}.{release}.{patch}, and "
                f"{version('openvino')} is installed: pip install openvino==20{year}.{release}.{patch}",
                name="openvino",
            )
    return libraries
