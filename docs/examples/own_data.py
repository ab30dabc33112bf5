"""Data of one's own under a name that specs can use: here scikit-learn's handwritten digits, as images of 8 x 8 pixels.

    python own_data.py
    codistill run scans.toml        # with `kind = "images"` and `data = "scans"` in its [recipe]

Texts and rows are made the same way, by `text_layout` and `row_layout`.
"""

import numpy as np
from sklearn.datasets import load_digits

from codistill.data.card import Origin
from codistill.data.home import data_home
from codistill.data.layouts import Images, image_layout
from codistill.data.writing import Description, write_dataset

pixels, labels = load_digits(return_X_y=True)
images = (pixels.reshape(-1, 1, 8, 8) * 255 / 16).astype(np.uint8)  # [n, channels, height, width]

place = np.arange(len(labels)) % 5
splits = {"train": place > 1, "validation": place == 0, "test": place == 1}
layout = image_layout(
    {name: Images(images[chosen], labels[chosen]) for name, chosen in splits.items()},
    class_names=[str(digit) for digit in range(10)],
)
description = Description(
    name="scans",
    title="Handwritten digits",
    description="1,797 of them, 8 x 8 pixels each",
    licence="CC BY 4.0",
    source=Origin(url="https://archive.ics.uci.edu/dataset/80"),
)
written = write_dataset(data_home(), description, layout)
print(f"{written.dataset.directory}: {written.dataset.card.rows:,} images")
