"""Which examples are wrong? A table of all of them, for people and for other programs."""

import typing

import numpy as np

from prl_keras.auditing.estimate import estimate_from
from prl_keras.auditing.predictions import Predictions, predict_beside
from prl_keras.auditing.record import SelectionRecord
from prl_keras.auditing.score_examples import count_different
from prl_keras.validate import check_fraction

_LATE = 1 / 3  # of the recorded epochs; results/audit compares
_MOST_COLUMNS = 100  # the most targets that are shown, each with its prediction


def audit(
    model: typing.Any,
    dataset: typing.Any,
    record: SelectionRecord | None = None,
    epsilon: float | None = None,
    batch_size: int = 256,
) -> typing.Any:
    """A table of all the examples, in data order: how suspect each is, and what the model predicts instead.

    | column | |
    |---|---|
    | `score` | how suspect, higher = more; see below |
    | `rank` | 1 for the most suspect; ties by the loss, then in data order |
    | `is_flagged` | whether it is among the `epsilon` most suspect |
    | `given`, `predicted` | class numbers, -1 for none; up to 100 targets: `given_0`, `predicted_0`, ... |
    | `loss` | the model's loss on the example, in inference mode |
    | `given_probability` | the predicted probability of the given class (cleanlab's self-confidence) |
    | `probability_0`, ... | the predicted probability of each class |
    | `margin` | the recorded margin of the given class, its mean over all epochs; low = suspect |
    | `times_seen`, `times_dropped` | epochs in training; `times_dropped` counts each network |
    | `first_dropped`, `last_dropped` | epochs, from 1; missing if never dropped |

    The last three lines need a `record`; those of probabilities and of the margin need class labels. The
    margin is the logit of the given class minus the largest other. Its mean is the area under the margin
    (Pleiss et al. 2020, "Identifying mislabeled data using the area under the margin ranking"). The score is
    `1 - given_probability`, or for targets the loss. With a record it is the mean of the recorded
    `1 - given_probability`, or for targets of the recorded scores, over the last third of the epochs.
    Examples that were not seen in these epochs, or whose label the loss ignores, have no score and rank last.
    So do examples whose one-hot label has no class or several. Non-finite examples have an infinite score.
    Sample weights are ignored.

    **Several labels for each example.** If the loss takes several labels per example, the table has a row for
    each label that counts, in data order, and the index gives its position:

    | labels | index |
    |---|---|
    | classes `[n, steps]`: a sequence | `example`, `step` |
    | classes `[n, height, width]`, labels 0 and 1 `[..., 1]`: pixels | `example`, `row`, `column` |
    | the same with more axes | `example`, `axis_1`, `axis_2`, ... |
    | labels 0 and 1 `[n, ..., q]`, or targets `[n, steps, ..., q]`; q > 1 | as above, and `attribute` |

    A target vector `[n, q]` is one label; for a model with `unit="element"` each of its entries is a label.
    Padding has no rows: labels that a mask, `ignore_class` or a weight of 0 in a `sample_weight` of two axes
    or more excludes. (Weights `[n]` are ignored.) `epsilon` is a fraction of the labels. The columns are
    `score` to `loss`, for classes also `given_probability`, and two on the label's example:

    | column | |
    |---|---|
    | `example_score` | the mean score of its labels that count |
    | `example_rank` | 1 for the most suspect example; ties in data order |

    With one label per example, cleanlab takes the columns as they are:

        find_label_issues(labels=table["given"], pred_probs=table.filter(like="probability_").to_numpy())

    pandas writes the table: `table.to_csv("audit.csv")` or `table.to_parquet("audit.parquet")`.

    Args:
        model: A compiled Keras model with one output, such as `RobustModel` or `CoTeachingModel` (the mean of
            its networks).
        dataset: The examples, in the order of the table, as in `score_examples`; with a record, the data
            of the record.
        record: A `SelectionRecord` that was given to `fit`, or None. It has one row per example, so it must
            be None if examples have several labels each.
        epsilon: The fraction to flag, in `[0, 1)`; None for the estimate of `estimate_epsilon`.
        batch_size: The batch size for a tuple of arrays.

    Returns:
        A pandas `DataFrame` with index `example`, 0 to n - 1; for several labels per example with the
        `MultiIndex` above.

    Raises:
        ValueError: as in `score_examples`; for several outputs, a record of other data, or a record with
            several labels per example.
    """
    if epsilon is not None:
        check_fraction("epsilon", epsilon)
    if record is not None:
        if not isinstance(record, SelectionRecord):
            raise ValueError(
                f"record is of type {type(record).__name__} and must be a SelectionRecord, such as "
                "SelectionRecord(data, path).load(). Labels go with the inputs: audit(model, (x, y))."
            )
        record.check_kind(model)
        record.check_same(dataset, batch_size)
    found = predict_beside(model, dataset, batch_size)
    return table_of(found, record, estimate_from(found).estimate if epsilon is None else epsilon)


