"""A search: its space, its objectives, its trials, and what it does with those that fail."""

import warnings

import keras
import keras_tuner
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from small_search import LOSS, examples, hypermodel, make_network, search

import prl_keras as prl
from prl_keras import files
from prl_keras.tuning import report
from prl_keras.tuning.hypermodel import RobustHyperModel
from prl_keras.tuning.objectives import class_labels, noisy_metrics, trimmed_loss
from prl_keras.tuning.tuner import make_tuner


@pytest.fixture(scope="module")
def data():
    return examples()


TOO_HIGH = 1e39  # a learning rate that is infinite in float32


class TestSpace:
    def test_what_is_not_a_value_is_searched_by_its_name(self):
        hp = keras_tuner.HyperParameters()
        model = hypermodel(
            epsilon=(0.1, 0.5), learning_rate=(1e-4, 1e-2), batch_size=(10, 300), method=["prl_l", "spl"]
        )
        model.build(hp)
        found = {parameter.name: parameter for parameter in hp.space}
        assert (found["epsilon"].min_value, found["epsilon"].max_value) == (0.1, 0.5)
        assert found["learning_rate"].sampling == "log"
        assert list(found["batch_size"].values) == [16, 32, 64, 128, 256]
        assert list(found["method"].values) == ["prl_l", "spl"]
        assert "ramp_epochs" not in found  # what is fixed is no dimension of the search

    def test_the_model_is_that_of_build(self):
        hp = keras_tuner.HyperParameters()
        space = hypermodel(epsilon=0.25, ramp_epochs=2, batch_size=10, train_size=45, learning_rate=0.02)
        model = space.build(hp)
        assert isinstance(model, prl.RobustModel) and float(model.optimizer.learning_rate) == pytest.approx(
            0.02
        )
        steps = 2 * 5  # batches of 10 in 45 examples
        assert [float(model.rule.epsilon(step)) for step in (0, steps // 2, steps)] == pytest.approx(
            [0, 0.125, 0.25]
        )

    def test_epsilon_is_searched_for_methods_that_drop_a_fraction_alone(self):
        hp = keras_tuner.HyperParameters()
        space = hypermodel(method=["standard", "prl_l", "ignormclip"])
        assert space.values(hp)["epsilon"] == 0  # of the first
        hp.values |= {"method": "prl_l", "epsilon": 0.4}
        assert space.values(hp)["epsilon"] == 0.4
        assert hypermodel(method="standard").values(keras_tuner.HyperParameters())["epsilon"] == 0

    @pytest.mark.parametrize(
        "space, words",
        [
            ({"epsilon": (0.0, 1.0)}, r"epsilon=\(0.0, 1.0\).*in \[0, 1\)"),
            ({"epsilon": (0.5, 0.1)}, "low < high"),
            ({"epsilon": "0.3"}, "epsilon='0.3'"),
            ({"epsilon": []}, r"epsilon=\[\]"),
            ({"batch_size": (33, 60)}, "no power of 2"),
            ({"learning_rate": 0}, "learning_rate=0.*positive"),
            ({"batch_size": [32, 0]}, "batch_size.*>= 1"),
            ({"method": "prl"}, "method='prl'.*prl_l"),
            ({"method": ("prl_l", "spl")}, "no values in between"),
            ({"ramp_epochs": 3}, "train_size"),
            ({"metrics": [keras.metrics.SparseCategoricalAccuracy()]}, "trials would share"),
        ],
    )
    def test_a_space_out_of_range_is_refused(self, space, words):
        with pytest.raises(ValueError, match=words):
            RobustHyperModel(make_network, loss=LOSS, **space)

    @pytest.mark.parametrize("ramp", [{}, {"ramp_epochs": 2, "train_size": 45}])
    def test_nothing_warns_of_a_half_if_epsilon_is_searched(self, ramp):
        hp = keras_tuner.HyperParameters()
        hp.values["epsilon"] = 0.55
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            hypermodel(epsilon=(0.0, 0.6), **ramp).build(hp)
            hypermodel(epsilon=[0.4, 0.55], **ramp).build(hp)
        with pytest.warns(UserWarning, match="An epsilon of 0.5 or more"):
            hypermodel(epsilon=0.55, **ramp).build(hp)

    def test_it_warns_of_everything_else(self):
        def make():
            warnings.warn("of my own", stacklevel=1)
            return make_network()

        with pytest.warns(UserWarning, match="of my own"):
            RobustHyperModel(make, loss=LOSS, epsilon=(0.5, 0.6)).build(keras_tuner.HyperParameters())

    def test_a_model_is_no_function_that_makes_one(self):
        with pytest.raises(ValueError, match="fresh Keras model"):
            RobustHyperModel(make_network(), loss=LOSS)


class TestObjectives:
    def test_the_trimmed_loss_is_the_mean_of_each_class_lower_half(self):
        rng = np.random.default_rng(1)
        losses, labels = rng.random(101), rng.integers(0, 3, 101)
        kept = [sorted(losses[labels == label]) for label in range(3)]
        kept = [value for part in kept for value in part[: len(part) // 2]]
        assert trimmed_loss(losses, labels) == pytest.approx(np.mean(kept))
        assert trimmed_loss(losses) == pytest.approx(np.mean(sorted(losses)[:50]))

    def test_fewer_than_half_wrong_examples_cannot_move_it_beyond_the_clean_ones(self):
        losses = np.linspace(0.0, 1.0, 100)
        losses[51:] = 1e9
        assert trimmed_loss(losses) < 0.5

    def test_a_class_that_is_given_up_counts(self):
        labels = np.repeat([0, 1, 2, 3], 25)
        given_up = np.where(labels == 0, 9.0, 0.01)
        assert trimmed_loss(given_up) < 0.02 < 2 < trimmed_loss(given_up, labels)

    def test_one_example_of_a_class_and_nan(self):
        assert trimmed_loss([3.0], [1]) == 3.0
        assert np.isnan(trimmed_loss([np.nan, np.nan, 1.0, np.nan]))

    def test_of_classes_the_loss_is_the_probability_that_the_label_does_not_get(self):
        x, y = np.random.default_rng(0).normal(size=(40, 4)).astype("float32"), np.arange(40) % 3
        head, cross_entropy = keras.layers.Dense, keras.losses.SparseCategoricalCrossentropy()
        networks = [keras.Sequential([keras.Input((4,)), head(3, "softmax")]) for _ in range(2)]
        pair = iter(networks)
        model = prl.build("co_prl_l", lambda: next(pair), epsilon=0.3, loss=cross_entropy, optimizer="sgd")
        found = noisy_metrics(model, cross_entropy, x, y)

        missing = 1 - np.mean(
            [network.predict(x, verbose=0)[np.arange(40), y] for network in networks], axis=0
        )
        lowest = [
            value for label in range(3) for value in sorted(missing[y == label])[: sum(y == label) // 2]
        ]
        assert found["val_trimmed_loss"] == pytest.approx(np.mean(lowest), rel=1e-5)

    def test_of_targets_it_is_the_loss(self):
        x, y = np.ones((6, 4), "float32"), np.array([[3.0], [1.0], [7.0], [2.0], [9.0], [8.0]], "float32")
        network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, kernel_initializer="zeros")])
        network.compile(loss="mse")
        found = noisy_metrics(network, keras.losses.get("mse"), x, y)
        assert found["val_trimmed_loss"] == pytest.approx((1 + 4 + 9) / 3)

    def test_labels_are_integers_or_one_hot(self):
        assert class_labels(np.array([[2], [0]])).tolist() == [2, 0]
        assert class_labels(np.eye(3)[[2, 0]]).tolist() == [2, 0]
        assert class_labels(np.array([0.5, 1.0])) is None
        assert class_labels(np.ones((4, 2), "float32")) is None


class TestSearch:
    @pytest.fixture(scope="class")
    def searched(self, data, tmp_path_factory):
        directory = tmp_path_factory.mktemp("searched")
        options = {"executions_per_trial": 2, "max_trials": 3}
        return search(
            directory, data, {"epsilon": (0.0, 0.5)}, test_data=data, **options
        ), directory / "search"

    def test_each_execution_is_a_file_with_what_was_searched_and_measured(self, searched):
        table = report.executions(searched[1])
        assert len(table) == 6 and table["epsilon"].nunique() == 3
        assert {"val_accuracy", "val_loss", "val_trimmed_loss", "test_accuracy", "seconds"} <= set(table)
        assert (table["epochs"] == 2).all() and "failure" not in table

    def test_the_score_of_a_trial_is_the_mean_over_its_executions(self, searched):
        tuner, directory = searched
        table = report.trials(report.executions(directory), tuner.oracle.objective)
        assert table["val_trimmed_loss"].is_monotonic_increasing and (table["executions"] == 2).all()
        best = tuner.oracle.get_best_trials()[0]
        assert best.trial_id == table["trial"][0]
        assert best.score == pytest.approx(table["val_trimmed_loss"][0])

    def test_what_other_objectives_would_have_chosen(self, searched):
        _, directory = searched
        table = report.executions(directory)
        chosen = report.choices(table).set_index("objective")
        for name in ("val_trimmed_loss", "val_accuracy", "test_accuracy"):
            objective = keras_tuner.Objective(name, "min" if name.endswith("loss") else "max")
            row = report.chosen(table, objective)
            assert chosen.loc[name].tolist() == row[["epsilon", "test_accuracy"]].tolist()
        assert {"val_accuracy", "val_loss", "test_loss"} <= set(chosen.index)
        assert not {"val_loss_all", "val_kept_fraction"} & set(chosen.index)

    def test_the_best_model_is_that_of_the_best_execution(self, searched, data):
        tuner, directory = searched
        table = report.executions(directory)
        trial = tuner.oracle.get_best_trials()[0].trial_id
        best = table.loc[table["trial"] == trial]
        record = best.loc[best["val_trimmed_loss"].idxmin()]
        logs = tuner.get_best_models()[0].evaluate(*data, verbose=0, return_dict=True)
        assert logs["accuracy"] == pytest.approx(record["test_accuracy"])

    def test_executions_hold_out_parts_that_do_not_overlap(self, searched, data):
        x, y = data
        tuner, _ = searched
        held_out = [tuner._parts(i, x, y, None, 0.25)[1][0] for i in range(4)]
        trained = tuner._parts(1, x, y, None, 0.25)[0][0]
        assert sorted(map(tuple, np.concatenate(held_out))) == sorted(map(tuple, x))
        assert sorted(map(tuple, np.concatenate([trained, held_out[1]]))) == sorted(map(tuple, x))

    @pytest.mark.parametrize("kind", ["symmetric", "pairflip"])
    def test_the_parts_held_out_are_as_noisy_as_the_rest_with_one_seed_for_all(self, searched, kind):
        tuner, _ = searched
        noise = prl.corrupt(kind, np.arange(2000) % 10, 0.35, np.random.default_rng(tuner.seed))
        parts = [tuner._parts(i, noise.targets, noise.is_corrupted, None, 0.2)[1][1] for i in range(5)]
        # 400 of 2000 without replacement: a standard deviation of 0.021.
        assert [part.mean() for part in parts] == pytest.approx([0.35] * 5, abs=0.07)

    def test_started_again_it_has_nothing_to_do(self, searched, data):
        _, directory = searched
        before = report.executions(directory)
        search(directory.parent, data, {"epsilon": (0.0, 0.5)}, test_data=data, executions_per_trial=2)
        pd.testing.assert_frame_equal(report.executions(directory), before)

    @pytest.mark.long
    @pytest.mark.parametrize("kind", ["random", "bayesian", "grid"])  # hyperband has as many as it has
    def test_more_trials_go_on_with_it(self, kind, data, tmp_path):
        space = {"epsilon": [0.0, 0.1, 0.2, 0.3, 0.4]}
        search(tmp_path, data, space, kind, max_trials=2)
        first = report.executions(tmp_path / "search")
        search(tmp_path, data, space, kind, max_trials=4)
        both = report.executions(tmp_path / "search")
        assert both["epsilon"].nunique() == 4 and both["seconds"][:2].tolist() == first["seconds"].tolist()

    def test_another_search_in_the_folder_is_refused(self, searched, data):
        _, directory = searched
        with pytest.raises(ValueError, match=r"epochs was 2, is now 3.*overwrite=True"):
            search(directory.parent, data, {"epsilon": (0.0, 0.5)}, epochs=3, executions_per_trial=2)

    @pytest.mark.long
    def test_a_trial_is_a_function_of_the_seed(self, data, tmp_path):
        for name in ("one", "two"):
            search(tmp_path / name, data, max_trials=2, seed=3)
        tables = [report.executions(tmp_path / name / "search") for name in ("one", "two")]
        pd.testing.assert_frame_equal(*(table.drop(columns="seconds") for table in tables))

    @pytest.mark.long
    @pytest.mark.parametrize("method", ["prl_l", "co_prl_l"])
    def test_executions_that_share_a_trace_are_those_that_do_not(self, data, tmp_path, monkeypatch, method):
        def layered():
            middle = [keras.layers.Dense(5), keras.layers.BatchNormalization(), keras.layers.Dropout(0.3)]
            return keras.Sequential([keras.Input((4,)), *middle, keras.layers.Dense(3)])

        tf.config.run_functions_eagerly(False)
        tables = []
        for name in ("shared", "not"):
            if name == "not":
                monkeypatch.setattr(
                    "prl_keras.tuning.tuner.RobustTuner._fresh_model",
                    lambda self, trial: self._try_build(trial.hyperparameters),
                )
            space = RobustHyperModel(layered, loss=LOSS, metrics=["accuracy"], method=method, epsilon=[0.2])
            tuner = make_tuner(
                "grid", space, "val_loss", tmp_path / name, epochs=2, executions_per_trial=3, seed=1
            )
            tuner.search(*data, verbose=0)
            tables.append(report.executions(tmp_path / name).drop(columns="seconds"))
        tf.config.run_functions_eagerly(True)
        assert tables[0]["val_loss"].nunique() == 3
        pd.testing.assert_frame_equal(*tables, rtol=1e-5)

    @pytest.mark.daily("hyperband")  # the others are in other tests too
    @pytest.mark.parametrize("kind", ["bayesian", "grid", "hyperband"])
    def test_every_tuner_searches(self, kind, data, tmp_path):
        space = {"epsilon": [0.0, 0.2, 0.4]}
        tuner = search(tmp_path, data, space, kind, epochs=3, max_trials=3)
        table = report.executions(tmp_path / "search")
        assert len(table) == 3 and table["val_trimmed_loss"].notna().all()
        assert kind != "grid" or sorted(table["epsilon"]) == [0.0, 0.2, 0.4]
        assert kind != "hyperband" or table["epochs"].max() <= 3
        assert len(tuner.get_best_models()) == 1

    def test_pairs_and_plain_models_are_searched_alike(self, data, tmp_path):
        space = {"method": ["co_prl_l", "standard"], "epsilon": 0.2}
        search(tmp_path, data, space, "grid", max_trials=None)
        table = report.executions(tmp_path / "search")
        assert dict(zip(table["method"], table["epsilon"])) == {"co_prl_l": 0.2, "standard": 0.0}

    def test_other_data_in_the_folder_are_refused(self, searched, data):
        _, directory = searched
        x, y = data
        for changed in ((x, 2 - y), (x[:50], y[:50])):
            with pytest.raises(ValueError, match=r"data was '60 examples.*is now"):
                search(directory.parent, changed, {"epsilon": (0.0, 0.5)}, executions_per_trial=2)

    def test_tables_of_pandas_are_taken_by_their_order(self, data, tmp_path):
        x, y = data
        shuffled = pd.Series(y, index=np.random.default_rng(0).permutation(len(y)))
        for name, labels in (("arrays", y), ("tables", shuffled)):
            search(tmp_path / name, (pd.DataFrame(x) if name == "tables" else x, labels), max_trials=1)
        tables = [report.executions(tmp_path / name / "search") for name in ("arrays", "tables")]
        pd.testing.assert_frame_equal(*(table.drop(columns="seconds") for table in tables))

    def test_a_network_that_is_built_when_called(self, data, tmp_path):
        @keras.saving.register_keras_serializable(package="tuning_test")
        class Lazy(keras.Model):
            def __init__(self):
                super().__init__()
                self.dense = keras.layers.Dense(3)

            def call(self, x):
                return self.dense(x)

        model = RobustHyperModel(Lazy, loss=LOSS, metrics=["accuracy"], epsilon=0.2)
        tuner = make_tuner("grid", model, "val_accuracy", tmp_path / "search", epochs=1)
        tuner.search(*data, test_data=data, verbose=0)
        record = report.executions(tmp_path / "search").iloc[0]
        logs = tuner.get_best_models()[0].evaluate(*data, verbose=0, return_dict=True)
        assert logs["accuracy"] == pytest.approx(record["test_accuracy"])

    def test_own_validation_data_are_used_as_they_are(self, data, tmp_path):
        tuner = make_tuner(
            "random", hypermodel(), "val_accuracy", tmp_path / "search", epochs=1, max_trials=1
        )
        tuner.search(*data, validation_data=data, test_data=data, verbose=0)
        record = report.executions(tmp_path / "search").iloc[0]
        assert record["val_accuracy"] == record["test_accuracy"]


class TestFailures:
    def test_a_folder_that_cannot_be_made_is_named(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(OSError, match=r"file.search cannot be made"):
            make_tuner(
                "random", hypermodel(), "val_accuracy", tmp_path / "file" / "search", epochs=1, max_trials=1
            )

    def test_a_trial_that_goes_nan_is_recorded_and_the_search_goes_on(self, data, tmp_path):
        space = {"learning_rate": [TOO_HIGH, 0.01], "optimizer": keras.optimizers.SGD, "epsilon": 0.2}
        tuner = search(tmp_path, data, space, "grid", max_trials=None)
        table = report.trials(report.executions(tmp_path / "search"), tuner.oracle.objective)
        assert table["learning_rate"].tolist() == [0.01, TOO_HIGH]
        assert pd.isna(table["failure"][0]) and "val_trimmed_loss is nan" in table["failure"][1]
        assert sorted(trial.status for trial in tuner.oracle.trials.values()) == ["COMPLETED", "FAILED"]

    def test_a_trial_out_of_range_is_recorded_and_the_search_goes_on(self, data, tmp_path):
        model = hypermodel()
        model.space["epsilon"] = [1.5, 0.2]  # as if a user's own values(hp) went too far
        with pytest.raises(ValueError, match="epsilon"):  # keras-tuner builds a model with the first of each
            make_tuner("grid", model, "val_accuracy", tmp_path / "search", epochs=1)
        model.space["epsilon"] = [0.2, 1.5]
        tuner = make_tuner("grid", model, "val_accuracy", tmp_path / "search", epochs=1, overwrite=True)
        tuner.search(*data, verbose=0)
        table = report.trials(report.executions(tmp_path / "search"), tuner.oracle.objective)
        assert table["executions"].tolist() == [1, 1] and "epsilon" in table["failure"][1]

    @pytest.mark.long
    def test_no_number_of_failures_in_a_row_ends_the_search(self, data, tmp_path):
        space = {"learning_rate": [0.01, *(i * TOO_HIGH for i in range(1, 6)), 0.02], "epsilon": 0.2}
        search(tmp_path, data, {**space, "optimizer": keras.optimizers.SGD}, "grid", max_trials=None)
        table = report.executions(tmp_path / "search")
        assert table["failure"].notna().tolist() == [False, *[True] * 5, False]

    @pytest.mark.long
    def test_bayesian_search_does_not_propose_what_failed_or_was_tried(self, data, tmp_path):
        space = {"learning_rate": [0.01, 0.02, 0.03, TOO_HIGH, 2 * TOO_HIGH], "epsilon": 0.2}
        search(tmp_path, data, {**space, "optimizer": keras.optimizers.SGD}, "bayesian", max_trials=5)
        assert sorted(report.executions(tmp_path / "search")["learning_rate"]) == space["learning_rate"]

    def test_a_metric_that_is_not_finite_beside_a_finite_objective(self, data, tmp_path):
        x, y = data
        targets = np.where(np.arange(60) % 10 == 0, 1e30, y)[:, None].astype(
            "float32"
        )  # the square is infinite
        network = lambda: keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])  # noqa: E731
        model = RobustHyperModel(network, loss="mse", epsilon=0.3)
        tuner = make_tuner("grid", model, "val_trimmed_loss", tmp_path / "search", epochs=1)
        tuner.search(x, targets, verbose=0)
        assert [trial.status for trial in tuner.oracle.trials.values()] == ["COMPLETED"]
        assert len(tuner.get_best_models()) == 1

    @pytest.mark.parametrize("name", ["val_acuracy", "val_r2_score"])
    def test_a_misspelt_objective_is_refused_before_the_first_trial(self, name, data, tmp_path):
        objective = keras_tuner.Objective(name, "max")
        with pytest.raises(ValueError, match=f"{name}.*val_accuracy, .*val_trimmed_loss"):
            search(tmp_path, data, objective=objective)
        assert not list((tmp_path / "search").glob("trial_*"))

    @pytest.mark.parametrize("name", ["val_trimed_loss", "val_r2_score"])
    def test_a_name_that_is_not_reported_is_refused_by_make_tuner(self, name, tmp_path):
        words = (
            f"{name}.* is not reported; write one of val_trimmed_loss, val_loss, val_accuracy, .*Objective"
        )
        with pytest.raises(ValueError, match=words):
            make_tuner("random", hypermodel(), name, tmp_path / "search", epochs=1, max_trials=1)
        assert not (tmp_path / "search").exists()

    @pytest.mark.daily("metrics?-*")
    @pytest.mark.parametrize(
        ("metrics", "name"),
        [
            ("accuracy", "val_accuracy"),
            ([keras.metrics.sparse_categorical_accuracy], "val_sparse_categorical_accuracy"),
            ([keras.metrics.SparseCategoricalAccuracy], "val_sparse_categorical_accuracy"),
        ],
    )
    def test_a_metric_in_any_form_is_an_objective(self, metrics, name, data, tmp_path):
        model = RobustHyperModel(make_network, loss=LOSS, metrics=metrics)
        tuner = make_tuner("random", model, name, tmp_path / "search", epochs=1, max_trials=1)
        tuner.search(*data, verbose=0)
        assert tuner.oracle.get_best_trials()[0].score <= 1

    @pytest.mark.parametrize("objective", ["accuracy", None, "val_auc", 3])
    def test_an_objective_without_direction_or_of_the_training_data_is_refused(
        self, objective, data, tmp_path
    ):
        with pytest.raises(ValueError, match="objective="):
            search(tmp_path, data, objective=objective)

    def test_bad_arguments_are_refused(self, data, tmp_path):
        for options, words in (
            ({"kind": "randm"}, "tuner='randm'"), ({"epochs": 0}, "epochs=0"), ({"seed": -1}, "seed=-1"),
            ({"executions_per_trial": 0}, "executions_per_trial=0"),
            ({"max_trials": None}, "max_trials=None: tuner='random'.*write the most trials"),
        ):  # fmt: skip
            with pytest.raises(ValueError, match=words):
                search(tmp_path, data, **options)
        tuner = make_tuner("random", hypermodel(), "val_loss", tmp_path / "search", epochs=1, max_trials=1)
        x, y = data
        for arguments, options, words in (
            ((x, y[:-1]), {}, "x and y must be"), ((x, None), {}, "x and y must be"),
            ((x, y), {"validation_split": 0.7}, "validation_split=0.7"),
            ((x, y), {"validation_data": (x, y[1:])}, "validation_data must be"),
            ((x, y), {"validation_data": (x, y, y)}, r"validation_data must be .*\(x, y\), not 3 values"),
        ):  # fmt: skip
            with pytest.raises(ValueError, match=words):
                tuner.search(*arguments, verbose=0, **options)

    def test_a_data_set_is_refused_and_its_arrays_are_as_the_error_says(self, data, tmp_path):
        tuner = make_tuner("random", hypermodel(), "val_loss", tmp_path / "search", epochs=1, max_trials=1)
        dataset = tf.data.Dataset.from_tensor_slices(data).batch(30)  # two batches, so it can be unpacked
        with pytest.raises(ValueError, match=r"x and y must be two arrays.*NoneType.*come by"):
            tuner.search(dataset)
        with pytest.raises(ValueError, match="validation_data must be two arrays") as refused:
            tuner.search(*data, validation_data=dataset)
        way_out = str(refused.value).split("come by x, y = ")[1].rstrip(".")
        np.testing.assert_equal(tuple(eval(way_out, {"np": np, "dataset": dataset})), data)

    @pytest.mark.daily("*-prl_l")
    @pytest.mark.parametrize("method", ["prl_l", "co_prl_l", "standard"])
    @pytest.mark.parametrize("is_built", [True, False])
    def test_labels_out_of_range_are_refused_before_the_first_trial(self, method, is_built, data, tmp_path):
        x, y = data

        def make():
            return keras.Sequential([*([keras.Input((4,))] * is_built), keras.layers.Dense(3)])

        model = RobustHyperModel(make, loss=LOSS, method=method)
        tuner = make_tuner("random", model, "val_loss", tmp_path / "search", epochs=1, max_trials=1)
        at = int(np.argmax(y == 2))
        words = rf"at most 2 for 3 outputs; y\[{at}\] is 3\. Renumber"
        with pytest.raises(ValueError, match=f"^Class labels.*{words}"):
            tuner.search(x, y + 1, verbose=0)
        with pytest.raises(ValueError, match=f"^validation_data: Class labels.*{words}"):
            tuner.search(x, y, validation_data=(x, y + 1), verbose=0)
        with pytest.raises(ValueError, match=f"^test_data: Class labels.*{words}"):
            tuner.search(x, y, test_data=(x, y + 1), verbose=0)
        assert not list((tmp_path / "search").glob("trial_*"))

    @pytest.mark.long
    def test_an_execution_that_ended_is_not_repeated_after_an_interruption(self, data, tmp_path):
        class Stop(keras.callbacks.Callback):
            def on_epoch_end(self, epoch, logs=None):
                raise KeyboardInterrupt

        whole = search(tmp_path / "whole", data, max_trials=2, executions_per_trial=2)
        arguments = {"epochs": 2, "max_trials": 2, "executions_per_trial": 2}
        directory = tmp_path / "cut" / "search"
        tuner = make_tuner("random", hypermodel(), "val_trimmed_loss", directory, **arguments)
        with pytest.raises(KeyboardInterrupt):
            tuner.search(*data, verbose=0, callbacks=[Stop()])
        path = next((tmp_path / "whole").glob("search/trial_*0/execution_0.json"))
        record = {**files.read_json(path), "seconds": -1.0}
        files.write_json(directory / path.parent.name / path.name, record)  # as if it had ended just then
        search(tmp_path / "cut", data, **arguments)
        tables = [report.executions(tmp_path / name / "search") for name in ("whole", "cut")]
        assert tables[1]["seconds"][0] == -1.0
        pd.testing.assert_frame_equal(*(table.drop(columns="seconds") for table in tables))
        assert len(whole.oracle.trials) == 2


