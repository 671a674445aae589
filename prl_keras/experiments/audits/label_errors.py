"""Measures how well wrong labels are found: by `audit` after one training, and by cleanlab after several.

Each case is one training (or the trainings of all folds) in one setting. It writes a JSON file with the
quality of each ranking, so an interrupted benchmark resumes. `pack` merges the files into cases.jsonl.
"""

import dataclasses
import json
import pathlib
import types
import zlib
from typing import Any

import keras
import numpy as np
from sklearn import metrics, model_selection

import prl_keras as prl
from prl_keras import files
from prl_keras.auditing.predictions import predict_beside
from prl_keras.experiments.data.load import load
from prl_keras.experiments.paper.protocol import PROTOCOLS
from prl_keras.experiments.runs.config import RunConfig
from prl_keras.experiments.runs.models import fit, recordable
from prl_keras.experiments.runs.threshold_examples import (
    TRAININGS,
    below_threshold,
    means_over_epochs,
    third,
)
from prl_keras.experiments.runs.training import Training

_PACKED = "cases.jsonl"
_TOP = 0.01  # the most suspect fraction of the data, whose precision is reported
_TRUSTED = 100


@dataclasses.dataclass(frozen=True)
class Case:
    """How the examples are ranked: the trained method, the epsilon it is told, the number of folds.

    Attributes:
        method: A name in `prl_keras.METHODS`.
        told_more: Error added to the true epsilon that the method is told. With None it is told nothing
            (`prl_keras.EstimatedEpsilon`).
        folds: 1 trains on all data and ranks them; k trains k times, each on k - 1 of the k parts, and ranks
            the part left out.
        threshold: Whether two trainings with threshold examples rank the data and flag (Pleiss et al. 2020).
    """

    method: str
    told_more: float | None = 0.0
    folds: int = 1
    threshold: bool = False

    @property
    def trainings(self) -> int:
        """The cost, in trainings of one network on all data."""
        networks = 2 if prl.METHODS[self.method].exchange else 1
        return networks * (TRAININGS if self.threshold else 1 if self.folds == 1 else self.folds - 1)


CASES = types.MappingProxyType(
    {
        "prl_l": Case("prl_l"),
        "prl_l_told_more": Case("prl_l", 0.1),
        "co_prl_l": Case("co_prl_l"),
        "co_prl_l_told_more": Case("co_prl_l", 0.1),
        "prl_l_5_folds": Case("prl_l", folds=5),
        "co_prl_l_auto": Case("co_prl_l", None),
        "standard": Case("standard"),
        "standard_threshold": Case("standard", threshold=True),
        "prl_l_threshold": Case("prl_l", threshold=True),
        "standard_2_folds": Case("standard", folds=2),
        "standard_5_folds": Case("standard", folds=5),
    }
)


