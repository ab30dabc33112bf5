"""A Ray Train function in which every worker is a replica:

    python ray_train_loop.py --directory /shared/two

Ray Train starts the workers and watches them; what they teach each other goes through the directory.
"""

import argparse
from typing import Any

import numpy as np
import ray.train
import torch
import torch.nn.functional as F
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from sklearn.datasets import load_digits
from torch import nn

import codistill
from codistill.ranks import ALONE


def train(config: dict[str, Any]) -> dict[str, Any]:
    context = ray.train.get_context()
    replica, replicas, steps = context.get_world_rank(), context.get_world_size(), int(config["steps"])
    torch.set_num_threads(1)
    torch.manual_seed(replica)
    images, labels = load_digits(return_X_y=True)
    x, y = torch.from_numpy(images.astype(np.float32) / 16), torch.from_numpy(labels)
    held_out = torch.arange(len(y)) % 4 == 0
    train_x, train_y = x[~held_out], y[~held_out]
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    heard: set[int] = set()
    with codistill.join(
        model, config["directory"], replica=replica, replicas=replicas, burn_in_steps=steps // 3, interval_steps=20,
        ranks=ALONE,
    ) as peers:  # fmt: skip
        for step in range(steps):
            rows = torch.randint(len(train_y), (32,))
            batch = (train_x[rows], train_y[rows])
            logits = model(batch[0])
            loss = F.cross_entropy(logits, batch[1]) + peers.loss(batch, logits, step)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            peers.after_step(step)
            heard.update(peer["version"] for peer in peers.report())
    accuracy = (model(x[held_out]).argmax(-1) == y[held_out]).float().mean().item()
    return {"accuracy": accuracy, "versions_heard": sorted(heard)}


def main(directory: str, steps: int = 2000, workers: int = 2) -> dict[str, Any]:
    trainer = TorchTrainer(
        train,
        train_loop_config={"directory": directory, "steps": steps},
        scaling_config=ScalingConfig(num_workers=workers, resources_per_worker={"CPU": 0.5}),
        run_config=RunConfig(storage_path=f"{directory}-ray"),
    )
    result: Any = trainer.fit()
    return result.return_value  # the first worker's


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--directory", required=True)
    print(main(parser.parse_args().directory))
