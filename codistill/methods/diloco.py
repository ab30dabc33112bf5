"""DiLoCo: Douillard, Feng, Rusu, Chhaparia, Donchev, Kuncoro, Ranzato, Szlam, Shen, arXiv 2311.08105 (2023).

Local SGD with a second optimizer around it. All replicas begin with the same weights theta; each trains on the labels,
on batches of its own, with the optimizer of the spec (the inner one). After every `exchange.interval_steps` steps, and
after the last, the way they have gone in the mean is the gradient of an outer step of SGD with Nesterov's momentum,
from the weights that all had after the exchange before:

    g = theta - 1/n * sum_i theta_i,    v <- momentum * v + g,    theta <- theta - lr * (g + momentum * v)

and all go on from the new theta. What the inner optimizer holds stays each replica's. Buffers, which have no gradient,
become their mean. With lr 1 and momentum 0 it is local SGD.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from codistill.averaging import Outer
from codistill.methods.common import averaging_of, labels_alone, one_phase, same_network
from codistill.phase import Phase, Replica
from codistill.recipes import Recipe
from codistill.spec import DiLoCo, JobSpec


def plan(spec: JobSpec, method: DiLoCo, recipe: Recipe, replica: Replica) -> Sequence[Phase]:
    """One phase of plain training; what makes it more is the exchange rule."""
    every = averaging_of(spec, replica, Outer(method.outer_learning_rate, method.outer_momentum))
    return one_phase(
        spec,
        recipe,
        replica,
        labels_alone(recipe),
        rules=[every],
        learner=partial(same_network, spec, recipe),
    )
