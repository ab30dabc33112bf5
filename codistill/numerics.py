"""How forward and backward passes are computed: device, precision, processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import GradBucket
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from codistill.environment import machine
from codistill.ranks import Ranks
from codistill.spec import JobSpec

Hook = Callable[[dist.ProcessGroup, GradBucket], torch.futures.Future[Tensor]]
"""How a bucket of gradients becomes the mean of all ranks'."""

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def device_of(spec: JobSpec, index: int) -> torch.device:
    """Where replica `index` trains: what the spec says, and CUDA where it reserves GPUs.

    Under Ray a process sees its own GPUs only; where it sees several (replicas as processes of one machine), they take
    turns. Raises `ValueError` when the device is not there.
    """
    kind = "cuda" if spec.on_cuda else spec.training.device.replace("auto", "cpu")
    if kind == "cuda":
        if not torch.cuda.is_available():
            raise ValueError("the spec asks for a GPU, and torch finds none here; set training.device = 'cpu'")
        return torch.device("cuda", index % torch.cuda.device_count())
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ValueError("training.device is 'mps', and torch finds none here; set training.device = 'cpu'")
    return torch.device(kind)


def hardware_of(device: torch.device) -> str | None:
    """The model of what computes: of the GPU, or of this machine's processor; None where nobody tells."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else machine()["cpu"]


def set_up_process(spec: JobSpec) -> None:
    """Threads and determinism, which are settings of the whole process."""
    torch.set_num_threads(max(1, int(spec.replicas.cpus)))
    if spec.training.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True)


@dataclass(frozen=True)
class Numerics:
    """Of one replica."""

    device: torch.device
    precision: str = "fp32"
    accumulate: int = 1
    """Micro-batches per step and rank."""

    def autocast(self) -> torch.autocast:
        """Within it matrix products run in half precision, if that is asked for."""
        dtype = HALF.get(self.precision)
        return torch.autocast(self.device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)

    def scaler(self) -> torch.amp.GradScaler:
        """Keeps fp16 gradients from vanishing; does nothing in other precisions."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")


def all_reduce_bytes(num_bytes: int, ranks: int) -> int:
    """What all ranks together send, and receive, to add up `num_bytes` that each has: 2 (n - 1) / n of it each, once to
    gather the sums and once to spread them (the least there is, and what a ring takes)."""
    return 2 * (ranks - 1) * num_bytes


def wrap(
    learner: nn.ModuleDict,
    ranks: Ranks,
    *,
    several_updates: bool,
    sent: Callable[[int], None] = lambda num_bytes: None,
) -> dict[str, nn.Module]:
    """The parts as they are called in training: with several ranks, each averages its gradients over them, and `sent`
    is told the bytes that all ranks together send for it.

    Part by part, since one wrapper around all would expect every part in every backward.
    """
    if ranks.count == 1:
        return dict(learner.items())

    def average(group: dist.ProcessGroup, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        sent(all_reduce_bytes(bucket.buffer().nbytes, ranks.count))
        return allreduce_hook(group, bucket)  # as without a hook

    return {name: _data_parallel(part, several_updates, average) for name, part in learner.items()}


def _data_parallel(
    part: nn.Module,
    several_updates: bool,
    average: Hook,
) -> nn.Module:
    trained = [parameter for parameter in part.parameters() if parameter.requires_grad]
    if not trained:
        return part
    on_gpu = trained[0].is_cuda
    wrapped = DistributedDataParallel(
        part,
        device_ids=[trained[0].get_device()] if on_gpu else None,
        forward_sync_buffers=False,  # each rank's own, averaged before they leave the replica
        find_unused_parameters=several_updates,
    )
    # A lambda, since torch looks at annotations and takes none that are strings, as all here are.
    wrapped.register_comm_hook(dist.group.WORLD, lambda group, bucket: average(group, bucket))
    return wrapped


@contextmanager
def gradients_stay_here(parts: Mapping[str, nn.Module], *, here: bool) -> Generator[None]:
    """While `here`, backward passes add up on this rank; the first one afterwards averages the sum over the ranks."""
    with ExitStack() as stack:
        if here:
            for part in parts.values():
                if isinstance(part, DistributedDataParallel):
                    stack.enter_context(part.no_sync())
        yield
