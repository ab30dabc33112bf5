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


Topology = Annotated[All | Ring, Field(discriminator="kind")]


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


class Exchange(Spec):
    """What travels between replicas, how, and when."""

    currency: Weights = Weights()
    topology: Topology = All()
    transport: Transport = AutoTransport()
    mode: Literal["async", "lockstep"] = "async"
    """`async` never waits and learns from the newest there is; `lockstep` waits for the exact version."""
    interval_steps: int = Field(default=50, ge=1, le=1_000_000)
    """Optimizer steps between two published snapshots."""
    start_together_s: float = Field(default=30.0, ge=0, le=3600)
    """Longest wait, before the very first step only, for the peers to be there too; 0 starts at once."""
    max_lag_steps: int | None = Field(default=None, ge=0)
    """A peer whose snapshot is older than this is not heard; left out, age is only recorded."""
