"""Which modes are meant for which devices, and which of them to take: the rules of recommendations.

What runs where is what the tables in tflite/README.md ("Where each mode runs") and coreml/README.md of the source tree
say; what can be measured here is measured. Room: deploy/comparison.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from keras_efficientformer.deploy.benchmark.reports import short_number
from keras_efficientformer.deploy.comparison.modes import COREML, TFLITE
from keras_efficientformer.deploy.comparison.results import CostOf, ModeResult
from keras_efficientformer.deploy.coreml.modes import COMPRESSIONS
from keras_efficientformer.deploy.tflite.modes import MODES

# CPUs have slow reference kernels for "int16x8", and GPUs none.
TFLITE_MODES = tuple(f"{TFLITE}:{name}" for name in MODES if name != "int16x8")
# GPUs compute quantized values in float, so these lose nothing there by being larger.
TFLITE_FLOATS = (f"{TFLITE}:none", f"{TFLITE}:float16")
# Neural Engines multiply int8 by int8 faster since A17 Pro and M4; older ones unpack such activations at run time.
INT8_ACTIVATIONS = tuple(f"{COREML}:{name}" for name, kind in COMPRESSIONS.items() if kind.int8_activations)
# Neural Engines compute in float16, whatever way weights are stored.
COREML_FLOAT16 = (
    f"{COREML}:float16",
    *(f"{COREML}:{name}" for name, kind in COMPRESSIONS.items() if name != "none" and not kind.int8_activations),
)

# By default: more would take too long, and fewer would not tell modes apart that differ by half a point.
IMAGES_SCORED = 1000


@dataclass(frozen=True)
class Measure:
    """What is least of the mode that is taken.

    Attributes:
        of: the number.
        unit: what stands after it.
        least: what the least of it is called.
        caveat: what has to be said of it besides.
    """

    of: CostOf
    unit: str
    least: str
    caveat: str = ""


MEGABYTES = Measure(lambda result: result.size and result.size / 1e6, "MB", "the smallest")
INSTRUCTIONS = Measure(lambda result: result.instructions, "million Arm instructions an image", "the fewest")
MILLISECONDS = Measure(
    lambda result: result.milliseconds,
    "ms an image on this computer",
    "the fastest",
    "; phones may order modes otherwise: tflite/arm/setup.sh sets up an emulator that counts Arm instructions",
)


@dataclass(frozen=True)
class TargetRules:
    """A kind of device.

    Attributes:
        groups: names of the modes that are meant for it; one of a later group is taken only where none of an earlier
            is fit.
        measures: the first that is known of all modes of a group decides.
        why: what speaks for these modes and this measure.
        alike: share by which a number may be above the least and count as alike; of alike modes that is taken which
            costs a CPU least.
    """

    groups: tuple[tuple[str, ...], ...]
    measures: tuple[Measure, ...]
    why: str
    alike: float | None = None


WORK = (INSTRUCTIONS, MILLISECONDS)
TARGET_RULES = {
    "android-cpu": TargetRules((TFLITE_MODES,), WORK, "what counts on a CPU is the work"),
    "android-gpu": TargetRules(
        (TFLITE_FLOATS,),
        (MEGABYTES,),
        "a GPU computes in float whatever is stored, so integers would only lose accuracy",
    ),
    "iphone": TargetRules(
        (COREML_FLOAT16,),
        (MEGABYTES,),
        "the Neural Engine computes in float16 however weights are stored, so size decides",
    ),
    "iphone-a17": TargetRules(
        (INT8_ACTIVATIONS, COREML_FLOAT16),
        (MEGABYTES,),
        "since A17 Pro the Neural Engine multiplies int8 faster, and else computes in float16",
    ),
    "web": TargetRules(
        (TFLITE_MODES,), (MEGABYTES,), "in browsers quantized files are smaller downloads and little faster", 0.05
    ),
}

Advice = tuple[str | None, str]


def check_target_name(name: str) -> None:
    """Raises ValueError for the name of a target that there is not; the message has the nearest."""
    if name not in TARGET_RULES:
        nearest = difflib.get_close_matches(name, TARGET_RULES, n=2)
        hint = f" Did you mean {' or '.join(nearest)}?" if nearest else ""
        raise ValueError(f"The target should be one of {', '.join(TARGET_RULES)}. Received: {name!r}.{hint}")


def targets_of(results: Sequence[ModeResult]) -> tuple[str, ...]:
    """The targets for which at least one mode was measured."""
    measured = {result.mode for result in results if result.scores}
    return tuple(name for name, rules in TARGET_RULES.items() if any(measured & set(group) for group in rules.groups))


def recommend(results: Sequence[ModeResult], target: str, max_drop: float, images: int) -> Advice:
    """The mode to take for a target and the reason in a sentence; None in the place of the mode where none is fit.

    Args:
        results: of the modes that were compared.
        target: a key of `TARGET_RULES`.
        max_drop: points that top-1 may drop by.
        images: how many the modes were scored on.
    """
    rules = TARGET_RULES[target]
    meant = [name for group in rules.groups for name in group]
    measured = {result.mode: result for result in results if result.mode in meant and result.scores is not None}
    if not measured:
        return None, f"For {target} nothing can be said: none of {', '.join(meant)} was measured."
    for place, group in enumerate(rules.groups):
        fit = [measured[name] for name in group if name in measured and _is_fit(measured[name], target, max_drop)]
        if fit:
            passed_over = [name for earlier in rules.groups[:place] for name in earlier]
            return _taken(fit, passed_over, measured, target, max_drop, images)
    return None, _none_fit(list(measured.values()), target, max_drop, images)


def _is_fit(result: ModeResult, target: str, max_drop: float) -> bool:
    """Whether a mode keeps within the drop and the device computes all of its file. Where no GPU could be asked, the
    README's table is taken: it has whole all modes that are meant for one."""
    is_run = target != "android-gpu" or result.gpu is None or result.gpu[0] == "whole"
    return is_run and result.scores is not None and result.scores.keeps_within(max_drop)


