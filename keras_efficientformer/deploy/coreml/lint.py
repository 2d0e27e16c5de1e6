"""Finds in an ML Program what public sources say leaves the Neural Engine, or is slow on it. Room: deploy/coreml.

There is no list of what the Neural Engine runs: it depends on device, system and sizes, a coremltools maintainer says
(https://github.com/apple/coremltools/issues/1780). So every rule names its sources, and says whether Apple states it or
others measured it. The last word is the compute plan's, on the device; this lint runs anywhere.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from coremltools.converters.mil.mil import Operation, Program, Var, types

from keras_efficientformer.deploy.coreml.int8.coverage import kept_in_float
from keras_efficientformer.deploy.coreml.program import (
    bits_of,
    computed_tensors,
    computing_operations,
    dtype_name,
    is_constant,
    is_flexible,
    is_numeric,
    shape_of,
)
from keras_efficientformer.deploy.coreml.public_pages import (
    ACTIVATIONS_IN_INT8,
    ATTENTION_PLANS,
    CORE_AI_RULES,
    FLEXIBLE_SHAPES,
    GATHER_PLAN,
    GRID_SAMPLE,
    MOBILENET_LOG,
    RECURRENT,
    TRANSFORMERS,
    TYPED_EXECUTION,
    UNSUPPORTED_LAYERS,
    WIDTH_PROBE,
    YOLO,
    PublicPage,
)

# The Neural Engine aligns each row, the last axis of its buffers, to this many bytes.
ROW_ALIGNMENT = 64
LONGEST_AXIS = 16384
LARGEST_CONVOLUTION = 7
LARGEST_POOL = {"avg_pool": 13, "max_pool": 7}
# Apple lists those above 3 as equal strides that "factor cleanly into 2s and 3s"; 1, 2 and 3 do as well.
CONVOLUTION_STRIDES = (1, 2, 3, 4, 6, 8, 9, 12, 16, 24, 32)
STRIDES_BESIDE_2 = (1, 2, 3, 4, 8, 9)
POOL_STRIDES = (1, 2, 4)
DILATIONS = (1, 2, 3)
UPSAMPLING_FACTORS = (1, 2)
UPSAMPLING = ("upsample_nearest_neighbor", "upsample_bilinear", "resize_nearest_neighbor", "resize_bilinear", "resize")
ELEMENTWISE = ("add", "sub", "mul", "real_div", "maximum", "minimum", "pow")


@dataclass(frozen=True)
class Rule:
    """One thing to look for.

    Attributes:
        name: short, for reports.
        summary: what the sources say, and whether it is Apple or a measurement by others that says it.
        advice: what to do about it.
        sources: the pages, the weightier one first.
        check: says what is wrong with an operation, or None; operations that make constants are not asked about.
    """

    name: str
    summary: str
    advice: str
    sources: tuple[PublicPage, ...]
    check: Callable[[Operation], str | None]


@dataclass(frozen=True)
class Finding:
    """One operation that a rule is about.

    Attributes:
        rule: its name.
        operation: name of the operation.
        operation_type: its type in MIL, such as "conv".
        message: what was found.
        advice: what to do.
    """

    rule: str
    operation: str
    operation_type: str
    message: str
    advice: str


def lint(program: Program, function: str | None = None) -> tuple[Finding, ...]:
    """What `RULES` find in a coremltools MIL program, in one function or all, rule by rule and in the program's order.

    No finding is no promise: the Neural Engine is chosen by Core ML on the device.
    """
    operations = list(computing_operations(program, function))
    return tuple(
        Finding(rule.name, operation.name, operation.op_type, message, rule.advice)
        for rule in RULES
        for operation in operations
        if (message := rule.check(operation)) is not None
    )


def _operands(operation: Operation) -> list[Var]:
    """The tensors that an operation computes from, constants left out."""
    values = (
        var for value in operation.inputs.values() for var in (value if isinstance(value, list | tuple) else [value])
    )
    return [var for var in values if not is_constant(var) and is_numeric(var)]


def _first(tensors: Iterable[Var], is_bad: Callable[[Var], bool], describe: Callable[[Var], str]) -> str | None:
    """`describe` of the first of `tensors` that `is_bad`, or None."""
    return next((describe(var) for var in tensors if is_bad(var)), None)


def _attribute(operation: Operation, name: str) -> tuple[int, ...]:
    """The values of a constant argument, such as "strides"."""
    return tuple(map(int, operation.inputs[name].val))


def _is_type(*names: str) -> Callable[[Operation], str | None]:
    """A rule's check that finds every operation of these types."""

    def check(operation: Operation) -> str | None:
        if operation.op_type not in names:
            return None
        return f"{operation.op_type} gives {shape_of(operation.outputs[0])}"

    return check


