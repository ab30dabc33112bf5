"""A recipe of one's own: benign or malignant, from 30 measurements of 569 tumours (ships with scikit-learn)."""

import torch
from sklearn.datasets import load_breast_cancer
from torch import nn

from codistill.data.split import SplitName, TensorSplit
from codistill.recipes.own import OwnRecipe


def tumours(width: int = 16) -> OwnRecipe:
    def build() -> nn.Module:
        return nn.Sequential(nn.BatchNorm1d(30), nn.Linear(30, width), nn.ReLU(), nn.Linear(width, 2))

    def read(split: SplitName) -> TensorSplit:
        x, y = (torch.as_tensor(array) for array in load_breast_cancer(return_X_y=True))
        ids = torch.arange(len(y))
        ids = ids[{"train": ids % 5 > 1, "validation": ids % 5 == 0, "test": ids % 5 == 1}[split]]
        return TensorSplit(ids, y[ids], {"x": x[ids].float()})

    return OwnRecipe(classes=2, build=build, read=read, settings={"width": width})
