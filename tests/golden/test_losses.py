"""Losses and combiners against numbers worked out elsewhere: by numpy, by hand, by finite differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from codistill import combine, losses
from codistill.divergence import advantage, guarded, pull
from codistill.spec import Divergence

S = torch.tensor([[1.0, 0.0, -1.0]])
T = torch.tensor([[2.0, 0.5, -1.0]])


def at(logits: Tensor, temperature: float = 1.0) -> Tensor:
    return torch.log_softmax(logits / temperature, dim=-1)


@pytest.mark.parametrize(
    ("temperature", "value", "gradient"),
    [
        (1.0, 0.0395369, [-0.1203561, 0.0694381, 0.0509180]),
        (2.0, 0.0673717, [-0.1666346, 0.0571904, 0.1094442]),
        (4.0, 0.0788547, [-0.1752312, 0.0330226, 0.1422086]),
        (100.0, 0.0833259, None),
    ],
)
def test_kl_of_hinton(temperature: float, value: float, gradient: list[float] | None) -> None:
    # In float64: at T = 100 the value is a difference of numbers ten thousand times as large.
    student = S.double().requires_grad_()
    loss = losses.kl_divergence(at(T.double(), temperature), student, temperature=temperature)
    loss.backward()
    assert_close(loss.item(), value, atol=1e-7, rtol=0)
    if gradient is not None:
        assert_close(student.grad, torch.tensor([gradient], dtype=torch.float64), atol=1e-7, rtol=0)


@pytest.mark.parametrize(("temperature", "value"), [(1, 0.153740), (2, 0.302626), (3, 0.356881), (4, 0.382250)])
def test_kl_times_temperature_squared(temperature: int, value: float) -> None:
    student, teacher = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([[3.0, 0.0, 1.0]])
    loss = losses.kl_divergence(at(teacher, temperature), student, temperature=float(temperature))
    assert_close(loss.item(), value, atol=2e-6, rtol=0)


def test_soft_cross_entropy_is_kl_plus_entropy() -> None:
    assert_close(losses.soft_cross_entropy(at(T), S).item(), 0.6611215, atol=1e-6, rtol=0)
    assert_close(losses.kl_divergence(at(T), S).item() + 0.6215846, 0.6611215, atol=1e-6, rtol=0)
    assert_close(losses.kl_divergence(at(S), T).item(), 0.0461001, atol=1e-6, rtol=0)


def test_reverse_kl_has_the_student_first() -> None:
    assert_close(losses.reverse_kl_divergence(at(T), S).item(), 0.0461001, atol=1e-6, rtol=0)
    student = S.double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda s: losses.reverse_kl_divergence(at(T.double(), 2.0), s, temperature=2.0), (student,)
    )
    forward_at_2 = losses.kl_divergence(at(S, 2.0), T, temperature=2.0)  # the same with the roles exchanged
    assert_close(losses.reverse_kl_divergence(at(T, 2.0), S, temperature=2.0), forward_at_2)


def test_logit_regression_is_the_limit_of_kl() -> None:
    student = S.clone().requires_grad_()
    loss = losses.logit_regression(T, student)
    loss.backward()
    assert_close(loss.item(), 1 / 12, atol=1e-7, rtol=0)
    assert_close(student.grad, torch.tensor([[-1 / 6, 0.0, 1 / 6]]), atol=1e-7, rtol=0)
    assert_close(losses.logit_regression(T + 5.0, S), losses.logit_regression(T, S - 2.0))
    hot = losses.kl_divergence(at(T.double(), 1e4), S.double(), temperature=1e4)
    assert_close(hot.item(), 1 / 12, atol=1e-4, rtol=0)


def test_two_teachers_of_a_flat_student() -> None:
    """Averaged probabilities give [.477, .477, .045], averaged logits another target."""
    teachers, student = [torch.tensor([[3.0, 0.0, 0.0]]), torch.tensor([[0.0, 3.0, 0.0]])], torch.zeros(1, 3)
    mean = torch.tensor([[0.4773608, 0.4773608, 0.0452785]])
    assert_close(pull("cross_entropy", teachers, student).loss.item(), math.log(3), atol=1e-6, rtol=0)
    assert_close(pull("kl", teachers, student).loss.item(), 0.2524787, atol=1e-6, rtol=0)
    reverse = -math.log(3) - mean.log().mean().item()
    assert_close(pull("reverse_kl", teachers, student).loss.item(), reverse, atol=1e-6, rtol=0)
    assert_close(pull("kl", teachers, student).target.exp(), mean, atol=1e-6, rtol=0)
    regressed = pull("logit_regression", teachers, student + 7.0)
    assert_close(regressed.loss.item(), (0.5**2 + 0.5**2 + 1.0) / 6, atol=1e-6, rtol=0)
    averaged = torch.tensor([[0.4498162, 0.4498162, 0.1003676]])
    assert_close(regressed.target.exp(), averaged, atol=1e-6, rtol=0)


def test_cross_entropy_and_kl_pull_alike_at_any_temperature() -> None:
    for temperature in (1.0, 3.0):
        pulls: list[torch.Tensor] = []
        for divergence in ("cross_entropy", "kl"):
            student = S.clone().requires_grad_()
            pull(divergence, [T, -T], student, temperature=temperature).loss.backward()
            assert student.grad is not None
            pulls.append(student.grad)
        assert_close(pulls[0], pulls[1])


def test_no_divergence_reaches_the_teachers() -> None:
    for divergence in DIVERGENCES:
        teacher, student = T.clone().requires_grad_(), S.clone().requires_grad_()
        pulled = pull(divergence, [teacher], student)
        pulled.loss.backward()
        assert teacher.grad is None
        assert not pulled.target.requires_grad
        assert_close(pulled.target, at(T))


DIVERGENCES: tuple[Divergence, ...] = ("cross_entropy", "kl", "reverse_kl", "logit_regression")


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_teachers_who_are_not_there_for_a_sample_leave_it_to_the_others_or_alone(divergence: Divergence) -> None:
    """Three samples: both speak, one does, none does. Each as if it were alone, in the mean over all three."""
    first, second, student = (torch.randn(3, 5, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
    present = torch.tensor([[True, True, False], [True, False, False]])
    pulled = pull(divergence, [first, second], student, present=present)
    both = pull(divergence, [first[:1], second[:1]], student[:1]).loss
    one = pull(divergence, [first[1:2]], student[1:2]).loss
    assert_close(pulled.loss, (both + one) / 3)
    assert bool(pulled.target.isfinite().all())
    everyone = torch.ones(2, 3, dtype=torch.bool)
    with_all = pull(divergence, [first, second], student, present=everyone)
    assert_close(with_all.loss, pull(divergence, [first, second], student).loss)


def test_presence_is_that_of_a_sample_with_all_its_places() -> None:
    teacher, student = torch.randn(2, 2, 3, 5, generator=torch.Generator().manual_seed(0))
    pulled = pull("kl", [teacher], student, present=torch.tensor([[False, True]]))
    assert_close(pulled.loss, pull("kl", [teacher[1:]], student[1:]).loss / 2)


def test_a_teacher_who_is_trusted_less_pulls_less_and_the_others_no_more() -> None:
    first, second, student = (torch.randn(4, 5, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
    trust = torch.tensor([1.0, 0.25])
    pulled = pull("cross_entropy", [first, second], student, trust=trust)
    apart = [pull("cross_entropy", [teacher], student).loss for teacher in (first, second)]
    assert_close(pulled.loss, (apart[0] + 0.25 * apart[1]) / 2)


def test_advantage_is_in_nats_by_the_label_and_trust_falls_with_it() -> None:
    label = torch.tensor([0])
    better = advantage([T, S], S, label)
    assert_close(better, torch.tensor([0.4076060 - 0.2413113, 0.0]), atol=1e-6, rtol=0)
    assert_close(guarded(better), torch.ones(2))
    assert_close(guarded(advantage([S], T, label)), torch.tensor([0.2413113 - 0.4076060]).exp(), atol=1e-6, rtol=0)


def test_cross_entropy_with_labels() -> None:
    label = torch.tensor([0])
    assert_close(losses.cross_entropy(S, label).item(), 0.4076060, atol=1e-6, rtol=0)
    assert_close(losses.cross_entropy(T, label).item(), 0.2413113, atol=1e-6, rtol=0)


def test_mean_probabilities_and_its_gradient() -> None:
    a, b = torch.tensor([[3.0, 0.0, 0.0]]), torch.tensor([[0.0, 3.0, 0.0]])
    target = combine.mean_probabilities([a, b])
    assert_close(target.exp(), torch.tensor([[0.4773608, 0.4773608, 0.0452785]]), atol=1e-6, rtol=0)
    student = torch.zeros(1, 3, requires_grad=True)
    loss = losses.soft_cross_entropy(target, student)
    loss.backward()
    assert_close(loss.item(), math.log(3), atol=1e-6, rtol=0)
    assert_close(student.grad, torch.tensor([[-0.1440274, -0.1440274, 0.2880548]]), atol=1e-6, rtol=0)
    assert_close(losses.kl_divergence(target, torch.zeros(1, 3)).item(), 0.2524787, atol=1e-6, rtol=0)


def test_mean_of_probabilities_gives_the_mean_of_the_gradients_and_mean_of_logits_does_not() -> None:
    generator = torch.Generator().manual_seed(0)
    teachers = [torch.randn(5, 7, generator=generator) * 2 for _ in range(3)]
    start = torch.randn(5, 7, generator=generator)

    def gradient(target: Tensor) -> Tensor:
        student = start.clone().requires_grad_()
        losses.soft_cross_entropy(target, student, temperature=2.0).backward()
        assert student.grad is not None
        return student.grad

    each = torch.stack([gradient(at(teacher, 2.0)) for teacher in teachers]).mean(0)
    assert_close(gradient(combine.mean_probabilities(teachers, temperature=2.0)), each, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(gradient(at(torch.stack(teachers).mean(0), 2.0)), each, atol=1e-3)


def test_shift_invariance_and_identity() -> None:
    assert abs(losses.kl_divergence(at(S), S).item()) < 1e-7
    assert_close(losses.kl_divergence(at(T), S + 3.0), losses.kl_divergence(at(T), S))
    assert_close(combine.mean_probabilities([T + 5.0]), combine.mean_probabilities([T]))


def test_reduction_is_over_every_position() -> None:
    generator = torch.Generator().manual_seed(1)
    student, teacher = torch.randn(4, 7, 10, generator=generator), torch.randn(4, 7, 10, generator=generator)
    p, q = teacher.double().softmax(-1).numpy(), student.double().softmax(-1).numpy()
    by_hand = float((p * (np.log(p) - np.log(q))).sum(-1).mean())
    assert_close(losses.kl_divergence(at(teacher), student).item(), by_hand, atol=1e-5, rtol=0)


def test_the_target_gets_no_gradient_unless_asked() -> None:
    teacher = T.clone().requires_grad_()
    losses.soft_cross_entropy(at(teacher), S.clone().requires_grad_()).backward()
    assert teacher.grad is None
    losses.kl_divergence(at(teacher), S, through=True).backward()
    assert teacher.grad is not None
    assert_close(teacher.grad, torch.tensor([[0.09958053, -0.06542578, -0.03415475]]), atol=1e-6, rtol=0)


def test_softmax_is_in_float32_even_for_half_precision() -> None:
    student = torch.tensor([[1000.0, 0.0]], dtype=torch.bfloat16)
    assert losses.cross_entropy(student, torch.tensor([1])).dtype == torch.float32
    assert combine.mean_probabilities([student]).dtype == torch.float32


def test_soft_cross_entropy_has_the_gradient_of_kl_at_every_temperature() -> None:
    for temperature in (1.0, 2.0, 5.0):
        gradients = []
        for loss in (losses.soft_cross_entropy, losses.kl_divergence):
            student = S.clone().requires_grad_()
            loss(at(T, temperature), student, temperature=temperature).backward()
            assert student.grad is not None
            gradients.append(student.grad)
        by_hand = temperature * (at(S, temperature).exp() - at(T, temperature).exp())
        assert_close(gradients[0], by_hand, atol=1e-6, rtol=0)
        assert_close(gradients[1], by_hand, atol=1e-6, rtol=0)


# Of S, minus the logarithms of the probabilities are 0.4076060, 1.4076060 and 2.4076060: with the label on the first
# class the others' mean is 1.5 higher.
@pytest.mark.parametrize(("epsilon", "value"), [(0.0, 0.4076060), (0.1, 0.5576060), (0.3, 0.8576060), (1.0, 1.9076060)])
def test_smoothed_labels(epsilon: float, value: float) -> None:
    loss = losses.smoothed_cross_entropy(S, torch.tensor([0]), epsilon=epsilon)
    assert_close(loss.item(), value, atol=1e-6, rtol=0)


def test_smoothed_labels_of_sequences_are_cross_entropy_to_that_distribution() -> None:
    generator = torch.Generator().manual_seed(2)
    logits, labels = torch.randn(4, 7, 10, generator=generator), torch.randint(10, (4, 7), generator=generator)
    q = np.full((28, 10), 0.2 / 9)
    q[np.arange(28), labels.reshape(-1).numpy()] = 0.8
    z = logits.double().numpy().reshape(28, 10)
    log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
    student = logits.clone().requires_grad_()
    loss = losses.smoothed_cross_entropy(student, labels, epsilon=0.2)
    loss.backward()
    assert_close(loss.item(), float(-(q * log_p).sum(-1).mean()), atol=1e-6, rtol=0)
    by_hand = torch.tensor((np.exp(log_p) - q) / 28).float().reshape(4, 7, 10)
    assert_close(student.grad, by_hand, atol=1e-7, rtol=0)
    # torch spreads over all classes, the label among them.
    of_torch = torch.nn.functional.cross_entropy(
        logits.reshape(28, 10), labels.reshape(-1), label_smoothing=0.2 * 10 / 9
    )
    assert_close(loss.item(), of_torch.item(), atol=1e-6, rtol=0)


def test_smoothing_needs_another_class() -> None:
    with pytest.raises(ValueError, match="needs at least 2 classes"):
        losses.smoothed_cross_entropy(torch.zeros(2, 1), torch.tensor([0, 0]), epsilon=0.1)


def test_what_a_target_takes_off_the_label() -> None:
    target = torch.tensor([[[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]], [[0.25, 0.7, 0.05], [1.0, 1e-30, 1e-30]]]).log()
    labels = torch.tensor([[0, 2], [1, 0]])
    assert_close(losses.off_label(target, labels).item(), (0.5 + 0.2 + 0.3 + 0.0) / 4, atol=1e-6, rtol=0)
    a, b = torch.tensor([[3.0, 0.0, 0.0]]), torch.tensor([[0.0, 3.0, 0.0]])
    mean = combine.mean_probabilities([a, b])  # 0.4773608, 0.4773608, 0.0452785
    assert_close(losses.off_label(mean, torch.tensor([2])).item(), 1 - 0.0452785, atol=1e-6, rtol=0)
    assert losses.off_label(torch.tensor([[1e-7, -30.0]]), torch.tensor([0])).item() == 0.0, "never less than nothing"


def test_ignored_positions_count_in_no_mean() -> None:
    logits = torch.cat([S, T, T])
    some, all_of_s = torch.tensor([0, losses.IGNORED, losses.IGNORED]), torch.tensor([0])
    assert_close(losses.cross_entropy(logits, some).item(), 0.4076060, atol=1e-6, rtol=0)
    assert_close(losses.smoothed_cross_entropy(logits, some, epsilon=0.1).item(), 0.5576060, atol=1e-6, rtol=0)
    assert_close(losses.off_label(at(logits), some), losses.off_label(at(S), all_of_s))
