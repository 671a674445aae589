"""What a training step asks of a device: how many kernels at most, and nothing that waits for the host."""

import dataclasses
import functools
import json

import pytest
import tensorflow as tf

import prl_keras as prl
from prl_keras.experiments.benchmark import kernels, measure
from prl_keras.experiments.benchmark.kernel_rows import method_row, rows
from prl_keras.experiments.benchmark.kernels import Kernels, count_row, write_kernels
from prl_keras.methods import PAPER_METHODS

MOST_FUSIONS = {"spl": 100, "prl_l": 100, "prl_g": 140, "co_prl_l": 190}
WITHOUT_SCORE = ("standard", "normclip", "huber", "bootstrap")  # plain models, which no record goes with
PROGRAM = """
HloModule jit_step, entry_computation_layout={(f32[4]{0})->f32[4]{0}}
%fused (p: f32[4]) -> (f32[4], s32[]) {
  ROOT %t.1 = (f32[4]{0}, /*index=1*/s32[]) tuple(%p, %c), metadata={op_name="sort(conditional(x))"}
}
ENTRY %main (p: f32[4]) -> f32[4] {
  %a.1 = (f32[4]{0}, s32[]) fusion(%p), kind=kLoop, calls=%fused, metadata={op_name="While"}
  %b = f32[4,4]{1,0:T(8,128)} fusion(%a.1, %p), kind=kInput, calls=%fused
  c.2 = f32[4]{0} dot(%b, %b), lhs_contracting_dims={0}
  %d = (f32[4]{0}, s32[4]{0}) custom-call(%c.2), custom_call_target="TopK"
  %e = f32[4]{0} custom-call(%c.2), custom_call_target="__onednn$matmul"
  %f = f32[4]{0} custom-call(%c.2), custom_call_target="PadToStatic"
  %g = ((f32[4]{0}), s32[]) while(%d), condition=%c, body=%b
  %h = (f32[4]{0}, (s32[])) conditional(%p, %a, %b), true_computation=%x, false_computation=%y
  ROOT %i = f32[4]{0} sort(%e), dimensions={0}, to_apply=%less
}
"""


@functools.cache
def counted(method, is_recorded):
    """-> `Kernels` of a method, on the CPU, for which the limits are; as `fit` attaches its watch."""
    with tf.device("CPU:0"):
        return count_row(method_row(method, is_recorded=is_recorded))


class TestStep:
    @pytest.mark.daily("prl_l")
    @pytest.mark.parametrize("method", MOST_FUSIONS)
    def test_at_most_so_many_fusions(self, method):
        found = counted(method, is_recorded=False)
        assert found.fusions <= MOST_FUSIONS[method]
        self.assert_nothing_waits_or_sorts(found)

    @pytest.mark.daily("normclip")
    @pytest.mark.parametrize("method", prl.METHODS)
    def test_nothing_waits_for_the_host_and_nothing_is_sorted(self, method):
        # Recorded, which adds to the step and takes nothing from it.
        self.assert_nothing_waits_or_sorts(counted(method, is_recorded=method not in WITHOUT_SCORE))

    def assert_nothing_waits_or_sorts(self, found):
        found = found._asdict()
        names = [name for name in found if name.endswith(("sorts", "topks", "conditionals", "whiles"))]
        names += ["graph_branches", "graph_loops"]
        assert len(names) == 7
        assert {name: found[name] for name in names} == dict.fromkeys(names, 0)


class TestCounting:
    def test_of_a_program(self):
        assert kernels._of_program(PROGRAM) == {
            "fusions": 2, "dots": 2, "convolutions": 0, "sorts": 1, "topks": 1,
            "conditionals": 1, "whiles": 1,
        }  # fmt: skip

    def test_of_a_graph_within_functions_too(self):
        @tf.function
        def step(x):
            x = tf.cond(x[0] > 0, lambda: tf.sort(x), lambda: x)
            return tf.while_loop(lambda x: x[0] < 3, lambda x: [tf.math.top_k(x + 1, 2)[0]], [x])

        graph = step.get_concrete_function(tf.zeros([2])).graph.as_graph_def()
        found = kernels._of_graph(graph)
        del found["graph_nodes"]
        assert found == {"graph_branches": 1, "graph_loops": 1, "graph_topks": 2}

    def test_a_plain_step_has_its_layers_and_a_model_goes_on_as_compiled(self):
        row = method_row("standard")
        model = row.make()
        found = count_row(dataclasses.replace(row, make=lambda: model))
        assert (found.dots, found.convolutions, found.conditionals) == (3, 5, 0)  # forward and back
        assert found.fusions > 50 and found.graph_nodes > 300
        assert not model.run_eagerly and model.train_function is None

    def test_every_method_of_the_paper_has_a_row_and_every_row_a_baseline(self):
        titles = [row.title for row in rows()]
        assert len(set(titles)) == len(titles)
        assert {prl.METHODS[name].title for name in PAPER_METHODS} <= set(titles)
        assert {row.baseline for row in rows()} <= set(titles)


class TestReport:
    def test_table(self, tmp_path):
        found = {row.title: Kernels(80, *range(6), *range(4)) for row in rows()}
        found["PRL(L)"] = found["PRL(L)"]._replace(fusions=100)
        found["PRL(L), recompute"] = Kernels(*[None] * 7, 1, 2, 3, 4)
        found = {title: kernels._asdict() for title, kernels in found.items()}
        about = {"date": "2026-01-31", "device": "CPU", "versions": {"tensorflow": "2.21.0"}}
        path = tmp_path / "kernels.json"
        path.write_text(json.dumps({**about, "rows": found}))
        (written,) = measure.benchmark(suite=["kernels"], output_dir=tmp_path, report=True)
        text = " ".join(written.read_text().split())
        assert "| PRL(L) | 100 | 1.25 | 0 | 1 | 2 | 3 | 4 | 5 | 0 | 1 | 2 | 3 |" in text
        assert "| PRL(L), recompute | - | - | - | - | - | - | - | - | 1 | 2 | 3 | 4 |" in text
        path.write_text(path.read_text().replace('"fusions"', '"fusion"'))
        with pytest.raises(ValueError, match=r"kernels.json is damaged .*binaries.benchmark --suite=kernels"):
            write_kernels(tmp_path, report=True)

    def test_what_there_is_not_is_refused(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"kernels.json is not there; .*--suite=kernels"):
            measure.benchmark(suite=["kernels"], output_dir=tmp_path, report=True)
        with pytest.raises(ValueError, match="Virtual devices go with suites through fit"):
            measure.benchmark(suite=["kernels"], output_dir=tmp_path, virtual_devices=2)
