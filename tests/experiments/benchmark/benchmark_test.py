"""The benchmark: what it measures, how it takes turns, and the table and picture that it writes."""

import copy
import dataclasses
import json
import signal
import sys

import keras
import numpy as np
import pytest
from processes import python

import prl_keras as prl
from prl_keras import build
from prl_keras.experiments.benchmark import measure, steps
from prl_keras.experiments.benchmark.report import case_table, peer_table, write_report
from prl_keras.experiments.benchmark.suites import BATCH_SIZES, EPSILONS, SUITES, WIDTHS, Case, suite_cases
from prl_keras.experiments.benchmark.work import KILLED, in_child, peak_memory
from prl_keras.experiments.runs.networks import PRECISIONS
from prl_keras.methods import PAPER_METHODS

TINY = Case(network="mlp", norm="none", batch_size=8)
ABOUT = {
    "suite": "step", "date": "2026-01-31", "device": "CPU", "cores": 2,
    "processor": "a processor", "versions": {"tensorflow": "2.21.0", "keras": "3.15.0"}, "xla": False,
}  # fmt: skip


def made_up(*measured, **about):
    """The content of a results file: of (case, seconds, memory) each."""
    cases = [
        {"case": dataclasses.asdict(case), "seconds": seconds, "parameters": 1000, "memory": memory}
        for case, seconds, memory in measured
    ]
    return ABOUT | about | {"cases": cases}


def write(folder, content, name="step.json"):
    (folder / name).write_text(json.dumps(content))


class TestCases:
    @pytest.mark.parametrize("suite", SUITES)
    def test_each_once_sessions_together_baseline_first(self, suite):
        cases = suite_cases(suite, *[suite == "step"] * 2)
        assert len(set(cases)) == len(cases) == len({(case.title, case.setting) for case in cases})
        for i, case in enumerate(cases):
            is_first = i == 0 or cases[i - 1].session != case.session
            assert is_first == (case == case.session) and case.baseline in cases

    def test_step_has_every_line_of_the_promise(self):
        cases = suite_cases("step")
        assert {case.epsilon for case in cases if case.recompute and case.method == "prl_l"} == set(EPSILONS)
        assert {(c.is_subclass, c.microbatch_size) for c in cases if c.method == "prl_g"} == {
            (False, None), (False, 32), (True, None), (True, 32),
        }  # fmt: skip
        assert {case.method for case in cases} == {"standard", "prl_l", "co_prl_l", "prl_g"}
        assert all(case.norm == ("group" if case.method == "prl_g" else "batch") for case in cases[1:8])
        assert len(cases) == 13

    def test_methods_has_every_method_in_every_way_that_differs(self):
        cases = suite_cases("methods")
        assert {case.method for case in cases} == set(PAPER_METHODS)
        for name in ("spl", "prl_g", "prl_l", "co_teaching", "co_prl_l"):
            ways = {(case.recompute, case.epsilon) for case in cases if case.method == name}
            assert ways == {(recompute, epsilon) for recompute in (False, True) for epsilon in EPSILONS}
        ways = [(case.recompute, case.epsilon) for case in cases if case.method == "ignormclip"]
        assert ways == [(False, 0)]

    def test_batch_and_width_vary_what_they_say(self):
        assert {case.batch_size for case in suite_cases("batch")} == set(BATCH_SIZES)
        assert {case.width for case in suite_cases("width")} == set(WIDTHS)
        assert all(case.through_fit and case.batch_size == 512 for case in suite_cases("mlp"))

    def test_peers_are_compared_with_pytorch_and_authors_train_two_networks(self):
        cases = suite_cases("step", peers=True, authors=True)
        peers = [case for case in cases if case.implementation != "prl_keras"]
        assert all(case.baseline.implementation == "torch" for case in peers)
        assert [case.network_count for case in peers if case.implementation == "authors"] == [2]
        assert Case("co_prl_l").network_count == 2 and Case("prl_l").network_count == 1

    def test_what_there_is_not_is_refused(self):
        with pytest.raises(ValueError, match="suite='steps' is unknown; write one of step, methods"):
            suite_cases("steps")
        with pytest.raises(ValueError, match="suite='mlp' has no peers"):
            suite_cases("mlp", peers=True)


