"""Hugging Face's Trainer, two replicas of a small vision transformer. Start it once for each:

python hf_trainer.py --directory /tmp/hf --replica 0 & python hf_trainer.py --directory /tmp/hf --replica 1
"""

import argparse

import numpy as np
import torch
from sklearn.datasets import load_digits
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification, set_seed

from codistill.hf import CodistillCallback

parser = argparse.ArgumentParser()
parser.add_argument("--directory", required=True, help="a directory that both share")
parser.add_argument("--replica", type=int, required=True)
parser.add_argument("--steps", type=int, default=300)
parser.add_argument("--accumulate", type=int, default=1)
parser.add_argument("--mode", default="async")
options = parser.parse_args()

torch.set_num_threads(1)
set_seed(options.replica)
images, labels = load_digits(return_X_y=True)
images = images.astype(np.float32).reshape(-1, 1, 8, 8) / 16
rows = [{"pixel_values": torch.from_numpy(x), "labels": int(y)} for x, y in zip(images, labels, strict=True)]
train_rows, test_rows = [row for i, row in enumerate(rows) if i % 4], rows[::4]

config = ViTConfig(
    image_size=8, patch_size=2, num_channels=1, num_labels=10, hidden_size=32, intermediate_size=64,
    num_hidden_layers=2, num_attention_heads=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
)  # fmt: skip
arguments = TrainingArguments(
    output_dir=f"{options.directory}-hf-{options.replica}", max_steps=options.steps, learning_rate=3e-3,
    per_device_train_batch_size=32 // options.accumulate, gradient_accumulation_steps=options.accumulate,
    use_cpu=True, report_to=[], disable_tqdm=True, logging_strategy="no", save_strategy="no", seed=options.replica,
)  # fmt: skip
peers = CodistillCallback(
    options.directory, replica=options.replica, replicas=2, burn_in_steps=options.steps // 3, interval_steps=20,
    mode=options.mode,
)  # fmt: skip
model = ViTForImageClassification(config)
Trainer(model, arguments, train_dataset=train_rows, callbacks=[peers]).train()  # pyright: ignore[reportArgumentType]

with torch.no_grad():
    logits = model.eval()(torch.stack([row["pixel_values"] for row in test_rows])).logits
accuracy = (logits.argmax(-1) == torch.tensor([row["labels"] for row in test_rows])).float().mean().item()
print(f"replica {options.replica}: accuracy {accuracy:.3f}")
torch.save(model.state_dict(), f"{options.directory}-{options.replica}.pt")
