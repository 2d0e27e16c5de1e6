"""Computes the filters by which depthwise convolutions stand for the pooling mixer. Room: deploy/tflite.

LiteRT has int8 kernels for those, and none for pooling.
"""

import numpy as np

# A symmetric int8 weight is at most this.
LARGEST = 127
# This is the (row, column) of one of each pair of opposite neighbours. Where not all pairs can be a step larger, the
# last ones are.
HALF_OF_NEIGHBOURS = ((0, 0), (0, 2), (0, 1), (1, 0))
SCALE_TOLERANCE = 0.02


def border_factors(height: int, width: int, size: int) -> np.ndarray:
    """By what zero-padded averages fall short at each position: pixels of the window / real pixels in it.

    Args:
        height, width: of the feature map.
        size: side of the square window, odd.

    Returns:
        float64 (1, height, width, 1), values >= 1.
    """
    margin = size // 2
    counts = [
        [min(place + margin, side - 1) - max(place - margin, 0) + 1 for place in range(side)]
        for side in (height, width)
    ]
    return (size**2 / np.outer(counts[0], counts[1]))[None, :, :, None]


def fused_mixer_filters(own: np.ndarray, pooled: np.ndarray) -> np.ndarray:
    """Filters of `own * x + pooled * average` that int8 weights, one scale a channel, hold without a rounding error.

    The pixel itself has by far the largest weight, so that its neighbours' are few steps of the scale, and rounding all
    eight alike would change what they weigh together by up to 3% of the pixel. Here some are a step larger than others,
    opposite ones alike, and the scale is such that all nine together weigh what they should.

    Args:
        own, pooled: factors (channels,).

    Returns:
        float64 (3, 3, channels).
    """
    neighbour = pooled / 9
    pixel = own + neighbour
    plain = np.broadcast_to(neighbour, (3, 3, len(own))).copy()
    plain[1, 1] = pixel
    rounds = np.abs(pixel) >= np.abs(neighbour)
    step = np.where(rounds, pixel, 1.0) / LARGEST
    halves = np.round(4 * neighbour / step)  # one of each of the four pairs counts
    steps = np.empty_like(plain)
    for number, (row, column) in enumerate(HALF_OF_NEIGHBOURS):
        steps[row, column] = steps[2 - row, 2 - column] = (halves + number) // 4
    steps[1, 1] = LARGEST
    total = steps.sum((0, 1))
    exact = np.divide(own + pooled, total, out=np.zeros_like(step), where=total != 0)
    # Where the sum is next to nothing, the pixel's own weight counts.
    step = np.where(np.abs(exact - step) < SCALE_TOLERANCE * np.abs(step), exact, step)
    return np.where(rounds, steps * step, plain)
