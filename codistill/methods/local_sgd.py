"""Local SGD: McMahan, Moore, Ramage, Hampson, Agüera y Arcas, AISTATS 2017, arXiv 1602.05629 (as federated averaging);
Stich, ICLR 2019, arXiv 1805.09767.

All replicas begin with the same weights. Each trains on the labels, on batches of its own, with an optimizer of its
own; after every `exchange.interval_steps` steps, and after the last, all take over the mean of their weights and
buffers:

    theta_i <- 1/n * sum_j theta_j

What the optimizer holds stays each replica's. They end with one model; alone, a replica is in plain training.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from codistill.methods.common import averaging_of, labels_alone, one_phase, same_network
from codistill.phase import Phase, Replica
from codistill.recipes import Recipe
from codistill.spec import JobSpec


def plan(spec: JobSpec, recipe: Recipe, replica: Replica) -> Sequence[Phase]:
    """One phase of plain training; what makes it more is the exchange rule."""
    every = averaging_of(spec, replica)
    return one_phase(
        spec,
        recipe,
        replica,
        labels_alone(recipe),
        rules=[every],
        learner=partial(same_network, spec, recipe),
    )