def _float32(operation: Operation) -> str | None:
    # The inputs and outputs of a program may be float32, and are cast.
    if operation.op_type == "cast":
        return None
    return _first(
        computed_tensors(operation), lambda var: var.dtype == types.fp32, lambda var: f"{var.name} is float32"
    )


def _other_dtype(operation: Operation) -> str | None:
    known = (types.fp32, types.fp16, types.int8, types.int16)
    return _first(
        computed_tensors(operation), lambda var: var.dtype not in known, lambda var: f"{var.name} is {dtype_name(var)}"
    )


def _flexible_shape(operation: Operation) -> str | None:
    """An unknown size, only where it comes in: everything that follows has it too."""
    if any(is_flexible(var) for var in _operands(operation) if var.op is not None):
        return None
    return _first(computed_tensors(operation), is_flexible, lambda var: f"{var.name} has the shape {shape_of(var)}")


def _rank(operation: Operation) -> str | None:
    return _first(
        computed_tensors(operation),
        lambda var: var.rank == 3 or var.rank > 4,
        lambda var: f"{var.name} has the shape {shape_of(var)}, which has {var.rank} axes",
    )


def _long_axis(operation: Operation) -> str | None:
    def is_long(var: Var) -> bool:
        return any(not types.symbolic.is_symbolic(side) and side > LONGEST_AXIS for side in var.shape)

    return _first(computed_tensors(operation), is_long, lambda var: f"{var.name} has the shape {shape_of(var)}")


def _last_axis(operation: Operation) -> str | None:
    """Short rows of the program's inputs and outputs, and single values as rows anywhere.

    Apple wants 64 bytes of inputs and outputs, and lets tensors inside that stay in the cache be smaller. A vector is
    one row, whose padding costs nothing.
    """

    def is_short(var: Var) -> bool:
        if is_flexible(var) or math.prod(var.shape[:-1]) <= 1:
            return False
        return var.shape[-1] == 1 or (_is_outside(var) and var.shape[-1] * bits_of(var) < 8 * ROW_ALIGNMENT)

    inputs = [var for var in _operands(operation) if var.op is None]
    return _first(
        [*inputs, *computed_tensors(operation)],
        is_short,
        lambda var: f"{var.name} has the shape {shape_of(var)}: rows of {var.shape[-1] * bits_of(var) // 8} bytes",
    )


def _is_outside(var: Var) -> bool:
    """Whether a tensor is an input or output of the program, or of a loop's body."""
    return var.op is None or var in var.op.enclosing_block.outputs


def _memory_copy(operation: Operation) -> str | None:
    if operation.op_type not in ("transpose", "reshape"):
        return None
    return f"{operation.op_type} from {shape_of(operation.x)} to {shape_of(operation.outputs[0])}"


def _convolution_kernel(operation: Operation) -> str | None:
    if operation.op_type not in ("conv", "conv_transpose"):
        return None
    kernel = operation.weight.shape[2:]
    return f"a kernel of {_times(kernel)}" if max(kernel) > LARGEST_CONVOLUTION else None


def _convolution_stride(operation: Operation) -> str | None:
    if operation.op_type != "conv":
        return None
    strides = _attribute(operation, "strides")
    palettized = operation.weight.op is not None and operation.weight.op.op_type == "constexpr_lut_to_dense"
    if palettized and max(strides) > 2:
        return f"strides of {_times(strides)} with palettized weights"
    if set(strides) <= set(CONVOLUTION_STRIDES) and _go_together(strides):
        return None
    return f"strides of {_times(strides)}"


