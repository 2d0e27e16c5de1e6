"""Names the modes that can be compared, of both exporters, and says which of them can be made here.

The names are the exporters' own: a new mode of theirs is compared by itself. Room: deploy/comparison.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from keras_efficientformer.deploy.coreml.modes import COMPRESSIONS, COREML_PRECISIONS
from keras_efficientformer.deploy.tflite.modes import MODES
from keras_efficientformer.errors import require_installed

TFLITE, COREML = "tflite", "coreml"
# The extra of this package that brings what a format's files are made with.
EXTRAS = {TFLITE: "litert", COREML: "coreml"}


@dataclass(frozen=True)
class ComparedMode:
    """One mode of one format.

    Attributes:
        name: "tflite:int8", "coreml:palette4".
        options: of `export_tflite` or `export_coreml`.
        modules: what its files are made with, by the names that are imported.
        calibrated: whether the exporter gets images to calibrate on; those that measure no ranges compare on them.
    """

    name: str
    options: dict[str, Any] = field(hash=False)
    modules: tuple[str, ...]
    calibrated: bool = False

    @property
    def format(self) -> str:
        return self.name.partition(":")[0]

    def check_installed(self) -> None:
        """Raises ImportError where something that its files are made with is not installed; it imports nothing."""
        for module in self.modules:
            require_installed(module, f"The mode {self.name}", EXTRAS[self.format])


def all_modes() -> dict[str, ComparedMode]:
    """{name: mode} of all that the exporters make, each as its exporter has it by default: for Core ML in float16, but
    for "float32"."""
    found = [ComparedMode(f"{TFLITE}:{name}", {"quantize": name}, mode.modules, True) for name, mode in MODES.items()]
    found += [ComparedMode(f"{COREML}:{name}", {"precision": name}, ("coremltools",)) for name in COREML_PRECISIONS]
    for name, compression in COMPRESSIONS.items():
        if name != "none":
            # coremltools makes palettes with scikit-learn, which it does not ask for.
            modules = ("coremltools", "sklearn") if name.startswith("palette") else ("coremltools",)
            options = {"compress": name, "minimum_ios": compression.minimum_ios}
            found.append(ComparedMode(f"{COREML}:{name}", options, modules, compression.measures))
    return {mode.name: mode for mode in found}


def chosen_modes(names: Sequence[str] | None, without: Sequence[str] = ()) -> tuple[list[ComparedMode], dict[str, str]]:
    """The modes to compare, and those that cannot be made here.

    Args:
        names: of modes; None means all that can be made here.
        without: names of modes that are left out.

    Returns:
        The modes, and {name: what is not installed} of those that would be among them.

    Raises:
        ValueError: there is no mode of a name, which the message says with the nearest, or none is left.
        ImportError: a mode that is asked for by its name cannot be made here.
    """
    known = all_modes()
    for name in (*(names or ()), *without):
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
            hint = f"Did you mean {' or '.join(nearest)}? " if nearest else ""
            raise ValueError(f"There is no mode {name!r}. {hint}The modes are {', '.join(known)}.")
    wanted = [known[name] for name in dict.fromkeys(names or known) if name not in without]
    missing = {}
    for mode in wanted:
        try:
            mode.check_installed()
        except ImportError as error:
            if names is not None:
                raise
            missing[mode.name] = str(error)
    found = [mode for mode in wanted if mode.name not in missing]
    if not found:
        raise ValueError(f"No mode is left to compare. {' '.join(missing.values()) or 'Leave fewer out.'}")
    return found, missing
