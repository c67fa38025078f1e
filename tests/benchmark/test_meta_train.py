"""The benchmark of meta-training: its rows, its checks, and its command."""

import json

import pytest
import torch

from benchmark import meta_train, meta_train_worker
from benchmark.meta_train import all_rows, main
from benchmark.meta_train_worker import RULES, Measured, Setting, measure_here
from meta_train import unroll
from meta_train.estimators import Share

TINY = Setting(
    "Adam", particles=4, truncation=5, repetitions=1, device="cpu", processes=1, threads=1, hidden=8, batch=16
)


def invented(setting: Setting) -> Measured:
    """Two processes take half the time of one; a GPU is as fast as 32 of the best."""
    seconds = setting.particles / 32 / setting.processes * (1 if setting.device == "cpu" else 1 / 64)
    return Measured(seconds, 3.0, 5.0, 60.0, 4.0, 0.02, 0.4, 0.1, 0.01)


def rows(monkeypatch, rule, gpu=False):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    return {
        (row.case.rsplit(", ", 1)[-1], row.metric, row.unit): row
        for row in all_rows([rule], 2, [1, 2], False, invented)
    }


def test_a_rate_counts_particles_times_steps_and_the_goal_is_that_of_the_fastest_way(monkeypatch):
    found = rows(monkeypatch, "Neuron")
    slow = found["Neuron", "compiled, 1 process, 2 threads", meta_train.UNIT]
    fast = found["Neuron", "compiled, 2 processes, the fastest", meta_train.UNIT]
    assert (slow.value, fast.value) == (32 * 50 / 1.0, 32 * 50 / 0.5)
    assert (slow.goal, slow.holds) == ("", None) and (fast.goal, fast.holds) == (">= 10,800", False)
    assert rows(monkeypatch, "PerParameter")["PerParameter", fast.metric, fast.unit].holds is True
    assert rows(monkeypatch, "Adam")["Adam", fast.metric, fast.unit].holds is None
    assert found["Neuron", "compiled, 2 processes", f"{meta_train.UNIT} of one core"].value == pytest.approx(1600 / 3)
    assert found["Neuron", "eager, 2 processes", meta_train.UNIT].value == pytest.approx(320)


def test_the_parts_of_a_meta_step_make_the_whole(monkeypatch):
    found = {metric: row.value or 0.0 for (_, metric, unit), row in rows(monkeypatch, "Neuron").items() if unit == "ms"}
    parts = [value for metric, value in found.items() if metric.startswith("of it")]
    assert len(parts) == 5 and sum(parts) == pytest.approx(found["a meta-step"]) == 500
    assert found["of it: the rule (unroll less task)"] == pytest.approx(300)


def test_a_gpu_is_held_against_this_processor_and_left_out_where_there_is_none(monkeypatch):
    for gpu, value, holds in ((False, None, None), (True, 32.0, True)):
        row = rows(monkeypatch, "Neuron", gpu)["CUDA", "compiled", "x this processor"]
        assert (row.value, row.goal, row.holds) == (value, ">= 30", holds)


@pytest.fixture
def uncompiled(monkeypatch):
    for module in (unroll, meta_train_worker):
        monkeypatch.setattr(module, "program", lambda step, kind, example: step)


def test_a_measurement_of_a_living_run(uncompiled):
    found = measure_here(TINY, Share())
    assert all(value is not None and value > 0 for value in found)


def test_a_program_that_computes_something_else_is_not_measured(uncompiled, monkeypatch):
    def wrong(step, kind, example):
        def other(*arguments):
            params, state, now, loss = step(*arguments)
            return params, state, now, 1.01 * loss

        return other

    monkeypatch.setattr(unroll, "program", wrong)
    with pytest.raises(AssertionError, match="not close"):
        measure_here(TINY, Share())


def test_a_run_that_learns_nothing_is_not_measured(uncompiled, monkeypatch):
    monkeypatch.setattr(RULES["Adam"], "default_lr", 0.0)
    with pytest.raises(AssertionError, match="nothing is learned"):
        measure_here(TINY, Share())


def test_the_command_writes_rows(monkeypatch, tmp_path, capsys):
    asked = []
    monkeypatch.setattr(meta_train, "measure", lambda setting: asked.append(setting) or invented(setting))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path = tmp_path / "rows.json"
    assert main(["--rule", "PerParameter", "--threads", "4", "--processes", "2", "--quick", "--json", str(path)]) == 0
    (setting,) = asked
    assert (setting.processes, setting.threads, setting.rule) == (2, 2, "PerParameter")
    content = json.loads(path.read_text())
    assert set(content[0]) == {"case", "metric", "value", "unit", "reference", "goal", "holds"}
    assert "no CUDA device" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--threads", "0"], ["--processes", "3"], ["--threads", "2", "--processes", "4"]])
def test_processes_that_cannot_share_are_refused(words, capsys):
    with pytest.raises(SystemExit):
        main(words)
    assert words[-2] in capsys.readouterr().err
