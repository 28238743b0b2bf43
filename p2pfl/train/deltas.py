"""The uncompressed codec: a vector as a delta against its base, and back, with the same bits at both ends.

payload = fl(x - base);  what both ends then hold = fl(base + payload)

The sender adopts what receivers rebuild, so rounding cannot let the copies drift apart.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from p2pfl.errors import MalformedMessage, PlanError, SignatureRefused
from p2pfl.train.model_files import vector_bytes, vector_digest
from p2pfl.types import Digest


def encode(value: Tensor, base: Tensor | None) -> tuple[bytes, Tensor, Digest]:
    """Payload, adopted vector [S] and its digest for ``value`` [S]; ``base`` None is the zero vector.

    Raises PlanError for a value that is not finite: it would only be refused by every partner.
    """
    delta = value if base is None else value - base
    adopted = delta if base is None else base + delta
    if not bool(torch.isfinite(adopted).all()):
        raise PlanError("the own parameters are no longer finite; lower learning_rate in the plan")
    return bytes(vector_bytes(delta)), adopted, vector_digest(adopted)


def rebuild(payload: bytes, base: Tensor | None, size: int, dtype: torch.dtype, result: str) -> Tensor:
    """The sender's vector [S]; MalformedMessage for a wrong size or NaN or infinity, SignatureRefused for a
    result that is not what the sender signed."""
    value = vector(payload, size, dtype, base)
    digest = vector_digest(value)
    if digest != result:
        raise SignatureRefused(
            f"delta rebuilds to {digest[:12]}…, its sender signed {result[:12]}…; refused, ask its sender"
        )
    return value


def vector(payload: bytes, size: int, dtype: torch.dtype, base: Tensor | None = None) -> Tensor:
    """``base`` (None: zero) and the payload's numbers, [size]; MalformedMessage for a wrong size, NaN or infinity."""
    numpy_dtype = np.dtype("<f4" if dtype == torch.float32 else "<f8")
    if len(payload) != size * numpy_dtype.itemsize:
        raise MalformedMessage(
            f"delta of {len(payload)} bytes where {size * numpy_dtype.itemsize} were agreed; ask its sender"
        )
    # bytearray: torch wants memory it may write to
    array = np.frombuffer(bytearray(payload), dtype=numpy_dtype).astype(numpy_dtype.newbyteorder("="), copy=False)
    delta = torch.from_numpy(array)
    value = delta if base is None else base + delta
    if not bool(torch.isfinite(value).all()):
        raise MalformedMessage("delta with entries that are NaN or infinite; refused, ask its sender")
    return value
