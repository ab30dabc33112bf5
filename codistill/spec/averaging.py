"""Methods in which replicas become their mean: what they are told, and what they cannot do without."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from codistill.spec.base import Spec
from codistill.spec.exchange import ALL_UP_TO_REPLICAS, All, AutoTopology, Exchange, Weights
from codistill.spec.training import Training


class LocalSgd(Spec):
    """Replicas that begin as one, each train on batches of their own, and become their mean again at every exchange
    (McMahan et al. 2017, Stich 2019). No teachers; needs exchange.mode = 'lockstep'."""

    kind: Literal["local_sgd"] = "local_sgd"


class DiLoCo(Spec):
    """Local SGD whose mean is not taken over as it is, but as the direction of an outer optimizer, Nesterov's
    (Douillard et al. 2023). `training.optimizer` is the inner one. Needs exchange.mode = 'lockstep'."""

    kind: Literal["diloco"] = "diloco"
    outer_learning_rate: float = Field(default=0.7, gt=0, le=100)
    """1 with momentum 0 is local SGD."""
    outer_momentum: float = Field(default=0.9, ge=0, lt=1)


def why_not_averaged(method: LocalSgd | DiLoCo, exchange: Exchange, training: Training, replicas: int) -> str | None:
    """What keeps replicas from being averaged, and what would be right; None when nothing does.

    It has to be said in the spec rather than be assumed: a mean of some replicas, or of different versions, would leave
    each with a model of its own, and the run would still look well.
    """
    kind, topology = method.kind, exchange.topology
    if exchange.mode != "lockstep":
        return (
            f"exchange.mode is '{exchange.mode}', and in method '{kind}' replicas wait for each other at every"
            " exchange; set exchange.mode = 'lockstep'"
        )
    if not isinstance(topology, All) and not (isinstance(topology, AutoTopology) and replicas <= ALL_UP_TO_REPLICAS):
        return (
            f"exchange.topology is '{topology.kind}' among {replicas} replicas, and method '{kind}' averages all of"
            " them; use kind = 'all'"
        )
    if not isinstance(exchange.currency, Weights):
        return f"exchange.currency is '{exchange.currency.kind}', and method '{kind}' averages weights; leave it out"
    for key in ("max_lag_steps", "max_offset_steps"):
        if getattr(exchange, key) is not None:
            return f"exchange.{key} would leave replicas out of the mean of method '{kind}'; leave it out"
    if training.ema_decay is not None:
        return (
            f"training.ema_decay averages one replica's way through training, which method '{kind}' interrupts at every"
            " exchange; leave it out"
        )
    return None
