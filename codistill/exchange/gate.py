"""The gate: what is checked of a snapshot before anyone learns from it, on publishing and again on reading.

Who shows a snapshot that is not finite, or whose norm is out of bound, is in *quarantine*. A newer one that is back in
bound ends it; so does a norm that has truly moved: several in succession, each newer than the one before, are out of
bound but agree with each other. Then the last of them is accepted, and what was known of the replica begins anew.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import StrEnum
from statistics import median

from codistill.exchange.snapshot import OF_WEIGHTS, Arrays, Header, Measures, SnapshotId, digest_of, header_of

NORM_BOUND = 10.0
"""A snapshot's norm may be this many times the running median of those accepted before it, or one part in as many."""
AGREEING = 3
"""Snapshots in succession that show that a norm has moved for good."""
REMEMBERED = 16
"""Accepted norms of which the median is taken."""


class Verdict(StrEnum):
    """What became of a snapshot; the ledger's words."""

    ACCEPTED = "accepted"
    WRONG_SCHEMA = "wrong_schema"
    BAD_DIGEST = "bad_digest"
    NON_FINITE = "non_finite"
    NORM_OUT_OF_BOUND = "norm_out_of_bound"
    TOO_OLD = "too_old"
    """Good, but beyond `max_lag_steps` or `max_offset_steps`: not heard while that is so."""


@dataclass(frozen=True)
class Standing:
    """What a gate knows of a replica."""

    norms: tuple[float, ...] = ()
    """Of what was accepted last. Without 0, which tells nothing of the scale: what comes after it has no bound."""
    moved: tuple[float, ...] = ()
    """Refused in succession, of snapshots each newer than the one before; all in bound of each other."""
    bad: SnapshotId | None = None
    """The newest of those that put it in quarantine; None when it is not."""


def judge(header: Header, *, schema: str, digest: str, norm: float, standing: Standing) -> tuple[Verdict, Standing]:
    """Compare a header and what was measured of the arrays with what this replica's own model expects.

    Returns the standing that follows too.
    """
    if header.schema != schema:
        return Verdict.WRONG_SCHEMA, replace(standing, moved=())
    if header.digest != digest:
        return Verdict.BAD_DIGEST, replace(standing, moved=())
    if not math.isfinite(norm):
        return Verdict.NON_FINITE, Standing(standing.norms, bad=max(header.id, standing.bad or header.id))
    is_news = standing.bad is None or header.id > standing.bad
    if not standing.norms or _agree(norm, median(standing.norms)):
        norms = _remembered(standing.norms, norm)
        return Verdict.ACCEPTED, Standing(norms) if is_news else replace(standing, norms=norms)
    if not is_news:  # as fetched when what came after it was refused
        return Verdict.NORM_OUT_OF_BOUND, standing
    agreeing = standing.moved if all(_agree(norm, other) for other in standing.moved) else ()
    if len(agreeing) + 1 == AGREEING:
        return Verdict.ACCEPTED, Standing(_remembered((), norm))
    return Verdict.NORM_OUT_OF_BOUND, Standing(standing.norms, (*agreeing, norm), header.id)


def _agree(one: float, other: float) -> bool:
    return max(one, other) <= NORM_BOUND * min(one, other)


def _remembered(norms: tuple[float, ...], norm: float) -> tuple[float, ...]:
    return (*norms, norm)[-REMEMBERED:] if norm > 0 else norms


class Gate:
    """Judges the snapshots of one replica, remembering its standing."""

    def __init__(self, schema: str, measures: Measures = OF_WEIGHTS) -> None:
        self._schema, self._measures = schema, measures
        self._standing = Standing()

    @property
    def quarantined(self) -> bool:
        return self._standing.bad is not None

    def describe(self, snapshot: SnapshotId, arrays: Arrays, created_at: float) -> Header:
        """The header of `arrays`, measured as `judge` measures them."""
        return header_of(snapshot, arrays, created_at, self._measures)

    def judge(self, header: Header, arrays: Arrays) -> Verdict:
        """Measure `arrays` (two passes over the bytes) and judge them."""
        # What is of another make cannot be measured in our terms.
        fits = self._measures.schema(arrays) == self._schema
        verdict, self._standing = judge(
            header if fits else replace(header, schema=""),
            schema=self._schema,
            digest=digest_of(arrays) if fits else header.digest,
            norm=self._measures.norm(arrays) if fits else 0.0,
            standing=self._standing,
        )
        return verdict
