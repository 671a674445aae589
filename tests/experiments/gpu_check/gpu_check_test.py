"""binaries/gpu_check.py: what each part writes, and that it ends in time, killed or not."""

import dataclasses
import math
import os
import pathlib
import signal
import subprocess
import sys
import time
import types

import pandas as pd
import pytest
import tensorflow as tf
from processes import python
from project import ROOT

from prl_keras import METHODS
from prl_keras.experiments.gpu_check import cells, check, costs, oracle, page, smoke
from prl_keras.experiments.gpu_check.children import in_child
from prl_keras.experiments.gpu_check.items import Items, OutOfTime
from prl_keras.experiments.gpu_check.job import Job, label, paper_size, rehearsal_size
from prl_keras.experiments.paper import report, tables
from prl_keras.experiments.paper.protocol import Protocol
from prl_keras.experiments.paper.tables import TABLES, Row
from prl_keras.experiments.runs import results
from prl_keras.methods import PAPER_METHODS

PROGRAM = ["-m", "binaries.gpu_check", "--rehearsal"]
HAS_GPU = bool(tf.config.list_physical_devices("GPU"))
TITLES = {name: part.title for name, part in check.PARTS.items()}

# As the project's own: at the end of a session in this process nothing looks for garbage.
PYTEST = "[tool.pytest.ini_options]\naddopts = '-p no:unraisableexception'\n"


def job(folder, seconds=3600, attempt="1", **size):
    begun = time.monotonic()
    return Job(dataclasses.replace(rehearsal_size(), **size), folder, begun, begun + seconds, attempt)


def page_of(one):
    page.write(one, TITLES)
    return (one.output_dir / "gpu_check.md").read_text()


class TestItems:
    def test_what_is_missing_comes_first_and_what_failed_is_tried_once_a_start(self, tmp_path):
        asked = []

        def measure(key):
            asked.append(key)
            if key == "a":
                raise RuntimeError("no kernel image\nlong text")
            return {"value": key}

        for attempt in ("1", "1", "2"):
            Items(tmp_path / "x.json", attempt).measure(["a", "b"], measure, math.inf, print)
        assert asked == ["a", "b", "a"]
        items = Items(tmp_path / "x.json")
        assert items.errors == {"a": "RuntimeError: no kernel image"} and items.good == {"b": {"value": "b"}}
        Items(tmp_path / "x.json", "3").measure(["a", "b", "c"], measure, math.inf, print)
        assert asked[3:] == ["c", "a"]

    def test_an_item_that_would_not_fit_is_not_begun(self, tmp_path):
        items = Items(tmp_path / "x.json", "1")
        items.measure("abcde", lambda key: time.sleep(0.3) or {}, time.monotonic() + 0.8, print)
        assert list(items.found) == ["a", "b"] and not items.is_complete
        items.measure("abcde", lambda key: {}, time.monotonic() + 9, print)
        assert items.is_complete

    def test_out_of_time_ends_the_part_and_leaves_the_item(self, tmp_path):
        def measure(key):
            if key == "b":
                raise OutOfTime
            return {}

        items = Items(tmp_path / "x.json", "1")
        items.measure("abc", measure, math.inf, print)
        assert list(items.found) == ["a"] and Items(tmp_path / "x.json").total == 3

    def test_a_damaged_file_is_named(self, tmp_path):
        (tmp_path / "x.json").write_text('{"found": {')
        with pytest.raises(ValueError, match=r"x.json is damaged: .* Remove it to measure that part again."):
            Items(tmp_path / "x.json")


def sleeps_with_a_child_of_its_own(path):
    code = f"import pathlib, time\npath = pathlib.Path({str(path)!r})\n"
    code += "while True: path.write_text(str(time.time())); time.sleep(.05)"
    subprocess.run([sys.executable, "-c", code], check=True)


class TestChildren:
    @pytest.mark.long
    def test_errors_and_exit_codes_come_back(self):
        ended = in_child(math.sqrt, -1, math.inf)
        assert ended.how == "raised" and isinstance(ended.value, ValueError)
        assert in_child(os._exit, 7, math.inf) == ("died", 7)

    @pytest.mark.long
    def test_one_whose_time_is_up_is_stopped_with_all_that_it_started(self, tmp_path):
        beat = tmp_path / "beat"
        start = time.monotonic()
        while not beat.exists():  # TensorFlow may take long to import
            ended = in_child(sleeps_with_a_child_of_its_own, beat, time.monotonic() + 15)
            assert ended == ("stopped", None) and time.monotonic() - start < 90
        last = beat.read_text()
        time.sleep(0.5)
        assert beat.read_text() == last


