"""Several input sizes in one file: which are asked for, and what each is called in it. Room: deploy.

Attention's biases belong to one size, so that a network of a flexible shape would be wrong: a file has a network for
each size, a signature (TFLite) or a function (Core ML), and they share the weights. The first is what opens by default.
"""

from collections.abc import Mapping, Sequence
from numbers import Integral

# One side, or (height, width), in pixels.
InputSize = int | tuple[int, int]

SMALLEST_SIDE = 32


def checked_sizes(input_sizes: Sequence[InputSize] | None, own: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """The (height, width) of each size that an export is asked for, in its order; None means the model's own alone.

    Args:
        input_sizes: numbers of pixels and pairs of them.
        own: the model's.

    Raises:
        ValueError: there are none, one is no size or under 32, is given twice, or the model's own is not among them.
    """
    if input_sizes is None:
        return (own,)
    if isinstance(input_sizes, str) or not isinstance(input_sizes, Sequence):
        raise ValueError(f"`input_sizes` should be a list such as [224, (384, 288)]. Received: {input_sizes!r}")
    sizes = tuple(_pair(size) for size in input_sizes)
    twice = next((size for place, size in enumerate(sizes) if size in sizes[:place]), None)
    if twice is not None:
        raise ValueError(f"`input_sizes` has {described(twice)} twice. Received: {list(input_sizes)}")
    if own not in sizes:
        raise ValueError(
            f"`input_sizes` should have the model's own size among them, {described(own)}; the first one is what "
            f"opens by default. Received: {list(input_sizes)}. Open the model at one of these sizes, or add its own."
        )
    return sizes


def _pair(size: object) -> tuple[int, int]:
    sides = tuple(size) if isinstance(size, list | tuple) else (size, size)
    whole = [int(side) for side in sides if isinstance(side, Integral) and not isinstance(side, bool)]
    if len(sides) != 2 or len(whole) != 2 or min(whole) < SMALLEST_SIDE:
        raise ValueError(
            f"`input_sizes` should be whole numbers of pixels or pairs (height, width) of them, {SMALLEST_SIDE} at "
            f"least. Received: {size!r}"
        )
    return whole[0], whole[1]


def described(size: tuple[int, int]) -> str:
    """A size for people: "384x288", height first."""
    return f"{size[0]}x{size[1]}"


def short_size(size: tuple[int, int]) -> str:
    """A size in the names of files: "224", "384x288"."""
    return f"{size[0]}" if size[0] == size[1] else described(size)


def size_name(size: tuple[int, int]) -> str:
    """What the signature or function of a size that is not a file's first is called: "size_256", "size_384x288"."""
    return f"size_{short_size(size)}"


def name_of_size(sizes: Mapping[str, tuple[int, int]], wanted: tuple[int, ...]) -> str | None:
    """The name, of {name: (height, width)} that a file has, of the wanted (height, width, ...); None without it."""
    return next((name for name, size in sizes.items() if size == tuple(wanted[:2])), None)
