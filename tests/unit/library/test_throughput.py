"""Rates out of the seconds of a step, and how much of a device's peak they are."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from codistill.batch import Batch
from codistill.data.split import TensorSplit
from codistill.recipes import Recipe, open_recipe
from codistill.recipes.own import OwnRecipe
from codistill.spec import Text
from codistill.throughput import Throughput, forward_flops, peak_flops_of, throughput_of
from tests.support import small_spec

IDS = torch.arange(4)


@pytest.mark.parametrize(
    ("device", "precision", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", "bf16", 312e12),
        ("NVIDIA A100-SXM4-80GB", "fp32", 19.5e12),
        ("NVIDIA A10", "fp16", 125e12),
        ("NVIDIA H100 PCIe", "bf16", 756e12),
        ("NVIDIA H100 80GB HBM3", "bf16", 989e12),
        ("NVIDIA L4", "bf16", 121e12),
        ("NVIDIA L40S", "bf16", 362e12),
        ("Tesla T4", "fp16", 65e12),
        ("NVIDIA L40", "bf16", None),
        ("NVIDIA A1000", "bf16", None),
        ("AMD Instinct MI300X", "bf16", None),
    ],
)
def test_the_peak_of_a_device_is_known_or_is_not(device: str, precision: str, peak: float | None) -> None:
    assert peak_flops_of(device, precision) == peak


def test_rates_of_a_step() -> None:
    plain = Throughput(batch_size=64).rates(0.5)
    assert plain == {"time/step_s": 0.5, "perf/samples_per_s": 128.0}
    tokens = Throughput(16, "tokens", 64, flops_per_step=1e12, peak_flops=8e12).rates(0.25)
    assert tokens["perf/tokens_per_s"] == 16 * 64 / 0.25
    assert tokens["perf/mfu"] == pytest.approx(0.5)


def test_work_of_a_transformer_by_hand() -> None:
    from codistill.recipes.text import TextRecipe

    spec = Text(context=8, width=16, layers=2, heads=2)
    recipe = TextRecipe(spec)
    length, width = 8, 16
    products = 12 * width**2 * length  # queries, keys, values, output; twice four times the width
    attention = 2 * length**2 * width  # scores, and their mean of the values
    expected = 2 * (2 * (products + attention) + 256 * width * length)
    assert forward_flops(recipe.build_model(), recipe.example(1)) == expected


def test_a_cpu_has_rates_and_no_utilisation() -> None:
    recipe = OwnRecipe(2, lambda: nn.Linear(3, 2), lambda name: pytest.fail("no data are needed"))
    speed = throughput_of(recipe, batch_size=4, ranks=2, device=torch.device("cpu"), precision="fp32")
    assert speed == Throughput(4)
    assert forward_flops(nn.Linear(3, 2), Batch(torch.zeros(1), torch.zeros(1), {"x": torch.zeros(1, 3)})) == 12


@pytest.fixture
def settings_of_torch() -> Iterator[None]:
    """Whatever is set is set back."""
    conv, matmul = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    before = conv.fp32_precision, matmul.fp32_precision
    yield
    conv.fp32_precision, matmul.fp32_precision = before


@pytest.mark.usefixtures("settings_of_torch")
def test_utilisation_in_fp32_is_left_out_where_torch_computes_in_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100-SXM4-80GB")
    convolves = open_recipe(small_spec())
    mlp = OwnRecipe(2, lambda: nn.Linear(3, 2), lambda name: TensorSplit(IDS, IDS, {"x": torch.zeros(4, 3)}))

    def peak(recipe: Recipe, precision: str) -> float | None:
        device = torch.device("cuda")
        speed = throughput_of(recipe, batch_size=4, ranks=2, device=device, precision=precision)
        assert (speed.flops_per_step is None) == (speed.peak_flops is None)
        return speed.peak_flops

    assert (peak(convolves, "fp32"), peak(convolves, "bf16")) == (None, 2 * 312e12)
    assert (peak(mlp, "fp32"), peak(mlp, "bf16")) == (2 * 19.5e12, 2 * 312e12)
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    assert peak(convolves, "fp32") == 2 * 19.5e12
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    assert peak(mlp, "fp32") is None
