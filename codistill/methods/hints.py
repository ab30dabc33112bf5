"""FitNets: Romero, Ballas, Kahou, Chassang, Gatta, Bengio, ICLR 2015, arXiv 1412.6550.

A trained teacher guides a student, often thinner and deeper, by what it gives in its middle: u after one of its stages,
v after one of the student's. A regressor r, one linear map at each place, brings v to as many channels as u has:

    hint = mean( (u - r(v))^2 )

`two_stage`, the paper's: first the hint alone trains r and the student up to the guided stage; what comes after it is
not looked at. Then the whole student goes on from there with

    L = CE(y, p) + weight(step) * T^2 * KL(softmax(t / T), softmax(s / T))

whose weight falls linearly to a quarter. `one_stage`, as in later public code: L = CE(y, p) + weight * hint from the
first step to the last. The paper's hint is a sum, with a factor 1/2, and its second term has no T^2: its weight of 4 at
T = 3 is 0.44 here. Where maps of u and v differ in height or width, they are averaged over areas down to the smaller.
The regressor is not exported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import assert_never

from torch import Tensor, nn

from codistill import losses
from codistill.companion import Opening
from codistill.data.home import DataError
from codistill.divergence import pull
from codistill.exported import exported_recipe, mismatch
from codistill.methods.common import batches_of, groups, one_phase, surveys
from codistill.methods.offline import models_of, phases_before, teachers_recipe
from codistill.phase import Artifacts, Learner, Loss, Phase, Replica, Step, Update
from codistill.recipes import Recipe, recipe_of
from codistill.schedules import open_schedule
from codistill.spec import Hints, JobSpec, OneStage, TrainedFirst, TwoStage
from codistill.surgery.hints import at_common_places, regressor
from codistill.surgery.stages import Taps, Until, cut, reached, shapes
from codistill.teachers import Frozen


def plan(spec: JobSpec, method: Hints, recipe: Recipe, replica: Replica) -> Sequence[Phase]:
    """One phase, or `hint` and `train`; before them `teacher`, where that is trained first. Raises `ValueError` for
    models without stages, or with stages that do not fit."""
    own = recipe_of_teacher(method, recipe)
    at, v = stage_of(recipe, method.stage, "method.stage")
    teachers_at, u = stage_of(own, method.teacher_stage, "method.teacher_stage")
    regressor(v, u)  # refused here rather than in the phase
    (teacher,) = models_of(method.teacher, recipe)

    def guide(opening: Opening) -> nn.Module:
        if not isinstance(method.teacher, TrainedFirst):
            _, found = stage_of(exported_recipe(method.teacher, opening.storage), teachers_at, "method.teacher_stage")
            if found != u:
                raise DataError(
                    f"the teacher gives {list(found)} after stage {teachers_at}, and the recipe that it is taken to be"
                    f" of {list(u)}; set method.teacher_recipe to what it was trained with"
                )
        return cut(teacher(opening), method=method.kind)

    def hint(step: Step, features: Tensor) -> Tensor:
        (said,) = step.targets["teacher"]
        regressed = step.parts["regressor"](features)
        return losses.squared_distance(*at_common_places(regressed, said[f"stage{teachers_at}"]))

    guiding = Frozen([guide], stand_in=lambda: staged(own))
    given = Guided(spec, recipe, replica, at, lambda: regressor(v, u), hint, guiding)
    before = phases_before(spec, method.teacher, recipe, replica)
    match method.scheme:
        case TwoStage() as scheme:
            first = [hinted(given, scheme.hint_steps)] if scheme.hint_steps else []
            return [*before, *first, *distilled(given, scheme, Frozen([teacher]))]
        case OneStage() as scheme:
            return [*before, both_at_once(given, scheme.weight)]
        case _:
            assert_never(method.scheme)


@dataclass(frozen=True)
class Guided:
    """The student and its guide, as every phase sees them."""

    spec: JobSpec
    recipe: Recipe
    replica: Replica
    at: int
    """The student's stage that is guided."""
    regressor: Callable[[], nn.Module]
    hint: Callable[[Step, Tensor], Tensor]
    """The hint loss, a scalar, of what the student gives after that stage, [N, ...]."""
    guiding: Frozen


