"""The copy that the training thread makes: whole, bit for bit, and in memory that nobody reads any more."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from codistill.exchange.gate import Gate
from codistill.exchange.outbox import Outbox
from codistill.exchange.snapshot import Array, Arrays, Header, SnapshotId, schema_of
from codistill.exchange.terms import Counters
from codistill.exchange.transport import Hub, MemoryTransport
from codistill.exchange.weights import copied, published
from codistill.spec import TravelPrecision

ME = SnapshotId(0, 1, 0, 0)


def model(seed: int) -> nn.Module:
    """With a tied pair, buffers of whole numbers, and a parameter that does not lie in order."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, 3, bias=False), nn.BatchNorm1d(3), nn.Linear(3, 3))
    net[2].weight = net[0].weight
    net[1].num_batches_tracked.fill_(seed)  # pyright: ignore[reportCallIssue]
    net[2].bias = nn.Parameter(torch.randn(3, 2)[:, 0])
    return net


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_copy_is_what_is_published_and_is_made_in_place(precision: TravelPrecision) -> None:
    one, two = model(1), model(2)
    first = copied(one, precision)
    assert_same(first, published(one, precision))
    with torch.no_grad():
        one[0].weight.zero_()  # pyright: ignore[reportCallIssue]
    assert_same(first, published(model(1), precision))
    second = copied(two, precision, first)
    assert_same(second, published(two, precision))
    assert schema_of(second) == schema_of(published(one, precision))
    assert {name: array.ctypes.data for name, array in first.items()} == {n: a.ctypes.data for n, a in second.items()}


def test_what_is_being_sent_is_not_written_to() -> None:
    """While the helper sends one, the next finds other memory; only what was sent, or will not be, is used again."""
    counters, given = Counters(), list[Arrays | None]()
    outbox: Outbox

    def meanwhile() -> None:
        given.append(outbox.make_room())
        outbox.put(len(given) + 1, arrays(float(len(given) + 1)))

    transport = Slow(meanwhile)
    outbox = Outbox(transport, Gate(schema_of(arrays(0.0))), ME, counters, must_show=False)
    assert outbox.make_room() is None
    first = arrays(1.0)
    outbox.put(1, first)
    transport.interrupted = 1
    outbox.publish()
    assert given == [None], "the first is being read"
    assert [float(a["w"][0]) for _, a in transport.hub.snapshots[0]] == [1.0, 2.0]
    waiting = outbox.make_room()
    assert waiting is not None
    assert float(waiting["w"][0]) == 2.0, "the last that was sent"
    outbox.put(3, waiting)
    assert outbox.make_room() is waiting, "it will not be sent"
    assert counters.skipped == 1
    outbox.publish()
    assert len(transport.hub.snapshots[0]) == 2, "nothing waits"
    assert outbox.make_room() is None, "all has been given away"


class Slow(MemoryTransport):
    """Something happens while it sends the first few."""

    def __init__(self, meanwhile: Callable[[], None]) -> None:
        self.hub, self.interrupted, self._meanwhile = Hub(), 0, meanwhile
        super().__init__(self.hub, 0, keep=9)

    def publish(self, header: Header, arrays: Arrays) -> None:
        if self.interrupted:
            self.interrupted -= 1
            self._meanwhile()
        super().publish(header, arrays)


def arrays(value: float) -> dict[str, Array]:
    return {"w": np.full(4, value, np.float32)}


def assert_same(left: Arrays, right: Arrays) -> None:
    assert list(left) == list(right)
    for name in right:
        np.testing.assert_array_equal(left[name], right[name], strict=True)
