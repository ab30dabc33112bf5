"""Co-distillation under Hugging Face's `Trainer`: a callback over `codistill.join`.

    Trainer(model, args, train_dataset=..., callbacks=[
        CodistillCallback("/shared/my-run", replica=0, replicas=2, burn_in_steps=400),
    ]).train()

Needs the extra `hf`: `pip install 'codistill[hf]'`.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from codistill.own_loop import JoinedPeers, join

NOT_FOR_TEACHERS = ("labels", "num_items_in_batch")


class CodistillCallback(TrainerCallback):
    """Adds the peers' term to the loss that the model returns, in training and once burn-in is over.

    The model must return a loss (so labels are among its inputs) and `logits` [N, classes] or [N, L, classes]; of a
    sequence, places that `attention_mask` hides are left out. `compute_loss_func` and the Trainer's label smoothing,
    which replace the model's own loss, are refused. Every `Trainer` process is a rank; replicas are separate programs.
    """

    def __init__(self, run: str, *, replica: int, replicas: int, burn_in_steps: int, **settings: Any) -> None:
        """As for `codistill.join`; `burn_in_steps` and `interval_steps` count optimizer steps."""
        self._run = run
        self._settings: dict[str, Any] = {
            "replica": replica,
            "replicas": replicas,
            "burn_in_steps": burn_in_steps,
            **settings,
        }
        self._peers: JoinedPeers | None = None
        self._state: TrainerState | None = None
        self._scale_of_sums = 1.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: nn.Module, **_: Any
    ) -> None:
        if args.label_smoothing_factor:
            raise ValueError(
                "label_smoothing_factor replaces the loss that peers are added to; set it to 0 (peers smooth already)"
            )
        self._state, self._model = state, model
        # A model that is told the number of items divides by those of the whole step; the Trainer then multiplies by
        # the processes, whose gradients are averaged.
        self._scale_of_sums = 1 / args.gradient_accumulation_steps
        if args.average_tokens_across_devices:
            self._scale_of_sums /= args.world_size
        self._peers = join(
            model, self._run, forward=_logits, build=self._copy, step=state.global_step, **self._settings
        )
        self._hook = model.register_forward_hook(self._add, with_kwargs=True)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        assert self._peers is not None
        self._peers.after_step(state.global_step - 1)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        assert self._peers is not None
        self._hook.remove()
        self._peers.close(state.global_step)

    def _add(self, module: nn.Module, args: tuple[Any, ...], inputs: dict[str, Any], output: Any) -> Any:
        assert self._peers is not None
        assert self._state is not None
        if not module.training:
            return None
        if args or output.get("loss") is None:
            raise ValueError(
                "the model returned no loss; CodistillCallback needs the labels among the model's keyword arguments"
                " (a Trainer with compute_loss_func takes them away)"
            )
        mask = inputs.get("attention_mask")
        shown = {name: value for name, value in inputs.items() if name not in NOT_FOR_TEACHERS}
        term = self._peers.loss(shown, _visible(output["logits"], mask), self._state.global_step)
        output["loss"] = output["loss"] + term * (self._scale_of_sums if "num_items_in_batch" in inputs else 1.0)
        return output

    def _copy(self) -> nn.Module:
        """A module for a teacher: without the hook, which leads back to the peers."""
        self._hook.remove()
        try:
            return copy.deepcopy(self._model)
        finally:
            self._hook = self._model.register_forward_hook(self._add, with_kwargs=True)


def _logits(module: nn.Module, inputs: dict[str, Any]) -> Tensor:
    return _visible(module(**inputs)["logits"], inputs.get("attention_mask"))


def _visible(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Of a sequence, the places [n, classes] that the mask shows."""
    return logits if mask is None or logits.ndim < 3 else logits[mask.bool()]
