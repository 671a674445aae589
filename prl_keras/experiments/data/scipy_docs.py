"""Paragraphs of SciPy's documentation: a text data set that comes with an installed package."""

import importlib
import inspect
import re
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from prl_keras.experiments.data.dataset import Dataset

#: Class -> the modules whose documentation is read.
MODULES = types.MappingProxyType(
    {
        "cluster": ("scipy.cluster.hierarchy", "scipy.cluster.vq"),
        "integrate": ("scipy.integrate",),
        "interpolate": ("scipy.interpolate",),
        "linalg": ("scipy.linalg",),
        "ndimage": ("scipy.ndimage",),
        "optimize": ("scipy.optimize",),
        "signal": ("scipy.signal", "scipy.signal.windows"),
        "sparse": ("scipy.sparse", "scipy.sparse.csgraph", "scipy.sparse.linalg"),
        "spatial": ("scipy.spatial", "scipy.spatial.distance", "scipy.spatial.transform"),
        "special": ("scipy.special",),
        "stats": ("scipy.stats", "scipy.stats.mstats", "scipy.stats.qmc"),
    }
)
_MOST = 450  # paragraphs of a class
_COMPONENTS = 128
_WORDS = 12  # a paragraph has at least so many
_TEST_SHARE = 0.25


def scipy_docs(**_: Any) -> Dataset:
    """Which of eleven parts of SciPy a paragraph of its documentation is about; float32 `[n, 128]`.

        1  The docstrings of public functions, classes and methods are cut into paragraphs. Examples of code,
           short paragraphs and repetitions are left out.
        2  A random 450 of each class stay, all if there are fewer. A quarter of the documented names is for
           the test: no docstring gives paragraphs to both parts.
        3  The words, weighted by TF-IDF of the training part, are projected on its first 128 singular
           vectors, and divided by one number, so that the mean square is 1.

    The paragraphs depend on SciPy's version, which `source` names. The global random generators are not used.
    """
    paragraphs = [(label, *pair) for label in MODULES for pair in _paragraphs(MODULES[label])]
    rng = np.random.default_rng(0)
    chosen: list[int] = []
    for label in MODULES:
        rows = [i for i, (other, _, _) in enumerate(paragraphs) if other == label]
        chosen += sorted(rng.permutation(rows)[:_MOST].tolist())
    chosen = rng.permutation(chosen).tolist()
    names = sorted({paragraphs[i][1] for i in chosen})
    of_test = set(rng.permutation(names)[: round(_TEST_SHARE * len(names))].tolist())
    train, test = (
        [paragraphs[i] for i in chosen if (paragraphs[i][1] in of_test) == part] for part in (0, 1)
    )
    vectorizer = TfidfVectorizer(
        token_pattern="[a-z]{3,}", stop_words="english", min_df=5, sublinear_tf=True, dtype=np.float64
    )
    svd = TruncatedSVD(_COMPONENTS, random_state=0)
    train_x = svd.fit_transform(vectorizer.fit_transform([text for *_, text in train]))
    test_x = svd.transform(vectorizer.transform([text for *_, text in test]))
    scale = np.sqrt(np.mean(train_x**2))
    classes = tuple(MODULES)
    train_y, test_y = (np.array([classes.index(label) for label, *_ in part]) for part in (train, test))
    return Dataset(
        "scipy_docs",
        "classification",
        (train_x / scale).astype(np.float32),
        train_y,
        (test_x / scale).astype(np.float32),
        test_y,
        len(classes),
        f"documentation of SciPy {scipy.__version__}, {len(train)} and {len(test)} paragraphs",
        classes,
    )


def _paragraphs(modules: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """(name of the documented object, paragraph), each paragraph once."""
    seen = set()
    for name, documentation in _docstrings(modules):
        for block in re.split(r"\n\s*\n", inspect.cleandoc(documentation)):
            text = " ".join(block.split())
            is_prose = ">>>" not in text and len(re.findall("[a-zA-Z]{3,}", text)) >= _WORDS
            if is_prose and text not in seen:
                seen.add(text)
                yield name, text


def _docstrings(modules):
    for module in map(importlib.import_module, modules):
        for name in sorted(module.__all__):
            found = getattr(module, name)
            if inspect.ismodule(found):
                continue
            documented = {name: found}
            if inspect.isclass(found):
                documented |= {
                    f"{name}.{key}": vars(found)[key] for key in sorted(vars(found)) if key[0] != "_"
                }
            for full_name, one in documented.items():
                if isinstance(getattr(one, "__doc__", None), str):
                    yield full_name, one.__doc__
