"""The gate: what is checked of a snapshot before anyone learns from it, on publishing and again on reading."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from enum import StrEnum
from statistics import median

from codistill.exchange.snapshot import Arrays, Header, digest_of, norm_of, schema_of

NORM_BOUND = 10.0
"""A snapshot's norm may be this many times the running median of those accepted before it."""


class Verdict(StrEnum):
    """What became of a snapshot; the ledger's words."""

    ACCEPTED = "accepted"
    WRONG_SCHEMA = "wrong_schema"
    BAD_DIGEST = "bad_digest"
    NON_FINITE = "non_finite"
    NORM_OUT_OF_BOUND = "norm_out_of_bound"
    TOO_OLD = "too_old"
    """Good, but older than `max_lag_steps`: not heard while that is so."""


def judge(header: Header, *, schema: str, digest: str, norm: float, past_norms: Sequence[float]) -> Verdict:
    """Compare a header and what was measured of the arrays with what this replica's own model expects."""
    if header.schema != schema:
        return Verdict.WRONG_SCHEMA
    if header.digest != digest:
        return Verdict.BAD_DIGEST
    if not math.isfinite(norm):
        return Verdict.NON_FINITE
    if past_norms and norm > NORM_BOUND * median(past_norms):
        return Verdict.NORM_OUT_OF_BOUND
    return Verdict.ACCEPTED


class Gate:
    """Judges the snapshots of one replica, remembering the norms of those it let pass."""

    def __init__(self, schema: str) -> None:
        self._schema = schema
        self._norms: deque[float] = deque(maxlen=16)

    def judge(self, header: Header, arrays: Arrays) -> Verdict:
        """Measure `arrays` (two passes over the bytes) and judge them."""
        if schema_of(arrays) != self._schema:
            return Verdict.WRONG_SCHEMA
        norm = norm_of(arrays)
        verdict = judge(header, schema=self._schema, digest=digest_of(arrays), norm=norm, past_norms=tuple(self._norms))
        if verdict is Verdict.ACCEPTED:
            self._norms.append(norm)
        return verdict