def measure(
    name: str,
    dataset: str,
    corruption: str,
    epsilon: float,
    seed: int,
    output_dir: pathlib.Path | str,
    data_options: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Runs one of the `CASES` in one setting, or reads its result if there is one.

    Args:
        dataset: One of `PROTOCOLS` at the scale "cpu".
        corruption, epsilon, seed: As in `RunConfig`; the seed is also that of the noise.
        data_options: For `load`.

    Returns:
        dict: the setting; `rankings` {name: {"average_precision", "roc_auc", "precision_top"}}; if the case
        trains on all data, also `flags` {name: {"flagged", "precision", "recall", "f1"}}, the `estimate` of
        epsilon and the one with 100 `trusted` labels.
    """
    stem = f"{dataset}-{corruption}-{epsilon:g}-{name}-seed{seed}"
    path = pathlib.Path(output_dir) / f"{stem}.json"
    if stem in (done := results(output_dir)):
        return done[stem]
    case = CASES[name]
    config, data = _config(case, dataset, corruption, epsilon, seed, data_options)
    rank = _by_threshold if case.threshold else _in_sample if case.folds == 1 else _out_of_fold
    scores, flags, model, noise = rank(case, config, data)
    result = {
        "dataset": dataset, "corruption": corruption, "epsilon": epsilon, "seed": seed, "case": name,
        "trainings": case.trainings, "achieved_epsilon": float(np.mean(noise.is_corrupted)),
        "rankings": {key: _quality(noise.is_corrupted, score) for key, score in scores.items()},
    }  # fmt: skip
    if flags:
        result["flags"] = {key: _quality_of_flags(noise.is_corrupted, flag) for key, flag in flags.items()}
    if model is not None:
        result |= _estimates(model, data, noise, stem)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, result)
    return result


def results(directory: pathlib.Path | str) -> dict[str, dict[str, Any]]:
    """{name of a case and setting: its result} of all results in a folder, packed or not.

    Raises:
        ValueError: naming a damaged file.
    """
    directory = pathlib.Path(directory)
    found = {path.stem: files.read_json(path) for path in sorted(directory.glob("*.json"))}
    packed = directory / _PACKED
    for line in packed.read_text().splitlines() if packed.exists() else ():
        try:
            found |= json.loads(line)
        except ValueError as error:
            raise ValueError(f"{packed} is damaged: {error}.") from error
    return dict(sorted(found.items()))


def pack(directory: pathlib.Path | str) -> None:
    """Writes all results of a folder into cases.jsonl, one per line, and removes their own files."""
    directory = pathlib.Path(directory)
    lines = [json.dumps({name: result}) for name, result in results(directory).items()]
    with files.replacing(directory / _PACKED) as temporary:
        temporary.write_text("\n".join(lines) + "\n")
    for path in directory.glob("*.json"):
        path.unlink()


def _config(case, dataset, corruption, epsilon, seed, data_options):
    protocol = PROTOCOLS[dataset, "cpu"]
    data = load(dataset, **(data_options or {})).subset(protocol.train_size, protocol.test_size)
    settings = {
        name: getattr(protocol, name) for name in ("epochs", "batch_size", "learning_rate", "network")
    }
    settings["ramp_epochs"] = protocol.ramp_epochs(corruption)
    told = "auto" if case.told_more is None else round(epsilon + case.told_more, 6)
    config = RunConfig(
        dataset, case.method, corruption if epsilon else "none", epsilon,
        assumed_epsilon=told, seed=seed, noise_seed=seed, **settings,
    )  # fmt: skip
    return config, data


def _in_sample(case, config, data):
    keras.backend.clear_session()
    training = Training(config, data)
    model, given = recordable(training.model), (data.train_x, training.targets)
    record = prl.SelectionRecord(given)
    fit(model, *given, config, [record])
    found = predict_beside(model, given)
    scores = _rankings(found.probabilities, given[1], found.losses)
    scores["score_examples"] = prl.score_examples(training.model, given)
    scores |= _recorded(record, found.probabilities is not None)
    tables = {"estimate": prl.audit(model, given, record)}
    if training.is_corrupted.any():
        epsilon = float(np.mean(training.is_corrupted))
        tables["true epsilon"] = prl.audit(model, given, record, epsilon)
    scores["audit"] = tables["estimate"]["score"].to_numpy()
    flags = {name: table["is_flagged"].to_numpy() for name, table in tables.items()}
    return scores, flags, model, training


def _recorded(record, is_of_classes):
    """Scores from a record, {name: float32 `[n]`}."""
    scores = {}
    if is_of_classes:
        for name, likely in means_over_epochs(record.given_probabilities).items():
            scores[f"recorded probabilities, {name}"] = 1 - likely
        for name, margins in means_over_epochs(record.margins).items():
            scores[f"margins, {name}"] = -margins
    if not np.isnan(record.scores).all():
        late, dropped = -third(record.scores), record.dropped.mean(axis=1)
        scores["recorded scores, last third"] = record.scores[late:].mean(axis=0)
        scores["recorded scores, all epochs"] = record.scores.mean(axis=0)
        scores["times dropped"] = dropped.mean(axis=0)
        scores["times dropped, last third"] = dropped[late:].mean(axis=0)
    return scores


def _by_threshold(case, config, data):
    training = Training(config, data)
    below = below_threshold(config, data, training.targets)
    scores = {f"margins, {name}": values for name, values in below.items()}
    return scores, {name: score > 0 for name, score in scores.items()}, None, training


def _out_of_fold(case, config, data):
    training = Training(config, data)
    splits = model_selection.KFold if data.task == "regression" else model_selection.StratifiedKFold
    splitter = splits(case.folds, shuffle=True, random_state=config.seed)
    strata = None if data.task == "regression" else training.targets
    clean = dataclasses.replace(config, corruption="none", epsilon=0)  # the targets are corrupted already
    found = []
    for rest, left_out in splitter.split(data.train_x, strata):
        part = dataclasses.replace(data, train_x=data.train_x[rest], train_y=training.targets[rest])
        keras.backend.clear_session()  # frees the last training's memory
        model = Training(clean, part).model
        fit(model, part.train_x, part.train_y, config, [])
        of_part = predict_beside(model, (data.train_x[left_out], training.targets[left_out]))
        found.append((left_out, of_part.probabilities, of_part.losses))
    order = np.argsort(np.concatenate([rows for rows, _, _ in found]))
    probabilities = None if found[0][1] is None else np.concatenate([part for _, part, _ in found])[order]
    losses = np.concatenate([part for _, _, part in found])[order]
    return _rankings(probabilities, training.targets, losses), {}, None, training


def _rankings(probabilities, given, losses):
    """Scores from the final predictions, higher = more suspect; for classes with cleanlab's names."""
    if probabilities is None:
        return {"loss": losses}
    from cleanlab import rank

    return {
        method: 1 - rank.get_label_quality_scores(given, probabilities.astype(float), method=method)
        for method in ("self_confidence", "normalized_margin")
    }


def _quality(is_wrong, score):
    top = np.argsort(-score, kind="stable")[: max(1, round(_TOP * len(score)))]
    if not is_wrong.any():
        return {"average_precision": None, "roc_auc": None, "precision_top": 0.0}
    return {
        "average_precision": float(metrics.average_precision_score(is_wrong, score)),
        "roc_auc": float(metrics.roc_auc_score(is_wrong, score)),
        "precision_top": float(is_wrong[top].mean()),
    }


def _quality_of_flags(is_wrong, is_flagged):
    """The flagged fraction; precision, recall and F1 are None without wrong or without flagged examples."""
    found, wrong, flagged = (int(np.sum(mask)) for mask in (is_wrong & is_flagged, is_wrong, is_flagged))
    return {
        "flagged": float(np.mean(is_flagged)),
        "precision": found / flagged if flagged else None,
        "recall": found / wrong if wrong else None,
        "f1": 2 * found / (flagged + wrong) if wrong else None,
    }


def _estimates(model, data, noise, setting):
    given = data.train_x, noise.targets
    rng = np.random.default_rng(zlib.crc32(setting.encode()))  # different examples in each setting
    examples = rng.choice(len(noise.targets), _TRUSTED, replace=False)
    alone = prl.estimate_epsilon(model, given)
    trusted = prl.estimate_epsilon(model, given, trusted=(examples, data.train_y[examples]))
    return {"estimate": alone._asdict(), "trusted": trusted._asdict()}