class TestTable:
    def test_ratios_are_within_rounds(self):
        # A machine twice as slow in the second round: the ratios are 1.5, 1.5 and 1.2.
        content = made_up((Case(), [1.0, 2.0, 1.0], None), (Case("prl_l", 0.45), [1.5, 3.0, 1.2], None))
        table = case_table(content).set_index("title")
        line = table.loc["PRL(L), epsilon 0.45"]
        assert line[["ratio_low", "ratio", "ratio_high"]].tolist() == pytest.approx([1.35, 1.5, 1.5])
        assert (line["seconds"], line["examples_per_second"]) == (1.5, pytest.approx(128 / 1.5))
        assert table.loc["Standard", "ratio"] == 1

    def test_pairs_are_compared_with_two_networks_but_for_memory(self):
        content = made_up(
            (Case(), [1.0], {"peak": 1000, "before": 400, "later": 800}),
            (Case("co_prl_l", 0.45), [3.0], {"peak": 1500, "before": 400, "later": 1000}),
        )
        line = case_table(content).iloc[1]
        assert (line["ratio"], line["memory_ratio"], line["network_memory"]) == (1.5, 1.5, 1100)
        assert (line["later_peak"], line["later_memory_ratio"]) == (1000, 1.25)

    def test_the_baseline_is_that_of_the_same_setting(self):
        content = made_up(
            (Case(), [1.0], None),
            (Case(norm="group"), [2.0], None),
            (Case("prl_g", 0.45, norm="group"), [3.0], None),
            (Case("prl_g", 0.45, norm="group", is_subclass=True), [5.0], None),
            (Case("prl_g", 0.45, norm="group", batch_size=64), [5.0], None),  # has no baseline here
        )
        ratios = case_table(content)["ratio"]
        assert ratios[:4].tolist() == [1, 1, 1.5, 2.5] and np.isnan(ratios[4])

    def test_peers_are_compared_a_step_and_network(self):
        content = made_up(
            (Case("prl_l", 0.45), [1.0, 2.0], None),
            (Case("prl_l", 0.1, recompute=True), [1.0, 2.0], None),  # drops another share
            (Case("prl_l", 0.45, implementation="authors"), [8.0, 4.0], None),
            (Case(implementation="torch"), [1.0, 1.0], None),
        )
        (line,) = peer_table(content).to_dict("records")
        assert (line["seconds_ours"], line["seconds_theirs"]) == (1.5, 3)
        assert line["ratio"] == pytest.approx((1 / 4 + 2 / 2) / 2)

    def test_a_session_cut_short_counts_the_rounds_that_both_have(self):
        content = made_up(
            (Case(), [1.0, 1.0], None), (Case("prl_l", 0.45), [2.0], None), (Case("spl"), [], None)
        )
        assert case_table(content)["ratio"].tolist() == pytest.approx([1, 2, np.nan], nan_ok=True)