class TestChosen:
    """Of the trials within one standard error of the best, that of the largest epsilon."""

    def table(self, sign=1, failed=("d",)):
        values = {"a": (0.2, 0.10, 0.12), "b": (0.3, 0.115, 0.118), "c": (0.4, 0.13, 0.15), "d": (0.5, 0, 0)}
        return pd.DataFrame(
            [
                {
                    "trial": trial,
                    "execution": i,
                    "epsilon": epsilon,
                    "seconds": 1.0,
                    "failure": "NaN" if trial in failed else None,
                    "val_x": float("nan") if trial in failed else sign * value,
                }
                for trial, (epsilon, *both) in values.items()
                for i, value in enumerate(both)
            ]
        )

    @pytest.mark.parametrize(("direction", "sign"), [("min", 1), ("max", -1)])
    def test_within_one_standard_error_the_largest_epsilon(self, direction, sign):
        row = report.chosen(self.table(sign), keras_tuner.Objective("val_x", direction))
        # a: mean 0.11, standard deviation 0.0141 over 2: b's 0.1165 is within 0.01, c's 0.14 is not.
        assert (row["trial"], row["epsilon"]) == ("b", 0.3)
        assert row["standard_error"] == pytest.approx(0.01)

    def test_of_one_execution_each_the_best(self):
        table = self.table().query("execution == 0")
        row = report.chosen(table, keras_tuner.Objective("val_x", "min"))
        assert (row["trial"], row["standard_error"]) == ("a", 0)

    def test_none_if_all_failed(self):
        assert report.chosen(self.table(failed="abcd"), keras_tuner.Objective("val_x", "min")) is None
