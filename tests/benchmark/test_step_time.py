"""The benchmark of steps: its rows, its check and its command, on networks that take no time."""

import json

import pytest
import torch

from benchmark import layer_cases, step_time, step_time_cases
from benchmark.layer_cases import Row
from benchmark.step_time_cases import Case, check, cnn, gpt2_medium, mlp, vit_base, with_gradients
from lopt.rules import Neuron, PerParameter


@pytest.fixture
def small(monkeypatch) -> None:
    cases = (
        Case("an MLP", lambda: mlp(5, 4, 3), (2, 5), "others 172", 1e9, True),
        Case("a CNN", lambda: cnn(2, 3, 4, 5), (2, 3, 12, 12), "others 93", 0.0, False),
    )
    monkeypatch.setattr(step_time_cases, "CASES", cases)
    monkeypatch.setattr(step_time_cases, "MADE_BLOCKS", 0)
    for name, value in {"ROUNDS": 2, "SECONDS": 0.0, "WARM_UP": 0}.items():
        monkeypatch.setattr(layer_cases, name, value)


def test_rows(small):
    found = step_time_cases.rows(None)
    ratios = {(row.case[:5], row.metric): row for row in found if row.unit == "x Adam(foreach)"}
    assert ratios["an ML", "Neuron"].holds is True
    assert ratios["a CNN", "Neuron, traced space"].holds is False
    assert ratios["a CNN", "Neuron"].goal == "<= 0"
    assert {metric for case, metric in ratios if case == "an ML"} == {
        *("Neuron", "Neuron, traced space", "our Adam", "PerParameter", "Functional", "Neuron, Muon's direction")
    }
    absent = [row for row in found if "CUDA" in row.case]
    assert {row.case for row in absent} == {"ViT-B/16, CUDA", "GPT-2 medium, CUDA"}
    assert all(row.value is None and row.holds is None for row in absent)
    assert all(row.value and row.value > 0 for row in found if "CUDA" not in row.case)


def test_memory_is_that_of_the_tensors():
    parameter = torch.nn.Parameter(torch.zeros(1000))
    parameter.grad = torch.ones(1000)
    adam = torch.optim.Adam([parameter], foreach=False)
    adam.step()
    extra, state = step_time_cases.memory("", "Adam", adam, 1000, False)
    assert state.value == pytest.approx(8.004)
    assert extra.value is not None
    assert 4 <= extra.value <= 12.1  # a root and a quotient


def test_a_wrong_step_is_not_timed(monkeypatch):
    model = with_gradients(mlp(5, 4, 3))
    for make in (Neuron, PerParameter):
        rule = make()
        check(rule, None, model)
        exact = type(rule).forward

        def wrong(self, *arguments, exact=exact):
            updates, state = exact(self, *arguments)
            return {k: 1.001 * u for k, u in updates.items()}, state

        monkeypatch.setattr(make, "forward", wrong)
        with pytest.raises(AssertionError, match="the update of"):
            check(rule, None, model)
        monkeypatch.undo()
    for p in model.parameters():
        assert p.grad is not None
        p.grad.zero_()
    with pytest.raises(AssertionError, match="zero"):
        check(Neuron(), None, model)


@pytest.mark.parametrize(
    ("make", "blocks", "count"), [(vit_base, 12, 86_567_656), (gpt2_medium, 24, 354_823_168)], ids=["ViT", "GPT-2"]
)
def test_the_sizes_of_the_known_networks(monkeypatch, make, blocks, count):
    monkeypatch.setattr(step_time_cases, "Shapes", lambda shapes: shapes)
    assert sum(torch.Size(shape).numel() for shape in make(blocks)) == count


ROWS = [
    Row("net", "Neuron", 1.5, "x Adam(foreach)", "PyLO 172", "<= 4", True),
    Row("net, CUDA", "Neuron", None, "x Adam(foreach)", "no device", "", None),
]


def test_the_command(monkeypatch, tmp_path, capsys):
    seen = []
    monkeypatch.setattr(step_time, "_measure", lambda tunables, threads: seen.append((tunables, threads)) or ROWS)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path = tmp_path / "rows.json"
    assert step_time.main(["--json", str(path), "--threads", "1"]) == 0
    assert [threads for _, threads in seen] == [1, 1]
    content = json.loads(path.read_text())
    assert [row["case"] for row in content] == [
        f"{case}, {name} allocator" for name in ("default", "keeping") for case in ("net", "net, CUDA")
    ]
    assert set(content[0]) == {"case", "metric", "value", "unit", "reference", "goal", "holds"}
    assert content[1]["value"] is None and content[1]["holds"] is None
    printed = capsys.readouterr().out
    assert "python -m benchmark.step_time --threads 1" in printed
    assert "1.50 yes" in printed
    assert "Left out, since there is no CUDA device: ViT-B/16, GPT-2 medium" in printed


def test_threads_that_cannot_be(capsys):
    with pytest.raises(SystemExit):
        step_time.main(["--threads", "0"])
    assert "--threads: 0" in capsys.readouterr().err
