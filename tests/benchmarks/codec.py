"""What predictions take: `python -m tests.benchmarks.codec`.

Bytes of a prediction as it travels, how far what comes back is from the truth (standard errors of the mean of many for
the sampled form, nats of divergence for the others), and the milliseconds of a step: to write down what is said of a
batch, and to look up what a peer said of one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from codistill.exchange.prediction_records import NAME, to_arrays
from codistill.exchange.prediction_table import PredictionTable
from codistill.exchange.predictions import Columns, Form, Rows, packed, unpacked
from codistill.randomness import uniforms
from tests.benchmarks.report import interleaved, seconds, spread, table

IMAGES: tuple[int, ...] = ()
BYTES = WORDS = (128,)
FORMS = {
    "10 classes, dense": (Form("dense", 10, IMAGES), 64),
    "256 bytes, dense": (Form("dense", 256, BYTES), 16),
    "256 bytes, top 16": (Form("top_k", 256, BYTES, 16), 16),
    "256 bytes, 50 draws": (Form("sampled", 256, BYTES, 50), 16),
    "32,000 words, top 16": (Form("top_k", 32_000, WORDS, 16), 2),
    "32,000 words, 50 draws": (Form("sampled", 32_000, WORDS, 50), 2),
}
DRAWN, ROUNDS = 2000, 15


def logits_of(form: Form, samples: int) -> torch.Tensor:
    """Peaked as those of a language model are: probabilities fall about as 1 / rank^1.5, in an order of each place."""
    ranks = torch.rand(samples, *form.places, form.classes).argsort(-1).float() + 1
    return -1.5 * ranks.log()


def said(form: Form, logits: torch.Tensor, *names: int) -> Columns:
    many = form.count * form.size
    draws = uniforms(torch.arange(len(logits)), many, *names) if form.kind == "sampled" else None
    return packed(form, logits, torch.zeros(logits.shape[:-1], dtype=torch.int64), draws)


def bias(form: Form) -> str:
    """Of one prediction: the root mean square over classes of (mean - truth) / standard error, 1 where it is unbiased;
    or KL(truth || what comes back)."""
    one = Form(form.kind, form.classes, (), form.size)
    logits = logits_of(one, 1)
    truth = logits.double().log_softmax(-1)[0]
    if form.kind != "sampled":
        return (
            f"KL {F.kl_div(unpacked(one, said(one, logits))[0].double(), truth, log_target=True, reduction='sum'):.4f}"
        )
    total, batch = torch.zeros(form.classes, dtype=torch.float64), 100
    for number in range(DRAWN // batch):
        columns = said(one, logits.expand(batch, -1), number)
        total += unpacked(one, columns).double().exp().sum(0)
    p = truth.exp()
    error = (p * (1 - p) / (DRAWN * form.size)).sqrt()
    return f"{((total / DRAWN - p) / error).square().mean().sqrt():.2f} standard errors"


def main() -> None:
    torch.set_num_threads(1)
    rows: list[list[str]] = []
    for name, (form, batch) in FORMS.items():
        logits, ids = logits_of(form, batch), torch.arange(batch)
        columns = said(form, logits, 0)
        whole = Rows(np.arange(batch), np.zeros(batch, np.int64), columns)
        sent = to_arrays(form, whole)[NAME].nbytes / batch / form.count
        peer = PredictionTable(form)
        peer.take(whole)
        work: dict[str, Callable[[], float]] = {
            "write": lambda form=form, logits=logits: seconds(lambda: said(form, logits, 1)),
            "look up": lambda peer=peer, ids=ids: seconds(lambda: peer.look_up(ids)),
        }
        taken = {
            key: spread([1000 * s for s in values[1:]], ".2f") for key, values in interleaved(work, ROUNDS).items()
        }
        rows.append([name, f"{batch} x {form.count}", f"{sent:.1f}", bias(form), taken["write"], taken["look up"]])
    head = ["form", "batch x places", "bytes", "mean of many, or one", "ms to write", "ms to look up"]
    print(table("A prediction as it travels, and a batch of them", head, rows), flush=True)


if __name__ == "__main__":
    main()
