"""From a module to arrays that can be sent, and from arrays to a module that teaches, without copies where possible."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from codistill.exchange.snapshot import Array, Arrays


def published(module: nn.Module) -> dict[str, Array]:
    """The module's parameters and persistent buffers by name, as views where they are in this machine's memory.

    Tied parameters appear once, under their first name. Device memory is copied to the host.
    """
    return {name: tensor.detach().cpu().contiguous().numpy() for name, tensor in _shared_tensors(module)}


def hold(module: nn.Module, arrays: Arrays) -> None:
    """Make `module` compute with `arrays`, which must fit it and must not change as long as it does.

    On the CPU its parameters become views of the arrays (so nobody may write to them: keep gradients off and the
    module in evaluation); buffers are always copied, since a normalisation layer in training mode would write to them.
    On another device everything is copied in place. A parameter stays the object it was, so tied ones stay tied.
    """
    with torch.no_grad(), warnings.catch_warnings():
        # torch has no read-only tensors and says so; this function keeps the promise in its stead.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        for name, tensor in _shared_tensors(module):
            source = torch.from_numpy(arrays[name])
            mappable = isinstance(tensor, nn.Parameter) and tensor.device.type == "cpu" and tensor.dtype == source.dtype
            if mappable:
                tensor.data = source
            else:
                tensor.copy_(source)


def _shared_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters once each, then the buffers that `state_dict` keeps."""
    yield from module.named_parameters()
    kept = module.state_dict(keep_vars=True).keys()
    yield from ((name, buffer) for name, buffer in module.named_buffers() if name in kept)