class TestSizes:
    def test_the_most_telling_runs_come_first_and_none_is_left_out(self):
        cells_ = paper_size().cells
        assert [label(config) for config in cells_[:6]] == [
            "CF10-pf-45, Standard, seed 0", "CF10-pf-45, PRL(L), seed 0", "CF10-pf-45, Co-PRL(L), seed 0",
            "CF10-pf-45, SPL, seed 0", "CF10-pf-45, Co-teaching, seed 0", "CF10-sym-50, Standard, seed 0",
        ]  # fmt: skip
        assert set(cells_) == set(TABLES[2].configs("paper")) and len(set(cells_)) == len(cells_)
        assert [config.seed for config in cells_] == sorted(config.seed for config in cells_)

    def test_steps_are_those_of_every_method_in_every_variant_with_its_baseline(self):
        cases = costs.step_cases(paper_size())
        suited = {name for name in PAPER_METHODS if "classification" in METHODS[name].tasks}
        for is_compiled in (False, True):
            for precision in ("float32", "bfloat16"):
                mine = [c for c in cases if (c.is_compiled, c.precision) == (is_compiled, precision)]
                assert {case.method for case in mine} == suited
                assert {c.norm for c in mine if METHODS[c.method].score == "gradient"} == {"group"}
        assert all(case.baseline in cases[: i + 1] for i, case in enumerate(cases))
        assert len({costs.name_of(case) for case in cases}) == len(cases)


class TestParts:
    def test_smoke_compares_with_the_cpu_and_a_wrong_device_differs(self, tmp_path, monkeypatch):
        smoke.run(job(tmp_path))
        found = Items(tmp_path / "gpu_check/smoke.json").good
        assert found["convolution, float32"]["agrees"] and found["matrix product, bfloat16"]["agrees"]
        assert found["device"]["versions"]["tensorflow"] == tf.__version__
        broken = (lambda x, y: tf.matmul(x, y) * (1.001 if x.dtype == tf.float32 else 1.0), (9, 9), (9, 9))
        monkeypatch.setitem(smoke._OPERATIONS, "matrix product", broken)
        smoke.run(job(tmp_path))
        assert "| matrix product, float32  | DIFFERS, 1.0e-03 of at most 1e-05 |" in page_of(job(tmp_path))

    @pytest.mark.skipif(HAS_GPU, reason="there is a GPU")
    def test_without_a_gpu_the_rehearsal_is_named(self, tmp_path):
        one = dataclasses.replace(job(tmp_path), size=paper_size())
        with pytest.raises(ValueError, match=r"finds no GPU here.*--rehearsal"):
            smoke.run(one)

    def test_another_device_needs_another_folder(self, tmp_path):
        smoke.run(job(tmp_path))
        path = tmp_path / "gpu_check/about.json"
        path.write_text(path.read_text().replace('"device": "', '"device": "Another '))
        with pytest.raises(ValueError, match=r"holds a check of device 'Another .*Take another --output_dir"):
            smoke.run(job(tmp_path))

    def test_tests_of_the_checkout_are_counted_and_those_that_passed_stay_out(self, tmp_path, monkeypatch):
        text = "import pathlib, pytest\ndef test_a(): pathlib.Path({0!r}).open('a').write('a')\n"
        text += "def test_b(): assert 1 == 2\ndef test_c(): pytest.skip('no')\n"
        (tmp_path / "some_test.py").write_text(text.format(str(tmp_path / "ran")))
        (tmp_path / "pyproject.toml").write_text(PYTEST)
        monkeypatch.setattr(oracle, "_ROOT", tmp_path)
        monkeypatch.setattr(oracle, "_FILES", ("some_test.py",))
        for attempt in "12":
            oracle.run(job(tmp_path, attempt=attempt, most=None))
        assert (tmp_path / "ran").read_text() == "a"
        text = page_of(job(tmp_path))
        assert "Passed: 1. Skipped: 1. Failed: 1." in text and "- some_test.py::test_b: assert 1 == 2" in text
        monkeypatch.setattr(oracle, "_FILES", ("none_test.py",))
        assert oracle.lacks_tests().startswith("none_test.py is not beside the package")

    def test_tests_stop_in_time(self, tmp_path, monkeypatch):
        text = "import pytest, time\n@pytest.mark.parametrize('i', range(50))\ndef test(i): time.sleep(0.2)\n"
        (tmp_path / "slow_test.py").write_text(text)
        (tmp_path / "pyproject.toml").write_text(PYTEST)
        monkeypatch.setattr(oracle, "_ROOT", tmp_path)
        monkeypatch.setattr(oracle, "_FILES", ("slow_test.py",))
        oracle.run(job(tmp_path, seconds=1.5, most=None))
        items = Items(tmp_path / "gpu_check/oracle.json")
        assert 1 <= len(items.good) < 20 and items.total == 50

    @pytest.mark.long
    def test_kernels_and_steps_are_measured_and_shown(self, tmp_path, monkeypatch):
        monkeypatch.setattr(costs, "_VARIANTS", ((False, "bfloat16"),))
        one = job(tmp_path, most=1, methods=("standard", "co_prl_l"), batch_size=4)
        costs.kernels(one)
        costs.steps(one)
        found = Items(tmp_path / "gpu_check/steps.json").good
        assert [len(facts["seconds"]) for facts in found.values()] == [3, 3]
        pair = found["Co-PRL(L), epsilon 0.45, two networks, batch norm, bfloat16, no XLA"]
        pair |= {"seconds": [6.0, 9.0, 8.0], "base_seconds": [2.0, 3.0, 2.0], "peak": 3 * 2**20}
        items = Items(tmp_path / "gpu_check/steps.json")
        items.found |= {"pair": pair}
        items.write()
        text = " ".join(page_of(one).split())
        assert "| bfloat16 | no | 8000.00 | 1.50 (1.50 to 1.75) | 3 |" in text
        assert "| Standard, group norm |" in text and "1 of 1 done." in text

    def test_pytorch_has_a_process_without_tensorflow(self, tmp_path, monkeypatch):
        program = (
            "import json, sys; assert 'tensorflow' not in sys.modules; options = json.loads(sys.argv[1])\n"
        )
        program += "assert not options['is_compiled'], 'no compiler'\n"
        program += "print(json.dumps({'seconds': [0.5], 'first_seconds': 1, 'peak': None, 'version': '2'}))"
        (tmp_path / "pytorch.py").write_text(program)
        fake = types.SimpleNamespace(__file__=str(tmp_path / "__init__.py"))
        monkeypatch.setattr(costs, "benchmark", fake)
        costs.pytorch(job(tmp_path))
        text = page_of(job(tmp_path))
        assert "| float32     | eager |      500.00 |" in text and "2 of 4 done. Failed: 2." in text
        assert "AssertionError: no compiler" in text