def _go_together(strides: Sequence[int]) -> bool:
    """Whether strides down and across are equal, or unequal in a way that Apple calls efficient."""
    small, large = min(strides), max(strides)
    return small == large or small == 1 or (small == 2 and large in STRIDES_BESIDE_2)


def _dilation(operation: Operation) -> str | None:
    if operation.op_type != "conv":
        return None
    dilations = _attribute(operation, "dilations")
    return None if set(dilations) <= set(DILATIONS) else f"dilations of {_times(dilations)}"


def _pool(operation: Operation) -> str | None:
    largest = LARGEST_POOL.get(operation.op_type)
    if largest is None:
        return None
    kernel, strides = _attribute(operation, "kernel_sizes"), _attribute(operation, "strides")
    if max(kernel) <= largest and set(strides) <= set(POOL_STRIDES):
        return None
    return f"windows of {_times(kernel)}, strides of {_times(strides)}"


def _upsampling(operation: Operation) -> str | None:
    result = operation.outputs[0]
    if operation.op_type not in UPSAMPLING or is_flexible(result) or is_flexible(operation.x):
        return None
    factors = [new / old for new, old in zip(result.shape[-2:], operation.x.shape[-2:], strict=True)]
    scaled = f"scales by {_times(f'{factor:g}' for factor in factors)}"
    return None if set(factors) <= set(UPSAMPLING_FACTORS) else scaled


def _broadcast(operation: Operation) -> str | None:
    operands = _operands(operation)
    if operation.op_type not in ELEMENTWISE or len(operands) < 2 or not all(var.rank for var in operands):
        return None
    shapes = [shape_of(var) for var in operands]
    return f"{operation.op_type} of {' and '.join(shapes)}" if len(set(shapes)) > 1 else None


def _times(sides: Iterable[object]) -> str:
    return " x ".join(map(str, sides))


