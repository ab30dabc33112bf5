"""From a module to arrays that can be sent, and from arrays to a module that teaches, without copies where possible."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from codistill.exchange.gate import Gate
from codistill.exchange.snapshot import BF16, Array, Arrays, schema_of
from codistill.ranks import Ranks
from codistill.spec import TravelPrecision

HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


OfPeer = Callable[[int], nn.Module]
"""Builds a module like the one that a peer shows."""


@dataclass(frozen=True)
class OfWeights:
    """The currency of weights (see `Currency`): what is shown are modules like `module`, and what is heard too unless
    `of_peer` builds others."""

    module: nn.Module
    precision: TravelPrecision = "fp32"
    every: bool = False
    of_peer: OfPeer | None = None

    def gate(self, peer: int | None = None) -> Gate:
        module = self.module if peer is None or self.of_peer is None else self.of_peer(peer)
        return Gate(schema_of(published(module, self.precision)))

    def arrays(self, shown: nn.Module, ranks: Ranks, into: Arrays | None = None) -> Arrays:
        ranks.average_buffers([shown])
        return copied(shown, self.precision, into) if ranks.leads else {}


def published(module: nn.Module, precision: TravelPrecision = "fp32") -> dict[str, Array]:
    """The module's parameters and persistent buffers by name, as views where they are in this machine's memory.

    Tied parameters appear once, under their first name. Device memory is copied to the host. Floating-point parameters
    are cast to `precision`, but for "fp32", which leaves everything as it is; what is too large for fp16 becomes
    infinite. An array in bf16 is one of uint16 under a name of its own (`BF16`).
    """
    return dict(_as_array(name, _cast(tensor, precision)) for name, tensor in _shared_tensors(module))


def copied(module: nn.Module, precision: TravelPrecision = "fp32", into: Arrays | None = None) -> Arrays:
    """A copy of what `published` gives, in `into` where that is given: what an earlier call returned for a module like
    this one, whose memory is warm. Nothing lies in between, whatever the device and the precision."""
    places = into or dict(_as_array(name, _room_for(tensor, precision)) for name, tensor in _shared_tensors(module))
    for name, tensor in _shared_tensors(module):
        _as_tensor(name, places).copy_(tensor.detach())
    return places


def _room_for(tensor: Tensor, precision: TravelPrecision) -> Tensor:
    """Memory of the host for it; that which a GPU writes to directly, where it is on one."""
    dtype = HALVES[precision] if _is_cast(tensor, precision) else tensor.dtype
    return torch.empty(tensor.shape, dtype=dtype, device="cpu", pin_memory=tensor.is_cuda)


def bytes_published(module: nn.Module, precision: TravelPrecision = "fp32") -> int:
    """Bytes of what `published` gives, without copying anything; works for modules on the meta device too."""
    return sum(
        tensor.numel() * (HALVES[precision].itemsize if _is_cast(tensor, precision) else tensor.element_size())
        for _, tensor in _shared_tensors(module)
    )


def _is_cast(tensor: Tensor, precision: TravelPrecision) -> bool:
    return precision in HALVES and isinstance(tensor, nn.Parameter) and tensor.is_floating_point()


def _cast(tensor: Tensor, precision: TravelPrecision) -> Tensor:
    return tensor.detach().to(HALVES[precision]) if _is_cast(tensor, precision) else tensor.detach()


def _as_array(name: str, tensor: Tensor) -> tuple[str, Array]:
    here = tensor.cpu().contiguous()
    if here.dtype == torch.bfloat16:
        return name + BF16, here.view(torch.uint16).numpy()
    return name, here.numpy()


def _as_tensor(name: str, arrays: Arrays) -> Tensor:
    if name + BF16 in arrays:
        return torch.from_numpy(arrays[name + BF16]).view(torch.bfloat16)
    return torch.from_numpy(arrays[name])


def tensors_of(arrays: Arrays) -> dict[str, Tensor]:
    """What `published` gave as tensors by the module's own names, without copies; nobody may write to them."""
    with _promised_unwritten():
        return {name: _as_tensor(name, arrays) for name in (key.removesuffix(BF16) for key in arrays)}


def hold(module: nn.Module, arrays: Arrays) -> None:
    """Make `module` compute with `arrays`, which must fit it and must not change as long as it does.

    On the CPU its parameters become views of the arrays (so nobody may write to them: keep gradients off and the
    module in evaluation); buffers are always copied, since a normalisation layer in training mode would write to them.
    On another device, or where a parameter's type is not the array's, it is copied in place: a module is only ever
    given arrays of the same types. A parameter stays the object it was, so tied ones stay tied.
    """
    with torch.no_grad(), _promised_unwritten():
        for name, tensor in _shared_tensors(module):
            source = _as_tensor(name, arrays)
            mappable = isinstance(tensor, nn.Parameter) and tensor.device.type == "cpu" and tensor.dtype == source.dtype
            if mappable:
                tensor.data = source
            else:
                tensor.copy_(source)


@contextmanager
def _promised_unwritten() -> Generator[None]:
    # torch has no read-only tensors and says so; the callers keep the promise in its stead.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        yield


def _shared_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters once each, then the buffers that `state_dict` keeps."""
    yield from module.named_parameters()
    kept = module.state_dict(keep_vars=True).keys()
    yield from ((name, buffer) for name, buffer in module.named_buffers() if name in kept)