def _taken(
    fit: Sequence[ModeResult],
    passed_over: Sequence[str],
    measured: Mapping[str, ModeResult],
    target: str,
    max_drop: float,
    images: int,
) -> Advice:
    rules = TARGET_RULES[target]
    measure = _first_known(rules.measures, fit)
    least = min(_number(measure, result) for result in fit)
    alike = [result for result in fit if _number(measure, result) <= least * (1 + (rules.alike or 0))]
    last = measure if rules.alike is None else _first_known(WORK, alike)
    best = min(alike, key=lambda result: (_number(last, result), _number(measure, result)))
    assert best.scores is not None
    numbers = " and ".join(f"{short_number(_number(m, best))} {m.unit}" for m in dict.fromkeys((measure, last)))
    among = f"{measure.least} of the {len(fit)} modes for it" if len(fit) > 1 else "the one mode for it"
    if len(alike) > 1 and last is not measure:
        among = f"{last.least} of what is within {rules.alike:.0%} of {among}"
    reasons = [
        rules.why,
        *(f"{name} {'loses more' if name in measured else 'was not compared'}" for name in passed_over),
    ]
    if best.scores.may_exceed(max_drop):
        reasons.append("on other images it may be beyond that, and more of them (--images) say more")
    return best.mode, (
        f"For {target} take {best.mode}: {numbers}, {among} within {max_drop:g} points of Keras, "
        f"{best.scores.beside_keras(images)}; {'; '.join(reasons)}{last.caveat}."
    )


def _first_known(measures: Sequence[Measure], results: Sequence[ModeResult]) -> Measure:
    """The first of some measures that is known of all results."""
    return next(measure for measure in measures if all(measure.of(result) is not None for result in results))


def _number(measure: Measure, result: ModeResult) -> float:
    number = measure.of(result)
    assert number is not None
    return number


def _none_fit(measured: Sequence[ModeResult], target: str, max_drop: float, images: int) -> str:
    refused = [f"{result.mode} ({result.gpu[1]})" for result in measured if result.gpu and result.gpu[0] != "whole"]
    if target == "android-gpu" and len(refused) == len(measured):
        return f"For {target} no mode is fit: the GPU computes none of them whole and rightly, {'; '.join(refused)}."
    scores, mode = min(
        ((result.scores, result.mode) for result in measured if result.scores),
        key=lambda pair: pair[0].drop,
    )
    return (
        f"For {target} none of the {len(measured)} modes for it that were measured is within {max_drop:g} points of "
        f"Keras: {mode} comes nearest, {scores.beside_keras(images)}."
    )