class TestCells:
    @pytest.mark.long
    def test_a_run_cut_off_is_shown_and_in_no_table(self, tmp_path, monkeypatch):
        protocol = Protocol(500, 0.001, "mlp", 4, 0.2, 0.2, seeds=1)
        monkeypatch.setattr(tables, "PROTOCOLS", {("digits", "cpu"): protocol})
        table = dataclasses.replace(
            TABLES[2], rows=(Row("digits", "symmetric", 0.4),), methods=("standard", "prl_l"), clean_data=()
        )
        configs = tuple(table.configs("cpu"))
        cells.run(job(tmp_path, name="cpu", cells=configs[:1]))
        cells.run(job(tmp_path, seconds=0.5, name="cpu", cells=configs))  # an epoch, and no more
        paths = [results.path_of(tmp_path / "cpu/runs", config) for config in configs]
        assert [results.is_finished(path) for path in paths] == [True, False]
        first = pd.read_csv(paths[1] / "history.csv")
        assert len(first) == 1
        text = page_of(job(tmp_path, name="cpu", cells=configs))
        assert "1 of 2 runs are finished" in text and "1 of 4" in text
        assert f"- digits-sym-40, PRL(L), seed 0: {100 * first['test_accuracy'][0]:.1f}\n" in text
        written, problems = report.report(table, "cpu", tmp_path / "cpu/runs", tmp_path)
        assert "1 of 2 runs are missing" in written[0].read_text() and not problems
        cells.run(job(tmp_path, name="cpu", cells=configs))
        assert len(pd.read_csv(paths[1] / "history.csv")) == 4 and results.is_finished(paths[1])
        report.report(table, "cpu", tmp_path / "cpu/runs", tmp_path)  # packs them
        assert "2 of 2 runs are finished" in page_of(job(tmp_path, name="cpu", cells=configs))

    def test_a_damaged_run_is_kept_and_named(self, tmp_path):
        config = dataclasses.replace(rehearsal_size().cells[0], epochs=2)
        path = results.path_of(tmp_path / "rehearsal/runs", config)
        path.mkdir(parents=True)
        (path / "config.json").write_text('{"dataset": "dig')
        cells.run(job(tmp_path, cells=(config,)))
        assert (path / "config.json").read_text() == '{"dataset": "dig'
        assert f"remove {path} to train it anew" in " ".join(page_of(job(tmp_path, cells=(config,))).split())

    def test_data_that_are_not_there_cost_only_their_runs(self, tmp_path):
        first, other = (
            dataclasses.replace(config, epochs=1, ramp_epochs=0) for config in rehearsal_size().cells
        )
        missing = dataclasses.replace(first, dataset="cifar100", train_size=None)
        one = dataclasses.replace(
            job(tmp_path, cells=(missing, other)), data_options={"data_dir": str(tmp_path / "none")}
        )
        cells.run(one)
        assert results.is_finished(results.path_of(one.runs, other))
        assert "cifar100 is not in" in page_of(one)