class TestReport:
    def test_table_and_picture(self, tmp_path):
        measured = (
            (Case(), [1.0, 1.0, 1.0], {"peak": 2**30, "before": 2**29, "later": 2**29}),
            (Case("prl_l", 0.45, recompute=True), [0.8, 0.9, 0.7], {"peak": 2**31, "before": 2**29}),
            (Case("prl_l", 0.45), [1.0, 1.1, 1.2], None),
            (Case("spl", 0.45), [], KILLED),
            (Case("prl_l", 0.45, implementation="authors"), [4.0, 4.4, 4.8], None),
        )
        write(tmp_path, made_up(*measured))
        assert write_report("step", tmp_path) == tmp_path / "step.md"
        text = (tmp_path / "step.md").read_text()
        lines = {
            cells[0]: cells[1:]
            for cells in ([cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines())
            if cells
        }
        setting = "cnn9, batch norm, batch 128"
        assert lines["PRL(L), recompute, epsilon 0.45"] == [
            # Of the ours-against-theirs table, which comes last: 0.8 / 2.0, 0.9 / 2.2, 0.7 / 2.4.
            "authors' PRL(L), epsilon 0.45, two networks", setting, "0.80", "2.20", "0.40 (0.35 to 0.40)",
        ]  # fmt: skip
        speed, memory = ["1.00 (1.00 to 1.00)", "1.00", "128"], ["1024", "512", "1.00", "512", "1.00"]
        assert lines["Standard"] == [setting, *speed, *memory]
        assert "| 0.80 (0.75 to 0.85) | 0.800 | 160 | 2048 | 1536 | 2.00 | - | - |" in " ".join(text.split())
        assert lines["SPL, epsilon 0.45"] == [setting, "-", "-", "-", "killed", "-", "-", "-", "-"]
        for part in (
            "a processor, 2 cores",
            "Medians of 3 rounds",
            "tensorflow 2.21.0",
            "2026-01-31",
            "--suite=step",
        ):
            assert part in text
        assert (tmp_path / "step.png").read_bytes().startswith(b"\x89PNG")
        assert str(tmp_path) not in text

    def test_missing_memory_is_a_dash(self, tmp_path):
        write(tmp_path, made_up((Case(), [1.0], None)))
        text = " ".join(write_report("step", tmp_path).read_text().split())
        assert "| 1.00 (1.00 to 1.00) | 1.00 | 128 | - | - | - |" in text and "PyTorch's\n" not in text

    @pytest.mark.parametrize("suite", SUITES)
    def test_every_suite_has_a_picture(self, tmp_path, suite):
        cases = suite_cases(suite)
        write(tmp_path, made_up(*((case, [1.0, 1.2], None) for case in cases)), f"{suite}.json")
        write_report(suite, tmp_path)
        assert 10_000 < len((tmp_path / f"{suite}.png").read_bytes()) < 300_000

    def test_the_whole_results_go_before_the_unfinished(self, tmp_path):
        write(tmp_path, made_up((Case(), [2.0], None)), "step.unfinished.json")
        text = " ".join(write_report("step", tmp_path).read_text().split())
        assert "| 2.00 |" in text and "It has not come to its end." in text
        write(tmp_path, made_up((Case(), [4.0], None)))
        assert "| 4.00 |" in " ".join(write_report("step", tmp_path).read_text().split())

    @pytest.mark.parametrize("damage", [
        lambda text: text[:-20], lambda text: "[]", lambda text: "{}", lambda text: "",
        lambda text: text.replace("1.25", "null"), lambda text: text.replace("1.25", '"x"'),
        lambda text: text.replace('"norm"', '"nrom"'), lambda text: text.replace('"prl_l"', '"prl"'),
        lambda text: text.replace('"versions"', '"version"'),
    ])  # fmt: skip
    def test_a_damaged_file_is_named(self, tmp_path, damage):
        text = json.dumps(made_up((Case("prl_l", 0.45), [1.25], None)))
        (tmp_path / "step.json").write_text(damage(text))
        with pytest.raises(ValueError, match=r"step.json is damaged .*binaries.benchmark --suite=step"):
            write_report("step", tmp_path)
        assert not (tmp_path / "step.md").exists()

    def test_nothing_to_report_says_how_to_make_it(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"step.json is not there; .*benchmark --suite=step"):
            measure.benchmark(report=True, output_dir=tmp_path / "none")
        assert not (tmp_path / "none").exists()


class TestMeasuring:
    def test_rotation(self):
        assert [measure.rotated("abc", turn) for turn in range(4)] == [
            [*"abc"],
            [*"bca"],
            [*"cab"],
            [*"abc"],
        ]
        assert measure.rotated([], 1) == []

    def test_a_small_suite_for_real(self, tmp_path):
        alone = Case(network="strided_cnn", batch_size=4)
        cases = [TINY, dataclasses.replace(TINY, method="co_prl_l", epsilon=0.45), alone]
        write(tmp_path, {"earlier": "results"})
        measure.measure("step", cases, tmp_path, rounds=2, memory=False, least_seconds=0)
        content = json.loads((tmp_path / "step.json").read_text())
        assert [Case(**found["case"]) for found in content["cases"]] == cases
        assert all(len(found["seconds"]) == 2 and min(found["seconds"]) > 0 for found in content["cases"])
        assert [found["parameters"] for found in content["cases"][:2]] == [199_690] * 2  # 512, 256, 256, 10
        table = case_table(content)
        assert table["ratio"].notna().all() and table["peak"].isna().all()
        assert not (tmp_path / "step.unfinished.json").exists()

    def test_killed_at_any_time_earlier_results_stay(self, tmp_path):
        write(tmp_path, made_up((Case(), [2.0], None)))
        case = Case("prl_g", 0.45, network="strided_cnn", norm="batch")
        with pytest.raises(prl.BatchMixingError):  # after the first session
            measure.measure("step", [TINY, case], tmp_path, rounds=1, memory=False, least_seconds=0)
        assert case_table(json.loads((tmp_path / "step.json").read_text()))["seconds"].tolist() == [2.0]
        unfinished = case_table(json.loads((tmp_path / "step.unfinished.json").read_text()))
        assert unfinished["seconds"].notna().tolist() == [True, False]

    @pytest.mark.daily("width", "fit", "subclass")
    @pytest.mark.parametrize("case", [
        dataclasses.replace(TINY, width=7), dataclasses.replace(TINY, through_fit=True),
        dataclasses.replace(TINY, method="prl_g", is_subclass=True), Case("huber", network="strided_cnn"),
        dataclasses.replace(TINY, method="prl_l", epsilon=0.45, precision="bfloat16", is_compiled=True),
    ], ids=["width", "fit", "subclass", "huber", "bfloat16"])  # fmt: skip
    def test_every_kind_of_work(self, case):
        work = steps.make_work(case)
        work.run(1)
        assert work.steps == (steps.FIT_BATCHES if case.through_fit else 1)
        if case.width:
            assert work.parameters == 512 * 7 + 7 + 7 * 7 + 7 + 7 * 10 + 10

    @pytest.mark.daily("bfloat16-*")
    @pytest.mark.parametrize("precision, policy", PRECISIONS.items())
    def test_the_precision_is_that_of_the_layers(self, monkeypatch, precision, policy):
        built = []
        monkeypatch.setattr(
            steps, "build", lambda *args, **options: built.append(build(*args, **options)) or built[0]
        )
        steps.make_work(dataclasses.replace(TINY, method="prl_l", precision=precision))
        dtypes = {layer.dtype_policy.name for layer in built[0].network.layers}
        assert dtypes == {policy, "float32"} and keras.config.dtype_policy().name == "float32"
        assert {weight.dtype for weight in built[0].trainable_weights} == {"float32"}

    @pytest.mark.long
    def test_xla_is_that_of_the_case_and_by_default_that_of_the_device(self, monkeypatch):
        found = []
        for is_gpu in (False, True):
            monkeypatch.setattr(steps, "uses_xla", lambda is_gpu=is_gpu: is_gpu)
            for is_compiled in (None, False, True):
                monkeypatch.setattr(
                    steps,
                    "build",
                    lambda *args, jit_compile, **rest: found.append(jit_compile) or build(*args, **rest),
                )
                steps.make_work(dataclasses.replace(TINY, is_compiled=is_compiled))
        assert found == [False, False, True, True, False, True]

    @pytest.mark.long
    def test_memory_is_that_of_a_process_of_its_own(self):
        ballast = np.ones(2**27)  # 1 GiB here: not the child's
        found = peak_memory(TINY)
        assert 2**27 < found["before"] < found["peak"] < ballast.nbytes
        assert found["before"] < found["later"] <= found["peak"]

    def test_a_child_that_is_killed_is_killed(self):
        assert in_child(signal.raise_signal, signal.SIGKILL) == KILLED
        assert in_child(abs, -3) == 3
        with pytest.raises(ZeroDivisionError):
            in_child(divmod, 1, 0)

    @pytest.mark.long
    def test_what_is_killed_is_not_timed(self, tmp_path):
        # A batch whose data alone are larger than the machine.
        too_large = dataclasses.replace(TINY, batch_size=10**12)
        measure.measure("step", [too_large], tmp_path, rounds=1, memory=True)
        (found,) = json.loads((tmp_path / "step.json").read_text())["cases"]
        assert (found["memory"], found["seconds"]) == (KILLED, [])


class TestProgram:
    @pytest.mark.long
    def test_it_reports_what_there_is_and_an_error_is_a_line(self, tmp_path):
        write(tmp_path, made_up((Case(), [1.0], None)))
        flags = "--report", "--suite=step", "--suite=batch", f"--output_dir={tmp_path}"
        done = python("-m", "binaries.benchmark", *flags, check=False)
        assert (tmp_path / "step.md").exists() and not (tmp_path / "batch.md").exists()
        assert done.returncode == 1 and "batch.json is not there" in done.stderr
        assert "Traceback" not in done.stderr


class TestPeers:
    def test_missing_packages_are_named(self, monkeypatch, tmp_path):
        monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
        monkeypatch.delitem(sys.modules, "prl_keras.experiments.benchmark.peers", raising=False)
        with pytest.raises(ImportError, match=r"pip install -r requirements-peers.txt"):
            measure.benchmark(peers=True, output_dir=tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_they_do_the_same_work(self):
        pytest.importorskip("opacus", reason="needs requirements-peers.txt", exc_type=ImportError)
        from prl_keras.experiments.benchmark import peers

        for norm in ("batch", "group"):
            ours = steps.make_work(Case(norm=norm, batch_size=4))
            theirs = peers.make_work(Case(norm=norm, batch_size=4, implementation="torch"))
            theirs.run(1)
            assert theirs.parameters == ours.parameters

    def test_both_ways_of_opacus_take_the_step_of_the_lowest_norms(self):
        torch = pytest.importorskip("torch", reason="needs requirements-peers.txt")
        from prl_keras.experiments.benchmark import peers

        x, y = torch.randn(6, 5), torch.tensor([0, 1, 2, 0, 1, 2])
        networks = [torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3))]
        networks += [copy.deepcopy(networks[0]) for _ in range(2)]
        gradients = []
        for i in range(6):
            networks[0].zero_grad()
            torch.nn.functional.cross_entropy(networks[0](x[i : i + 1]), y[i : i + 1]).backward()
            gradients.append([p.grad.clone() for p in networks[0].parameters()])
        norms = [sum(float((g**2).sum()) for g in each) for each in gradients]
        kept = np.argsort(norms)[:4]
        for p, *each in zip(networks[0].parameters(), *(gradients[i] for i in kept)):
            p.grad = sum(each) / 4
        torch.optim.Adam(networks[0].parameters(), lr=0.001).step()
        peers.gradients_step(networks[1], x, y, 4)()
        peers.ghost_step(networks[2], x, y, 4)()
        for network in networks[1:]:
            for p, expected in zip(network.parameters(), networks[0].parameters()):
                assert torch.allclose(p, expected, atol=1e-6)

    def test_a_folder_that_is_no_checkout_is_named(self, tmp_path):
        pytest.importorskip("opacus", reason="needs requirements-peers.txt", exc_type=ImportError)
        with pytest.raises(FileNotFoundError, match=r"has no loss.py; give a checkout of github.com"):
            measure.benchmark(authors_dir=str(tmp_path), output_dir=tmp_path / "out")
