"""Small tables of scikit-learn: `wine` and `breast_cancer`."""

from typing import Any

import numpy as np
import sklearn.datasets
from sklearn.model_selection import train_test_split

from prl_keras.experiments.data.dataset import Dataset


def wine(**_: Any) -> Dataset:
    """Chemical analyses of wines of three growers: 13 features, 3 classes, 118 train and 60 test examples."""
    return _table("wine", test_size=60)


def breast_cancer(**_: Any) -> Dataset:
    """Cell nuclei, benign or malignant: 30 features, 2 classes, 399 train and 170 test examples."""
    return _table("breast_cancer", test_size=170)


def _table(name, test_size):
    """Stratified by class, the same split for every seed; features with mean 0 and deviation 1 in train."""
    x, y = getattr(sklearn.datasets, f"load_{name}")(return_X_y=True)
    y = y.astype(np.int64)
    train_x, test_x, train_y, test_y = train_test_split(x, y, test_size=test_size, stratify=y, random_state=0)
    mean, deviation = train_x.mean(axis=0), train_x.std(axis=0)
    train_x, test_x = (((part - mean) / deviation).astype(np.float32) for part in (train_x, test_x))
    source = f"{name} of scikit-learn"
    return Dataset(name, "classification", train_x, train_y, test_x, test_y, len(np.unique(y)), source)
