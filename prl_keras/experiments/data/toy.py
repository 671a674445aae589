"""Two small data sets that need no files: `digits` and `teacher`."""

from typing import Any

import numpy as np

from prl_keras.experiments.data.dataset import Dataset


def digits(**_: Any) -> Dataset:
    """8x8 handwritten digits of scikit-learn: x in [0, 1] `[n, 8, 8, 1]`, 10 classes.

    1,437 train and 360 test images, stratified by class; the split is the same for every seed.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ImportError("digits come with scikit-learn: install it, or use 'teacher'.") from error
    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8, 1) / 16).astype(np.float32)  # pixels are 0, ..., 16
    labels = labels.astype(np.int64)
    split = {"test_size": 360, "stratify": labels, "random_state": 0}
    train_x, test_x, train_y, test_y = train_test_split(images, labels, **split)
    source = "digits of scikit-learn"
    return Dataset("digits", "classification", train_x, train_y, test_x, test_y, 10, source)


def teacher(seed: int = 0, **_: Any) -> Dataset:
    """Regression on a random network, 2,000 train and 500 test examples, p = 20, q = 4.

        x ~ N(0, I_p),  y = tanh(x A / sqrt(p)) B / sqrt(h) + 0.05 N(0, I_q),  h = 32,

    A `[p, h]` and B `[h, q]` are standard normal. Then each coordinate of y is shifted and scaled to mean 0
    and standard deviation 1 over the train part. All random numbers come from `seed`.
    """
    rng = np.random.default_rng(seed)
    p, h, q, train, n = 20, 32, 4, 2000, 2500
    first, second = rng.standard_normal((p, h)), rng.standard_normal((h, q))
    x = rng.standard_normal((n, p))
    y = np.tanh(x @ first / np.sqrt(p)) @ second / np.sqrt(h)
    y += 0.05 * rng.standard_normal((n, q))
    y = (y - y[:train].mean(axis=0)) / y[:train].std(axis=0)
    x, y = x.astype(np.float32), y.astype(np.float32)
    source = f"random network and inputs, seed {seed}"
    return Dataset("teacher", "regression", x[:train], y[:train], x[train:], y[train:], q, source)
