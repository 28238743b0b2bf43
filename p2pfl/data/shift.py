"""Feature shift: every peer sees its inputs through a device of its own, as scanners and laboratories differ."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

import numpy as np

from p2pfl.data.examples import Array
from p2pfl.errors import ConfigError, DataError
from p2pfl.keyed_stream import KeyedStream


@dataclass(frozen=True)
class Shift:
    """x -> f x + o + s z, f uniform in 1 ± ``scale``, o in ± ``offset``, s in [0, ``noise``], z standard normal.

    f, o and s are one draw per peer; z is one per number of its inputs. With ``quarter_turns`` a peer's images are also
    turned by 0, 90, 180 or 270 degrees (Ghosh et al., "An efficient framework for clustered federated learning", 2020).
    ConfigError unless 0 <= scale < 1, offset and noise are not negative, and something is shifted.
    """

    seed: int
    scale: float = 0.0
    offset: float = 0.0
    noise: float = 0.0
    quarter_turns: bool = False

    def __post_init__(self) -> None:
        for name in ("scale", "offset", "noise"):
            value = getattr(self, name)
            if not isfinite(value) or value < 0:
                raise ConfigError(f"the {name} of a feature shift is {value}; give 0 or a positive number")
        if self.scale >= 1:
            raise ConfigError(f"a scale of {self.scale} could wipe the inputs out; give one below 1")
        if not (self._changes_numbers or self.quarter_turns):
            raise ConfigError("a feature shift needs a scale, an offset, noise or quarter turns; give one")

    @property
    def _changes_numbers(self) -> bool:
        return bool(self.scale or self.offset or self.noise)

    def check(self, inputs: Array) -> None:
        """DataError unless ``inputs`` are floats (to scale, offset or add noise) and square images (to turn)."""
        if self._changes_numbers and inputs.dtype.kind != "f":
            raise DataError(f"a feature shift needs inputs that are floats, not {inputs.dtype}; convert them")
        if self.quarter_turns and (inputs.ndim < 3 or inputs.shape[-1] != inputs.shape[-2]):
            raise DataError(
                f"quarter turns need square images [examples, ..., side, side], not {list(inputs.shape)}; reshape them"
            )

    def of_peer(self, peer: int) -> tuple[float, float, float, int]:
        """(f, o, s, quarter turns) of a peer."""
        first, second, third, fourth = KeyedStream("p2pfl shift", self.seed, peer).uniforms(4).tolist()
        turns = int(4 * fourth) if self.quarter_turns else 0
        return 1 + self.scale * (2 * first - 1), self.offset * (2 * second - 1), self.noise * third, turns

    def apply(self, peer: int, inputs: Array) -> Array:
        """The inputs [examples, ...] as ``peer`` sees them, in their type; a pure function of seed, peer and inputs.

        The noise follows an example's place in ``inputs``, so pass all of a peer's inputs at once. It comes through the
        inverse normal distribution of scipy, whose last float64 bits may differ between versions.
        """
        self.check(inputs)
        factor, offset, spread, turns = self.of_peer(peer)
        seen = inputs if not turns else np.ascontiguousarray(np.rot90(inputs, turns, axes=(-2, -1)))
        if not self._changes_numbers:
            return seen.copy() if seen is inputs else seen
        shifted = factor * seen.astype(np.float64) + offset
        if spread:
            from scipy.special import ndtri  # a quarter of a second, which a hospital's peer need not wait

            words = KeyedStream("p2pfl shift noise", self.seed, peer).uniforms(inputs.size)
            shifted += spread * ndtri(words + 2.0**-54).reshape(inputs.shape)
        return shifted.astype(inputs.dtype)
