"""A plain PyTorch loop in which two processes teach each other. Start it once for each:

    python own_loop.py --directory /tmp/two --replica 0 & python own_loop.py --directory /tmp/two --replica 1

Under torchrun (`torchrun --nproc-per-node 2 own_loop.py ...`) each replica is trained data parallel over its ranks.
"""

import argparse
import os

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import codistill

parser = argparse.ArgumentParser()
parser.add_argument("--directory", required=True, help="a directory that both share")
parser.add_argument("--replica", type=int, required=True)
parser.add_argument("--steps", type=int, default=300)
parser.add_argument("--mode", default="async")
options = parser.parse_args()

rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
if ranks > 1:
    dist.init_process_group("gloo")
torch.set_num_threads(1)
torch.manual_seed(options.replica)  # the two start from different weights

images, labels = load_digits(return_X_y=True)
images, labels = torch.from_numpy(images.astype(np.float32) / 16), torch.from_numpy(labels)
held_out = torch.arange(len(labels)) % 4 == 0
train_x, train_y = images[~held_out], labels[~held_out]

model: nn.Module = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
if ranks > 1:
    model = nn.parallel.DistributedDataParallel(model)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

with codistill.join(
    model, options.directory, replica=options.replica, replicas=2, burn_in_steps=options.steps // 3, interval_steps=20,
    mode=options.mode,
) as peers:  # fmt: skip
    for step in range(options.steps):
        shuffled = torch.randperm(len(train_y), generator=torch.Generator().manual_seed(options.replica * 10**6 + step))
        rows = shuffled[:32].chunk(ranks)[rank]
        batch = (train_x[rows], train_y[rows])
        logits = model(batch[0])
        loss = F.cross_entropy(logits, batch[1]) + peers.loss(batch, logits, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        peers.after_step(step)

with torch.no_grad():
    accuracy = (model(images[held_out]).argmax(-1) == labels[held_out]).float().mean().item()
if rank == 0:
    heard = ", ".join(f"{peer['teacher']} v{peer['version']}" for peer in peers.report())
    print(f"replica {options.replica}: accuracy {accuracy:.3f}, heard {heard or 'nobody'}")
    torch.save(model.state_dict(), f"{options.directory}-{options.replica}.pt")