class TestProgram:
    @pytest.mark.long
    def test_killed_in_the_midst_of_a_run_it_goes_on_and_no_epoch_is_lost(self, tmp_path):
        arguments = [*PROGRAM, "--minutes=10", f"--output_dir={tmp_path}", "--part=cells"]
        histories = [
            results.path_of(tmp_path / "rehearsal/runs", config) / "history.csv"
            for config in rehearsal_size().cells
        ]
        command, silent = [sys.executable, *arguments], subprocess.DEVNULL
        process = subprocess.Popen(command, cwd=ROOT, stdout=silent, stderr=silent)
        try:
            while not (histories[0].exists() and len(histories[0].read_text().splitlines()) > 3):
                assert process.poll() is None
                time.sleep(0.01)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        beside = histories[0].parent
        while is_growing(histories[0]):  # its child ends with it, within moments
            pass
        before = pd.read_csv(histories[0], dtype=str)
        assert 3 <= len(before) < 20 and not results.is_finished(beside)
        saved = max(int(path.name[6:11]) for path in (beside / "checkpoints").glob("epoch-*"))
        assert saved >= len(before) - 1  # the last epoch may have been between the two files

        done = python(*arguments)
        after = pd.read_csv(histories[0], dtype=str)
        pd.testing.assert_frame_equal(after[:saved], before[:saved])  # the seconds too: nothing ran twice
        measured = [name for name in before if name != "seconds"]
        pd.testing.assert_frame_equal(after[measured][: len(before)], before[measured])
        first = next(line for line in done.stdout.splitlines() if "Standard, seed 0: epoch" in line)
        assert f"epoch {saved + 1} of 20" in first
        assert all(results.is_finished(path.parent) and len(pd.read_csv(path)) == 20 for path in histories)
        assert "2 of 2 runs are finished" in (tmp_path / "gpu_check.md").read_text()

    @pytest.mark.long
    def test_all_parts_end_in_time(self, tmp_path):
        start = time.monotonic()
        python(*PROGRAM, "--minutes=2", f"--output_dir={tmp_path}")
        assert time.monotonic() - start < 125  # a busy machine takes moments to begin and to end a process
        text = (tmp_path / "gpu_check.md").read_text()
        assert "convolution, float32" in text and all(f"## {title}" in text for title in TITLES.values())

    @pytest.mark.long
    def test_an_error_is_a_line(self, tmp_path):
        (tmp_path / "file").write_text("")
        done = python(*PROGRAM, "--minutes=1", f"--output_dir={tmp_path / 'file'}", check=False)
        assert done.returncode == 1 and "Traceback" not in done.stderr
        for arguments in ({"minutes": 0.5}, {"minutes": math.nan}, {"part": ["step"]}):
            with pytest.raises(
                ValueError, match=r"minutes=|part='step' is unknown; write one of smoke, oracle"
            ):
                check.gpu_check(**{"minutes": 1, "output_dir": tmp_path / "x", **arguments})
        assert not (tmp_path / "x").exists()


def is_growing(path: pathlib.Path) -> bool:
    before = path.read_text()
    time.sleep(1)
    return path.read_text() != before
