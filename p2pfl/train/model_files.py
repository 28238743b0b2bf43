"""Model files (safetensors) and digests of vectors and files."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from p2pfl.errors import MalformedMessage
from p2pfl.train.layout import Layout
from p2pfl.types import Digest


def initial_file(module: nn.Module) -> bytes:
    """All parameters (tied ones once) and buffers as a safetensors file; its SHA-256 names it."""
    tensors = itertools.chain(module.named_parameters(), module.named_buffers())
    return safetensors.torch.save({name: tensor.detach().clone().contiguous() for name, tensor in tensors})


def state_file(module: nn.Module) -> bytes:
    """``module.state_dict()`` as a safetensors file, tied tensors under each of their names."""
    state = module.state_dict()
    return safetensors.torch.save({name: tensor.clone().contiguous() for name, tensor in state.items()})


def read_tensors(data: bytes, module: nn.Module) -> dict[str, Tensor]:
    """The tensors of an initial file, checked against the module that is to take them.

    Raises MalformedMessage, naming the first tensor that is missing, unknown, of another shape or type,
    or not finite.
    """
    try:
        tensors: Mapping[str, Tensor] = safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise MalformedMessage(
            f"the initial parameters are not a safetensors file ({error}); ask the proposer"
        ) from error
    wanted = dict(itertools.chain(module.named_parameters(), module.named_buffers()))
    for name in [*wanted, *tensors]:
        if name not in tensors or name not in wanted:
            where = "lack" if name in wanted else "have an unknown"
            raise MalformedMessage(f"the initial parameters {where} tensor {name}; ask the proposer for the right file")
        have, want = tensors[name], wanted[name]
        if have.shape != want.shape or have.dtype != want.dtype:
            raise MalformedMessage(
                f"initial tensor {name} is {have.dtype} {tuple(have.shape)}, the model wants {want.dtype} "
                f"{tuple(want.shape)}; ask the proposer for the right file"
            )
        if have.is_floating_point() and not bool(torch.isfinite(have).all()):
            raise MalformedMessage(f"initial tensor {name} has entries that are not finite; ask the proposer")
    return dict(tensors)


def load(data: bytes, module: nn.Module, layout: Layout) -> Tensor:
    """Put an initial file into the module, buffers included; its vector [P]. Errors as read_tensors."""
    tensors = read_tensors(data, module)
    with torch.no_grad():
        for name, tensor in itertools.chain(module.named_parameters(), module.named_buffers()):
            tensor.copy_(tensors[name])
    return layout.flatten(module)


def file_digest(data: bytes) -> Digest:
    """SHA-256 of a file's bytes."""
    return Digest(hashlib.sha256(data).hexdigest())


def vector_bytes(vector: Tensor) -> memoryview:
    """The vector's little-endian bytes, without a copy where the machine is little-endian."""
    array = vector.detach().contiguous().numpy()
    little: Any = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return memoryview(little).cast("B")


def vector_digest(vector: Tensor) -> Digest:
    """SHA-256 of the vector's raw little-endian bytes."""
    return Digest(hashlib.sha256(vector_bytes(vector)).hexdigest())
