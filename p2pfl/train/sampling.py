"""Keyed randomness of a site: which examples each local step sees, and the seed of its dropout.

seed = BLAKE2b(key = site key; person = purpose; run, round, step);  stream = SHAKE-256(seed)

The stream does not depend on torch or numpy versions, on order of calls or on threads. The key is secret in
a deployment: whoever can redo the draw can subtract a known batch's part from a delta.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

from p2pfl.errors import IllegalStep

KEY_SIZES = range(16, 65)  # 128 bits at least; 64 bytes is the most that BLAKE2b takes (RFC 7693, 2.1)
_MINIBATCH = b"p2pfl/batch"
_NOISE = b"p2pfl/noise"


def step_seed(key: bytes, run: bytes, round: int, step: int, purpose: bytes) -> bytes:
    """32 bytes for one purpose in one local step; IllegalStep for a key of a wrong size."""
    if len(key) not in KEY_SIZES:
        raise IllegalStep(f"site key of {len(key)} bytes; derive one of {KEY_SIZES[0]} to {KEY_SIZES[-1]} bytes")
    place = len(run).to_bytes(8, "big") + run + round.to_bytes(8, "big") + step.to_bytes(8, "big")
    return hashlib.blake2b(place, key=key, digest_size=32, person=purpose).digest()


def batch_indices(key: bytes, run: bytes, round: int, step: int, examples: int, batch: int) -> Tensor:
    """Positions [min(batch, examples)] int64 of the step's batch, without replacement inside the step.

    Floyd's method (Bentley and Floyd 1987): every set of that size is equally likely. All examples, in
    order, if the batch is no smaller than the data.
    """
    if batch >= examples:
        return torch.arange(examples)
    stream = hashlib.shake_256(step_seed(key, run, round, step, _MINIBATCH)).digest(8 * batch)
    tops = np.arange(examples - batch, examples, dtype=np.uint64)
    # modulo of 64 bits: the bias is examples / 2^64
    draws = (np.frombuffer(stream, dtype="<u8") % (tops + np.uint64(1))).tolist()
    chosen: dict[int, None] = {}
    for top, draw in zip(tops.tolist(), draws, strict=True):
        chosen[top if draw in chosen else draw] = None
    return torch.tensor(list(chosen), dtype=torch.int64)


def noise_seed(key: bytes, run: bytes, round: int, step: int) -> int:
    """64-bit seed of torch's generator for dropout and other randomness inside the model."""
    return int.from_bytes(step_seed(key, run, round, step, _NOISE)[:8], "big") >> 1