RULES = (
    Rule(
        "float32",
        "Apple: the Neural Engine computes in float16; what is typed float32 runs on the GPU and CPU.",
        "Export with precision float16.",
        (TYPED_EXECUTION, CORE_AI_RULES),
        _float32,
    ),
    Rule(
        "dtype",
        "Apple: the Neural Engine's dtypes are float16, int8 and int16; int32 and others are not among them.",
        "Compute indices and masks before the model runs, or store them as float16.",
        (CORE_AI_RULES,),
        _other_dtype,
    ),
    Rule(
        "flexible shape",
        "Apple: a model with ranges of shapes runs on the Neural Engine at its default shape only.",
        "Fix the shape, or list the shapes with coremltools' EnumeratedShapes.",
        (FLEXIBLE_SHAPES, CORE_AI_RULES),
        _flexible_shape,
    ),
    Rule(
        "rank",
        "Apple: the data format for the Neural Engine has four axes, channels first; more than five are refused. "
        "Vectors (batch, channels) are left alone here.",
        "Keep tensors as (batch, channels, height, width), tokens as (batch, channels, 1, tokens).",
        (TRANSFORMERS, CORE_AI_RULES),
        _rank,
    ),
    Rule(
        "long axis",
        "Measured by others: the Neural Engine's compiler refused an axis of over 16384 and took one of 16384.",
        "Split the axis, or spread it over two.",
        (WIDTH_PROBE,),
        _long_axis,
    ),
    Rule(
        "last axis",
        "Apple: rows of the last axis are padded to 64 bytes, 32 times the memory for a single float16; inputs and "
        "outputs should have at least 64 bytes there. Other short rows inside the program are left alone here.",
        "Move a longer axis to the end.",
        (TRANSFORMERS, CORE_AI_RULES),
        _last_axis,
    ),
    Rule(
        "memory copy",
        "Apple: reshapes and transposes are likely to copy memory, the more so where the last axis changes.",
        "Keep one layout from input to output.",
        (TRANSFORMERS, CORE_AI_RULES),
        _memory_copy,
    ),
    Rule(
        "linear",
        "Apple: a linear layer is decomposed into less efficient operations that may run on the CPU; a 1x1 convolution "
        "is what the hardware has.",
        "Write it as a 1x1 convolution of a (batch, channels, height, width) tensor.",
        (CORE_AI_RULES, TRANSFORMERS),
        _is_type("linear"),
    ),
    Rule(
        "fused attention",
        "Apple: the Neural Engine has no fused attention. Measured by others: compute plans prefer it there for large "
        "float16 tensors (2 million elements), the CPU below.",
        "Write attention as matmul, softmax and matmul.",
        (CORE_AI_RULES, ATTENTION_PLANS),
        _is_type("scaled_dot_product_attention"),
    ),
    Rule(
        "gather",
        "Measured by others: gather does not run on the Neural Engine, and compute plans name the CPU alone for it.",
        "Gather from constants before export; else slice, split or multiply by a one-hot matrix.",
        (GATHER_PLAN, UNSUPPORTED_LAYERS),
        _is_type("gather", "gather_along_axis", "gather_nd"),
    ),
    Rule(
        "resample",
        "Measured by others: grid sampling runs on the CPU.",
        "Sample before the model runs.",
        (GRID_SAMPLE,),
        _is_type("resample"),
    ),
    Rule(
        "recurrent",
        "A coremltools maintainer: RNN and LSTM operations are not supported on the Neural Engine.",
        "Use convolutions or attention over a fixed number of steps.",
        (RECURRENT, UNSUPPORTED_LAYERS),
        _is_type("rnn", "gru", "lstm"),
    ),
    Rule(
        "convolution kernel",
        "Apple: large kernels are expensive. Measured by others: kernels over 7 leave the Neural Engine.",
        "Use two smaller convolutions, whose sizes add up to the kernel's size + 1.",
        (CORE_AI_RULES, YOLO),
        _convolution_kernel,
    ),
    Rule(
        "convolution stride",
        "Apple: strides of factors 2 and 3 map efficiently, equal in both axes or beside a 2; palettized weights go "
        "with strides up to 2.",
        "Use a stride of 2, several times if need be.",
        (CORE_AI_RULES,),
        _convolution_stride,
    ),
    Rule(
        "dilation",
        "Apple: large dilations are expensive, and should be chains of 2 and 3. Others list dilated convolutions among "
        "what leaves the Neural Engine, as a guess.",
        "Use several convolutions of dilation 2 or 3.",
        (CORE_AI_RULES, UNSUPPORTED_LAYERS),
        _dilation,
    ),
    Rule(
        "pool",
        "Apple: pool with strides of 2 or 4 (1, which does not shrink, is left alone here). Measured by others: "
        "windows over 13 of average and over 7 of max pooling leave the Neural Engine, and did strides over 2 in 2020.",
        "Pool in several small steps; take the mean over all positions with reduce_mean.",
        (CORE_AI_RULES, MOBILENET_LOG, YOLO),
        _pool,
    ),
    Rule(
        "upsampling",
        "Measured by others, in 2020: upsampling by other factors than 2 leaves the Neural Engine.",
        "Upsample by 2, several times if need be.",
        (MOBILENET_LOG,),
        _upsampling,
    ),
    Rule(
        "broadcast",
        "Measured by others, in 2020: elementwise operations broadcast constants, but not one computed tensor to "
        "another's shape, as squeeze-and-excitation does.",
        "Fold the factor into a convolution where it is constant; else measure on the device.",
        (MOBILENET_LOG, UNSUPPORTED_LAYERS),
        _broadcast,
    ),
    Rule(
        "float beside int8",
        "Apple: from A17 Pro and M4 on the Neural Engine computes faster in int8, where weights and activations are. "
        "Programs without int8 activations are left alone here.",
        "Quantize what it takes and gives, unless int8 is too coarse for it, as for scores before a softmax.",
        (ACTIVATIONS_IN_INT8,),
        kept_in_float,
    ),
)