def table_of(found: Predictions, record: SelectionRecord | None, epsilon: float) -> typing.Any:
    """The table of `audit`, from `Predictions` and a record of the same examples (or None)."""
    import pandas as pd

    if found.by_element is not None and record is not None:
        raise ValueError(
            "A SelectionRecord has one row for each example, and this table one for each "
            f"{' and '.join(found.by_element.axes)} of it. Leave the record out: audit(model, dataset)."
        )
    n, score = len(found.losses), _score(found, record)
    flagged = round(epsilon * int(np.sum(~np.isnan(score))))
    rank = np.argsort(np.lexsort((_descending(found.losses), _descending(score)))) + 1
    columns = {"score": score, "rank": rank, "is_flagged": rank <= flagged}
    columns |= _classes(found) if found.is_of_classes else _targets(found)
    if found.by_element is not None:
        examples, *places = found.by_element.places.T
        names = ("example", *found.by_element.axes)
        index = pd.MultiIndex.from_arrays([examples, *places], names=names)
        return pd.DataFrame(columns | _of_examples(examples, score, found.by_element.examples), index=index)
    if record is not None and found.is_of_classes:
        columns["margin"] = _mean_margin(record)
    if record is not None:
        columns |= _history(record)
    return pd.DataFrame(columns, index=pd.RangeIndex(n, name="example"))


def _descending(values):
    """Keys that sort the highest first and NaN last."""
    return -np.nan_to_num(values, nan=-np.inf)


def _score(found, record):
    """float32 `[n]`: how suspect each example, or element, is."""
    score = 1 - found.given_probability if found.is_of_classes else found.losses
    score = np.where(found.is_finite | ~found.is_labelled, score, np.inf)
    if record is None:
        return score
    recorded = (
        record.scores if found.probabilities is None else 1 - record.given_probabilities.astype("float32")
    )
    if np.isnan(recorded).all():  # nothing was scored
        return score
    if not found.is_of_classes and _are_mostly_equal(recorded[-1]):
        return score
    late = slice(-max(1, round(_LATE * len(recorded))), None)
    recorded, seen = recorded[late], record.seen[late]
    seen = seen & found.is_labelled
    total = np.where(seen, np.where(np.isnan(recorded), np.inf, recorded), 0).sum(axis=0)
    return np.where(seen.any(axis=0), total / np.maximum(seen.sum(axis=0), 1), np.nan).astype(np.float32)


def _of_examples(examples, score, n):
    """The columns `example_score` and `example_rank`.

    Args:
        examples: int `[k]`, the index of each element's example, below `n`.
        score: float32 `[k]`, the score of each element.
    """
    counted = np.bincount(examples, minlength=n)
    means = np.bincount(examples, weights=score, minlength=n) / np.maximum(counted, 1)
    suspect = np.where(counted > 0, means, -np.inf)  # those without an element last
    rank = np.argsort(np.argsort(-suspect, kind="stable")) + 1
    return {"example_score": means.astype(np.float32)[examples], "example_rank": rank[examples]}


def _are_mostly_equal(scores):
    """Whether most scores are equal, as with a gradient that does not grow with the error."""
    finite = scores[np.isfinite(scores)]
    return 2 * count_different(finite) < min(len(finite), 1000)


def _classes(found):
    columns = {"given": found.given, "predicted": found.predicted, "loss": found.losses}
    columns["given_probability"] = found.given_probability
    if found.probabilities is None:
        return columns
    return columns | {f"probability_{i}": column for i, column in enumerate(found.probabilities.T)}


def _targets(found):
    if found.by_element is not None:
        return {"given": found.given, "predicted": found.predicted, "loss": found.losses}
    columns = {}
    if found.given.shape[1] <= _MOST_COLUMNS:
        for name, values in (("given", found.given), ("predicted", found.predicted)):
            columns |= {f"{name}_{i}": column for i, column in enumerate(values.T)}
    return columns | {"loss": found.losses}


def _mean_margin(record):
    """float32 `[n]`: the mean margin over the epochs that have one; NaN if none has."""
    margins = record.margins.astype(np.float32)
    is_there = ~np.isnan(margins)
    total, epochs = np.where(is_there, margins, 0).sum(axis=0), is_there.sum(axis=0)
    return np.where(epochs > 0, total / np.maximum(epochs, 1), np.nan).astype(np.float32)


def _history(record):
    dropped = record.dropped  # [epochs, networks, n]
    epochs = dropped.any(axis=1)
    first, last = epochs.argmax(axis=0) + 1, len(epochs) - epochs[::-1].argmax(axis=0)
    is_dropped = epochs.any(axis=0)
    return {
        "times_seen": record.seen.sum(axis=0),
        "times_dropped": dropped.sum(axis=(0, 1)),
        "first_dropped": np.where(is_dropped, first, np.nan),
        "last_dropped": np.where(is_dropped, last, np.nan),
    }
