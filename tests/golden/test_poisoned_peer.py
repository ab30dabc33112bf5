"""A peer that shows poison costs those who listen nothing: they end bit for bit as if it were not there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codistill import records
from codistill.exchange.gate import Gate, Verdict
from codistill.exchange.snapshot import Arrays, Header
from codistill.opener import Opener
from codistill.ranks import Ranks
from tests.support import final_weights, fingerprint, new_run, run_in_turns, small_spec

POISON = {
    "NaN": np.nan,
    "infinite": np.inf,
}


class Blind(Gate):
    """That of a publisher who does not look."""

    def judge(self, header: Header, arrays: Arrays) -> Verdict:
        return Verdict.ACCEPTED


@dataclass(frozen=True)
class Poisoned:
    """A currency in which every number that is shown is poison."""

    inner: Any
    value: float
    looks: bool

    @property
    def every(self) -> bool:
        return self.inner.every

    def gate(self, peer: int | None = None) -> Gate:
        own = self.inner.gate(peer)
        return own if peer is not None or self.looks else Blind(own._schema)

    def arrays(self, shown: Any, ranks: Ranks, into: Arrays | None = None) -> Arrays:
        shown_arrays = self.inner.arrays(shown, ranks, into)
        for array in shown_arrays.values():
            if np.issubdtype(array.dtype, np.floating):
                array.fill(self.value)
        return shown_arrays


@pytest.mark.parametrize("looks", [True, False], ids=["its own gate sees it", "its own gate is blind"])
@pytest.mark.parametrize("poison", POISON)
def test_whoever_hears_a_poisoned_peer_ends_as_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, poison: str, looks: bool
) -> None:
    open_mailbox = Opener.open_mailbox

    def opened(opener: Opener, currency: Any, rule: Any) -> Any:
        of_peer = Poisoned(currency, POISON[poison], looks) if opener.member.me.replica == 1 else currency
        return open_mailbox(opener, of_peer, rule)

    monkeypatch.setattr(Opener, "open_mailbox", opened)
    pair = new_run(tmp_path / "pair", small_spec(exchange={"mode": "async", "start_together_s": 0.0}))
    solo = new_run(tmp_path / "solo", small_spec(method={"kind": "solo"}))
    results = run_in_turns(pair)
    run_in_turns(solo)
    assert results[0]["outcome"] == "succeeded"
    assert fingerprint(final_weights(pair, 0)) == fingerprint(final_weights(solo, 0))
    verdicts = records.read(pair, "replica-0", "ledger")["verdict"].to_pylist()
    assert Verdict.ACCEPTED.value not in verdicts
    assert (Verdict.NON_FINITE.value in verdicts) == (not looks), "what its own gate stops is never announced"
    # The poisoned one itself learns on: what it hears is sound.
    assert Verdict.ACCEPTED.value in records.read(pair, "replica-1", "ledger")["verdict"].to_pylist()
