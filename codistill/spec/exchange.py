"""Exchange: who hears whom, how, how often."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from codistill.spec.base import Spec


class All(Spec):
    """Every replica learns from every other."""

    kind: Literal["all"] = "all"


class Ring(Spec):
    """Replica i learns from replica i - 1: one teacher each, whatever the number of replicas."""

    kind: Literal["ring"] = "ring"


class Pairs(Spec):
    """Replicas 0 and 1 teach each other, and so do 2 and 3, ...; for an even number of replicas."""

    kind: Literal["pairs"] = "pairs"


class Rotating(Spec):
    """One teacher at a time, another after each exchange: in exchange e replica i of n learns from
    i + 2^(e mod ceil(log2 n)). What one knows reaches all within log2 n exchanges, for the cost of one teacher."""

    kind: Literal["rotating"] = "rotating"


ALL_UP_TO_REPLICAS = 4
"""Beyond, `auto` rotates: teachers of `all` cost a forward pass each."""


class AutoTopology(Spec):
    """`all` up to four replicas, `rotating` beyond."""

    kind: Literal["auto"] = "auto"


class Explicit(Spec):
    """Who learns from whom, replica by replica."""

    kind: Literal["explicit"] = "explicit"
    teachers: tuple[tuple[Annotated[int, Field(ge=0)], ...], ...] = Field(min_length=2, max_length=1024)
    """For each replica the replicas it learns from; an empty list learns from nobody: `[[1], []]` lets 1 teach 0."""


Topology = Annotated[AutoTopology | All | Ring | Rotating | Pairs | Explicit, Field(discriminator="kind")]


def misfit(topology: Topology, replicas: int) -> str | None:
    """Why `topology` cannot join this many replicas, and what would be right; None when it can."""
    if isinstance(topology, Pairs) and replicas % 2:
        return f"topology 'pairs' needs an even number of replicas, there are {replicas}; add one, or use 'ring'"
    if not isinstance(topology, Explicit):
        return None
    if len(topology.teachers) != replicas:
        return f"topology 'explicit' lists teachers of {len(topology.teachers)} replicas, there are {replicas}"
    for replica, teachers in enumerate(topology.teachers):
        wrong = [teacher for teacher in teachers if teacher == replica or teacher >= replicas]
        if wrong or len(set(teachers)) < len(teachers):
            return (
                f"topology 'explicit' lets replica {replica} learn from {list(teachers)}; name each teacher once, out"
                f" of 0 to {replicas - 1} and not {replica} itself"
            )
    return None


def most_heard(topology: Topology, replicas: int) -> int:
    """How many others the replica hears at once that hears most of them."""
    match topology:
        case AutoTopology() if replicas > ALL_UP_TO_REPLICAS:
            return 1
        case AutoTopology() | All():
            return replicas - 1
        case Explicit():
            return max(map(len, topology.teachers))
        case _:
            return min(1, replicas - 1)


class AutoTransport(Spec):
    """Files on one machine; on Ray the object store, and files again in lockstep, where snapshots must outlive
    whoever published them."""

    kind: Literal["auto"] = "auto"


class MemoryTransport(Spec):
    """All replicas in one process, taking turns: for tests and debugging."""

    kind: Literal["memory"] = "memory"


class FilesTransport(Spec):
    """Files in the run directory, mapped into memory by their readers."""

    kind: Literal["files"] = "files"


class ObjectStoreTransport(Spec):
    """Ray's object store: one copy to publish, none to read on the same node. Needs Ray."""

    kind: Literal["object_store"] = "object_store"


Transport = Annotated[
    AutoTransport | MemoryTransport | FilesTransport | ObjectStoreTransport, Field(discriminator="kind")
]


class Weights(Spec):
    """Replicas send their weights; readers evaluate them on their own batches."""

    kind: Literal["weights"] = "weights"


class Predictions(Spec):
    """Replicas send what they predicted for each sample when they last trained on it, in the forward of that step (as
    in temporal ensembling, Laine and Aila 2017, arXiv 1610.02242); readers join it with their own batches by sample id,
    and make no forward of a teacher. For samples that several replicas see, and see alike."""

    kind: Literal["predictions"] = "predictions"
    form: Literal["auto", "dense", "top_k", "sampled"] = "auto"
    """`dense` is the log-probability of every class; `top_k` that of the likeliest, and that of all others together,
    which is spread over them evenly; `sampled` is classes drawn from the distribution and how often (arXiv 2503.16870):
    right in the mean, for `cross_entropy` and `kl` at temperature 1. `auto` is `dense` up to 64 classes (or up to
    `top_k`, where that is more), else `sampled` where it is right in the mean, and `top_k` where it is not."""
    top_k: int = Field(default=16, ge=1, le=1024)
    """Likeliest classes that `top_k` sends."""
    draws: int = Field(default=50, ge=1, le=255)
    """Classes that `sampled` draws, with repetition."""


Currency = Annotated[Weights | Predictions, Field(discriminator="kind")]
TravelPrecision = Literal["fp32", "bf16", "fp16"]


class Exchange(Spec):
    """What travels between replicas, how, and when."""

    currency: Currency = Weights()
    topology: Topology = AutoTopology()
    transport: Transport = AutoTransport()
    precision: TravelPrecision = "fp32"
    """In what parameters travel: `bf16` and `fp16` halve the bytes, and round the teachers; `fp32` leaves them as they
    are, in whatever type they are trained. Buffers always travel as they are."""
    keep_snapshots: bool = False
    """Every snapshot that is announced is also kept in the run directory, where `codistill replay` needs it."""
    mode: Literal["async", "lockstep"] = "async"
    """`async` never waits and learns from the newest there is; `lockstep` waits for the exact version."""
    interval_steps: int = Field(default=50, ge=1, le=1_000_000)
    """Optimizer steps between two published snapshots."""
    start_together_s: float = Field(default=30.0, ge=0, le=3600)
    """Longest wait, before the very first step only, for the peers to be there too; 0 starts at once."""
    max_lag_steps: int | None = Field(default=None, ge=0)
    """A peer who has made more steps than this since its newest snapshot is not heard. Left out, there is none."""
    max_offset_steps: int | None = Field(default=None, ge=0)
    """A peer whose newest snapshot is more than this behind one's own step is not heard: the limit that one who is dead
    meets, since it stands still. Left out, there is none."""
