"""What forms of predictions do to a gradient: `python -m tests.benchmarks gradient_noise` (needs `codistill data import
gcide`; three minutes).

Two small transformers learn the same text, by bytes or by words. For batches of that text the gradient of the student's
pull to the teacher's distribution is taken once with the distribution whole, and once with each form of it. What a form
changes is the *error*, a vector; its square is compared with the squared noise that batches give the gradient of the
labels and the whole distribution together. What is in the error of every batch, and would be in the mean of infinitely
many, is compared with the squared mean of the teacher's whole gradient: noise leaves 0 of it, bias does not.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from codistill.data.catalog import find_dataset
from codistill.data.home import DataError
from codistill.exchange.predictions import Form, packed, unpacked
from codistill.losses import cross_entropy, soft_cross_entropy
from codistill.randomness import generator, seed_everything, uniforms
from codistill.recipes.models.transformer import Block
from tests.benchmarks.report import table

CONTEXT, WIDTH, BATCH, BATCHES = 32, 64, 8, 12
TRAINED_STEPS = {256: 800, 32_000: 500}
TEXT_CHARACTERS = 8_000_000


class Transformer(nn.Module):
    """Tokens [N, L] to logits [N, L, classes] of the one after each."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.embedding, self.position = nn.Embedding(classes, WIDTH), nn.Parameter(0.02 * torch.randn(CONTEXT, WIDTH))
        nn.init.normal_(self.embedding.weight, std=0.05)
        self.block, self.norm, self.head = Block(WIDTH, 4, 0.0), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.norm(self.block(self.embedding(tokens) + self.position)))


def tokens_of(classes: int) -> Tensor:
    """The text as bytes, or as its commonest words; 0 is any other word."""
    texts: list[Any] = []
    for path in find_dataset("gcide").paths("train"):
        texts += pq.read_table(path, columns=["text"]).column("text").to_pylist()
    text = "\n".join(texts)[:TEXT_CHARACTERS]
    if classes == 256:
        return torch.from_numpy(np.frombuffer(text.encode(), np.uint8).astype(np.int64))
    words = re.findall(r"\w+|[^\w\s]", text)
    number = {word: at + 1 for at, (word, _) in enumerate(Counter(words).most_common(classes - 1))}
    return torch.tensor([number.get(word, 0) for word in words])


def batches_of(tokens: Tensor, *names: int | str) -> Callable[[], tuple[Tensor, Tensor]]:
    draws = generator(*names)

    def batch() -> tuple[Tensor, Tensor]:
        starts = torch.randint(0, len(tokens) - CONTEXT - 1, (BATCH, 1), generator=draws)
        windows = tokens[starts + torch.arange(CONTEXT + 1)]
        return windows[:, :-1], windows[:, 1:]

    return batch


def trained(tokens: Tensor, classes: int, seed: int) -> Transformer:
    seed_everything(seed, "model")
    model, batch, steps = Transformer(classes), batches_of(tokens, seed, "train"), TRAINED_STEPS[classes]
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, (step + 1) / 50) * (1 - 0.9 * step / steps)
        x, y = batch()
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


def squared(values: Tensor) -> tuple[float, float, float]:
    """Of vectors [n, size]: their mean square, the square of their mean (without bias), and their variance."""
    n, mean_square = len(values), values.square().sum(1).mean().item()
    variance = (values - values.mean(0)).square().sum().item() / (n - 1)
    return mean_square, values.mean(0).square().sum().item() - variance / n, variance


def study(classes: int) -> list[list[str]]:
    tokens = tokens_of(classes)
    student, teacher = trained(tokens, classes, 1), trained(tokens, classes, 2)
    forms = {"16 likeliest": Form("top_k", classes, (CONTEXT,), 16)}
    forms |= {f"{draws} draws": Form("sampled", classes, (CONTEXT,), draws) for draws in (16, 50, 200)}

    def gradient(loss: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        student.zero_grad()
        loss(student(x)).backward()
        return torch.cat([parameter.grad.flatten() for parameter in student.parameters() if parameter.grad is not None])

    wholes, both = [], []
    errors: dict[str, list[Tensor]] = {name: [] for name in forms}
    entropies: dict[str, list[float]] = {name: [] for name in ["whole", *forms]}
    batch = batches_of(tokens, "study")
    for number in range(BATCHES):
        x, y = batch()
        with torch.no_grad():
            said = teacher(x).log_softmax(-1)
        wholes.append(gradient(lambda z, said=said: soft_cross_entropy(said, z), x))
        both.append(wholes[-1] + gradient(lambda z, y=y: cross_entropy(z, y), x))
        entropies["whole"].append(soft_cross_entropy(said, said).item())
        for name, form in forms.items():
            many = form.count * form.size
            draws = uniforms(torch.arange(BATCH), many, number) if form.kind == "sampled" else None
            told = unpacked(form, packed(form, said, y, draws))
            errors[name].append(gradient(lambda z, told=told: soft_cross_entropy(told, z), x) - wholes[-1])
            entropies[name].append(-(told.exp() * told).sum(-1).mean().item())
    noise, pull = squared(torch.stack(both))[2], squared(torch.stack(wholes))[1]
    rows: list[list[str]] = []
    for name, vectors in errors.items():
        in_a_step, in_all, _ = squared(torch.stack(vectors))
        lacking = np.mean(entropies["whole"]) - np.mean(entropies[name])
        shares = [f"{100 * in_a_step / noise:.1f}%", f"{100 * in_all / pull:.1f}%"]
        rows.append([f"{classes:,}", name, *shares, f"{lacking:+.2f}"])
    return rows


def main() -> None:
    torch.set_num_threads(1)
    try:
        find_dataset("gcide")
    except DataError as error:
        print(f"gradient_noise is left out: {error}", flush=True)
        return
    rows = [row for classes in TRAINED_STEPS for row in study(classes)]
    head = ["classes", "form", "error, of a step's noise", "in every step, of the mean pull", "entropy lacking, nats"]
    print(table("Squared errors of gradients", head, rows), flush=True)


if __name__ == "__main__":
    main()