def hinted(given: Guided, steps: int) -> Phase:
    """The phase `hint`: the hint alone trains regressor and student, up to the guided stage."""
    recipe, at = given.recipe, given.at

    def learner(artifacts: Artifacts) -> Learner:
        return Learner({"net": Until(recipe.build_model(), at), "regressor": given.regressor()})

    def loss(step: Step) -> Loss:
        value = given.hint(step, step.parts["net"](step.batch.views["x"]))
        return Loss(value, {"train/hint_loss": value.detach()})

    before_v = reached(lambda: staged(recipe), recipe.example(2), f"stage{at}")
    select = {"net": tuple(f"net.{name}" for name in before_v), "regressor": ("regressor.*",)}
    return Phase(
        name="hint",
        steps=steps,
        learner=learner,
        batches=lambda artifacts: batches_of(given.spec, recipe, given.replica, "hint"),
        updates=[Update(loss, trains=("net", "regressor"))],
        groups=groups(given.spec.training.model_copy(update={"steps": steps}), select),
        teachers=[given.guiding],
    )


def distilled(given: Guided, scheme: TwoStage, teacher: Frozen) -> list[Phase]:
    """The phase `train` after it: knowledge distillation of the whole student, of falling weight."""
    recipe = given.recipe
    factor = open_schedule(scheme.weight_schedule, given.spec.training.steps)

    def learner(artifacts: Artifacts) -> Learner:
        net = recipe.build_model()
        if "hint" in artifacts.learners:
            guided = artifacts.learners["hint"]["net"]
            assert isinstance(guided, Until)
            net.load_state_dict(guided.net.state_dict())
        return Learner({"net": net})

    def loss(step: Step) -> Loss:
        student, (said,) = step.show("net"), step.targets["teacher"]
        task = recipe.task_loss(student, step.batch)
        distill = pull("kl", [said["logits"]], student["logits"], temperature=scheme.temperature).loss
        stats = {"train/task_loss": task.detach(), "train/distill_loss": distill.detach()}
        return Loss(task + scheme.weight * factor(step.index) * distill, stats)

    return one_phase(given.spec, recipe, given.replica, loss, teachers=[teacher], learner=learner)


def both_at_once(given: Guided, weight: float) -> Phase:
    """The phase `train` of `one_stage`: labels and hint from the first step to the last."""
    recipe, at = given.recipe, given.at

    def learner(artifacts: Artifacts) -> Learner:
        net = staged(recipe)  # first, so that it begins as it would without a regressor
        return Learner({"net": net, "regressor": given.regressor()})

    def loss(step: Step) -> Loss:
        student = step.show("net")
        task, value = recipe.task_loss(student, step.batch), given.hint(step, student[f"stage{at}"])
        stats = {"train/task_loss": task.detach(), "train/hint_loss": value.detach()}
        return Loss(task + weight * value, stats)

    return Phase(
        name="train",
        steps=given.spec.training.steps,
        learner=learner,
        batches=lambda artifacts: batches_of(given.spec, recipe, given.replica),
        updates=[Update(loss, trains=("net", "regressor"))],
        groups=groups(given.spec.training, {"net": ("net.*",), "regressor": ("regressor.*",)}),
        teachers=[given.guiding],
        surveys=surveys(given.spec, recipe, {"net": ""}),
        export=stripped,
    )


def recipe_of_teacher(method: Hints, recipe: Recipe) -> Recipe:
    """What the teacher is taken to be. Raises `ValueError` when the student cannot learn from that."""
    if method.teacher_recipe is None:
        return teachers_recipe(method.teacher, recipe)
    own = recipe_of(method.teacher_recipe)
    if (problem := mismatch(own, recipe)) is not None:
        raise ValueError(f"method.teacher_recipe: the teacher {problem}")
    return own


def staged(recipe: Recipe) -> Taps:
    """A model of the recipe, with taps between its stages. Raises `ValueError` when it offers none."""
    return cut(recipe.build_model(), method="hints")


def stage_of(recipe: Recipe, asked: int | None, key: str) -> tuple[int, tuple[int, ...]]:
    """The number of a stage of the recipe's model, the middle one unless one is `asked` for by `key`; and the shape of
    what it gives for one sample."""
    taps = shapes(lambda: staged(recipe), recipe.example(2))
    last = sum(name.startswith("stage") for name in taps) - 1
    at = last // 2 if asked is None else asked
    if at > last:
        raise ValueError(f"{key} is {at}, and the model has stages 0 to {last}; name one of these")
    return at, taps[f"stage{at}"]


def stripped(learner: Learner) -> nn.Module:
    """The student as the recipe built it."""
    net = learner["net"]
    assert isinstance(net, Taps)
    return net.net
