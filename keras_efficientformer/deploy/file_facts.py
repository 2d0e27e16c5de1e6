"""What an exported file says of itself in its own metadata: how raw pixels go in, and what comes out. Room: deploy.

Reports lie beside files and get lost; what is needed to use a file is in it.
"""

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # it imports Keras, which whoever reads a file does without
    from keras_efficientformer.deploy.network.recording import FusedNetwork

# Both formats have this entry of metadata, a JSON object with the fields of `FileFacts`.
ENTRY = "keras_efficientformer"


@dataclass(frozen=True)
class FileFacts:
    """Facts of a file.

    Attributes:
        mean, std: `(pixel - mean) / std` is what the file takes, for each channel of raw pixels in 0..255: zeros and
            ones where it normalises by itself. Empty where nobody has said how images are normalised.
        labels: class names in the order of the outputs, or None.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    labels: tuple[str, ...] | None = None

    @classmethod
    def of(cls, network: "FusedNetwork", labels: tuple[str, ...] | None) -> "FileFacts":
        """Those of a network that is exported."""
        if network.preprocessing:
            channels = network.input_shape[2]
            return cls((0.0,) * channels, (1.0,) * channels, labels)
        if network.normalization is None:
            return cls((), (), labels)
        mean, std = network.normalization.mean, network.normalization.std
        return cls(tuple(255.0 * value for value in mean), tuple(255.0 * value for value in std), labels)

    @property
    def takes_raw_pixels(self) -> bool:
        return set(self.mean) == {0.0} and set(self.std) == {1.0}

    def inputs(self, pixels: np.ndarray) -> np.ndarray:
        """Raw pixels, float array (number, height, width, channels) in 0..255, as the file takes them, float32."""
        if self.takes_raw_pixels:
            return pixels
        return ((pixels - np.array(self.mean)) / np.array(self.std)).astype("float32")

    def to_json(self) -> str:
        """The facts as a JSON object, as files hold them."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> "FileFacts":
        """The facts that a file holds.

        Raises:
            ValueError: it is no such object.
        """
        try:
            content: Any = json.loads(text)
            mean, std = (tuple(float(value) for value in content[name]) for name in ("mean", "std"))
            labels = None if content["labels"] is None else tuple(str(label) for label in content["labels"])
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"its metadata {ENTRY!r} is damaged ({error!r})") from error
        if len(mean) != len(std) or not all(np.isfinite([*mean, *std])) or 0.0 in std:
            raise ValueError(f"its metadata {ENTRY!r} has mean={mean} and std={std}")
        return cls(mean, std, labels)
