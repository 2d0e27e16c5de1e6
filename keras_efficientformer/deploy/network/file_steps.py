"""What a file opened beside its network offers, step by step: the interface of both formats. Room: deploy/network."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from keras_efficientformer.deploy.network.recording import FusedNetwork


class StepTensors(NamedTuple):
    """One result of a step, three times: float arrays of one size, whose first axis is that of the images.

    Attributes:
        step: its number.
        exact: of the float32 network.
        expected: of the step in float32, on the file's tensors before it.
        found: of the file.
    """

    step: int
    exact: np.ndarray
    expected: np.ndarray
    found: np.ndarray


class FileSteps(Protocol):
    """A file opened beside the network that it was made of.

    Attributes:
        network: the float32 network.
        stored: {number of a step: (type of its tensors, type of its largest constant or None)}, of steps that the file
            has a tensor of; others it computes together with the next that it has.
    """

    network: FusedNetwork
    stored: dict[int, tuple[str, str | None]]

    def compare(self, images: np.ndarray) -> Iterator[StepTensors]:
        """The tensors of all steps in `stored`, for images in the network's input range."""


def mismatch(path: Path, found: str, network: FusedNetwork) -> str:
    """What to say where a file has something, `found`, that the network has not."""
    ends = ", ".join(network.outputs)
    ends = f"{network.classes} classes ({ends})" if network.classes else ends
    return (
        f"{path} was not made of this model: the file has {found}, and {network.name} is a network of "
        f"{len(network.steps)} steps from {list(network.input_shape)} to {ends}. Compare the file with the model it "
        "was exported from."
    )
