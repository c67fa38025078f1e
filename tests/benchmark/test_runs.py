"""Runs that are made one by one, processes, the cache, and contenders that raise."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import schedulefree
import torch

import lopt
from benchmark import cache as cache_module
from benchmark.cache import Cache, key_of
from benchmark.clock import cached_costs
from benchmark.contender_nodes import build_contender, check_node, find_node
from benchmark.contenders import Contender
from benchmark.crew import Crew
from benchmark.grids import settings_of
from benchmark.job import Job, divide
from benchmark.muon import MuonWithAdamW
from benchmark.outcome import Outcome, Race
from benchmark.race import Plan, Silent, race, run_races
from benchmark.runs import runs
from benchmark.sources import Configured, Given, find
from benchmark.step_cost import step_costs
from lopt.errors import InvalidInput
from lopt.rules import SGDM, Neuron, PerParameter
from meta_train.unroll import unroll
from tasks.task import Task
from tests.benchmark import own_tasks

MakeTask = Callable[..., Task]
FAMILY = {"_target_": "tasks.ImageMLP", "data": "digits", "hidden": [4], "batch_size": 8, "evaluation_size": 16}
SOURCE = Configured("digits", FAMILY, 0)
ADAM = Contender("Adam", torch.optim.Adam, (0.01, 0.1))


def job_of(contender: Contender, seeds: tuple[int, ...] = (0, 1), source: Any = SOURCE) -> Job:
    return Job(source, contender, tuple(settings_of(contender.axes)), seeds, (0, 3, 6), ("validation", "test"))


class Counted:
    """An optimizer class that counts the runs that were begun."""

    begun = 0

    def __new__(cls, params: Any, lr: float) -> Any:
        Counted.begun += 1
        return torch.optim.SGD(params, lr)


COUNTED = Contender("counted", Counted, (0.01, 0.1))


def test_a_rule_is_told_the_length_and_the_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the run and of its data: at two learning rates and with two seeds, four times the same."""
    task, seen = SOURCE.load(), []

    def spy(*arguments: Any, horizon: Any, sizes: Any) -> Any:
        seen.append((horizon.tolist(), sizes.tolist()))
        return unroll(*arguments, horizon=horizon, sizes=sizes)

    monkeypatch.setattr("benchmark.population.unroll", spy)
    contender = Contender("x", Neuron(width=2, rounds=0), (0.001, 0.01))
    runs(contender, task, settings_of(contender.axes), (0, 1), (0, 3), ("validation",))
    assert seen == [([3.0] * 4, [[1078.0, 8.0]] * 4)]


def test_runs_made_one_by_one_equal_a_population(make_task: MakeTask) -> None:
    def sgd(params: Any, lr: float, momentum: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(params, lr, momentum)

    grid = {"lr": (0.01, 0.05), "momentum": (0.5, 0.9)}
    alone, together = (
        runs(Contender("x", made, grid, "cosine"), make_task(), settings_of(grid), (3, 4), (0, 3, 7), ("test",))
        for made in (sgd, torch.optim.SGD)
    )
    assert alone["test"].shape == (4, 2, 3)
    for name in ("train", "test"):
        assert alone[name] == pytest.approx(together[name], rel=1e-4)


def test_a_rule_is_told_how_many_steps_there_are(make_task: MakeTask) -> None:
    torch.manual_seed(0)
    fitted = Neuron()
    for p in fitted.network.tensor_head.parameters():
        torch.nn.init.normal_(p, std=0.3)
    for rule, same in ((fitted, False), (Neuron(), True)):
        contender = Contender("Neuron", rule, (1e-3,))
        short, long = (runs(contender, make_task(), [(("lr", 1e-3),)], (0,), (0, 4, end), ("test",)) for end in (8, 80))
        np.testing.assert_allclose(short["test"][..., 0], long["test"][..., 0])
        assert np.allclose(short["test"][..., 1], long["test"][..., 1], rtol=1e-6) is same


def test_schedule_free_optimizers_are_judged_in_their_evaluation_mode(make_task: MakeTask) -> None:
    task, total = make_task(), 12
    contender = Contender("x", schedulefree.AdamWScheduleFree, (0.05,))
    losses = runs(contender, task, settings_of(contender.axes), (5,), (0, 4, total), ("test",))["test"][0, 0]
    generator = torch.Generator().manual_seed(5)
    params = {name: value.requires_grad_() for name, value in task.init(generator).items()}
    optimizer = schedulefree.AdamWScheduleFree(params.values(), lr=0.05)
    optimizer.train()
    for _ in range(total):
        optimizer.zero_grad()
        task.loss(params, task.batch("train", generator)).backward()
        optimizer.step()
    in_training = task.loss(params, task.evaluation_batch("test")).item()
    optimizer.eval()
    assert losses[-1] == pytest.approx(task.loss(params, task.evaluation_batch("test")).item(), rel=1e-5)
    assert losses[-1] != pytest.approx(in_training, rel=1e-3)
    assert "x" in step_costs(task, [contender], rounds=1).contenders


def test_muon_takes_hidden_matrices_and_adamw_the_rest() -> None:
    shapes = {
        "embedding.weight": (5, 4),
        "0.weight": (4, 4),
        "0.bias": (4,),
        "conv": (2, 2, 1, 1),
        "head.weight": (3, 4),
    }
    named = [(name, torch.nn.Parameter(torch.randn(shape))) for name, shape in shapes.items()]
    muon, adamw = MuonWithAdamW(named, lr=0.1).parts
    assert [p.shape for p in muon.param_groups[0]["params"]] == [(4, 4)]
    assert len(adamw.param_groups[0]["params"]) == 4
    before = [p.detach().clone() for _, p in named]
    for _, p in named:
        p.grad = torch.randn_like(p)
    both = MuonWithAdamW(named, lr=0.1)
    for group in both.param_groups:  # as a schedule does
        group["lr"] = 0.0
    both.step()
    assert all(torch.equal(p, old) for (_, p), old in zip(named, before, strict=True))


@pytest.mark.parametrize("name", ["soap", "muon", "schedule_free", "nadamw", "adam_cosine"])
def test_every_baseline_that_ships_learns(make_task: MakeTask, name: str) -> None:
    shipped = build_contender(check_node(1, find_node(name)))
    one = replace(shipped, grid={**{axis: values[:1] for axis, values in shipped.axes.items()}, "lr": (0.1,)})
    losses = runs(one, make_task(), settings_of(one.axes), (0,), (0, 60), ("test",))["test"][0, 0]
    assert losses[-1] < 0.7 * losses[0]


def test_pieces_of_a_job_cover_it_once() -> None:
    many = Contender("Adam", torch.optim.Adam, tuple(0.001 * k for k in range(1, 46)))
    cells = [
        (setting, seed)
        for row in divide(job_of(many, (0, 1, 2)))
        for piece in row
        for setting in piece.settings
        for seed in piece.seeds
    ]
    assert len(cells) == len(set(cells)) == 45 * 3
    assert all(len(piece.settings) * len(piece.seeds) == 1 for row in divide(job_of(COUNTED)) for piece in row)


def test_processes_give_the_same_losses() -> None:
    many = Contender("Adam", torch.optim.Adam, tuple(0.001 * k for k in range(1, 24)))
    with Crew(1, Cache(None)) as here, Crew(2, Cache(None)) as there:
        ours, theirs = (crew.do(job_of(many), lambda steps: None) for crew in (here, there))
    assert ours["test"].shape == (23, 2, 3)
    for name in ours:
        assert np.array_equal(ours[name], theirs[name])


def test_a_second_run_computes_nothing_and_a_killed_one_continues(tmp_path: Path) -> None:
    Counted.begun = 0
    with Crew(1, Cache(tmp_path)) as crew:
        first = crew.do(job_of(COUNTED), lambda steps: None)
        assert Counted.begun == 4
        again = crew.do(job_of(COUNTED), lambda steps: None)
        assert Counted.begun == 4
        more = crew.do(job_of(COUNTED, (0, 1, 2)), lambda steps: None)  # as if killed before the third seed
        assert Counted.begun == 6
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert np.array_equal(more["test"][:, :2], first["test"])


def test_a_cache_of_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    with Crew(1, Cache(tmp_path, said.append)) as crew:
        crew.do(job_of(COUNTED), lambda steps: None)
        monkeypatch.setattr(cache_module.torch, "__version__", "1.0")
        Counted.begun = 0
        crew.do(job_of(COUNTED), lambda steps: None)
        assert Counted.begun == 4
        assert len(said) == 4
        assert said[0] == "cache of digits, counted: made by another version (torch); computed again"
        crew.do(job_of(COUNTED), lambda steps: None)
        assert Counted.begun == 4  # what was computed again is kept


def test_results_of_the_learned_optimizer_are_of_the_rule_that_ships(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contender = Contender("swapped in", lopt.LearnedOptimizer, (1e-3,))
    (tmp_path / "rule.safetensors").write_bytes(b"one")
    monkeypatch.setattr(cache_module, "SHIPPED", (str(tmp_path),))
    monkeypatch.setattr(cache_module, "ROOT", tmp_path.parent)
    monkeypatch.setattr(cache_module, "EVERY_RUN", ())
    monkeypatch.setattr(cache_module, "RULES", ())
    stamps = []
    for content in (b"one", b"one", b"other"):
        (tmp_path / "rule.safetensors").write_bytes(content)
        cache_module._code.cache_clear()
        stamps.append(cache_module.stamp_of(contender))
    cache_module._code.cache_clear()
    assert stamps[0] == stamps[1] != stamps[2]


def test_a_damaged_cache_is_computed_again(tmp_path: Path) -> None:
    said: list[str] = []
    with Crew(1, Cache(tmp_path, said.append)) as crew:
        first = crew.do(job_of(ADAM), lambda steps: None)
        for file in tmp_path.iterdir():
            file.write_bytes(b"PK")
        assert np.array_equal(crew.do(job_of(ADAM), lambda steps: None)["test"], first["test"])
    assert "damaged" in said[0]


@pytest.mark.parametrize("content", [b"", b"PK", b"\x93NUMPY", b"[]"])
def test_any_damage_is_computed_again(tmp_path: Path, content: bytes) -> None:
    said: list[str] = []
    cache = Cache(tmp_path, said.append)
    first = cached_costs(SOURCE, [ADAM], cache)
    cache.save(job_of(ADAM), {"validation": np.zeros((2, 2, 3))})
    for file in tmp_path.iterdir():
        file.write_bytes(content)
    assert cache.load(job_of(ADAM)) is None
    again = cached_costs(SOURCE, [ADAM], cache)
    assert again.contenders.keys() == first.contenders.keys()
    assert [line.partition(":")[0] for line in said] == ["cache of digits, Adam", "times of digits"]
    assert cached_costs(SOURCE, [ADAM], cache) == again  # what was measured again is kept


def test_a_cache_that_cannot_be_written_is_said_once_and_the_race_goes_on(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said: list[str] = []
    plan = Plan(6, (0, 1), 3)
    with Crew(1, Cache(tmp_path / "file" / "cache", said.append)) as crew:
        (result,) = run_races([(SOURCE, plan)], [ADAM, COUNTED], "Adam", crew, Silent())
        costs = cached_costs(SOURCE, [ADAM], crew.cache)
    assert [entry.label for entry in result.entries] == ["Adam", "counted"]
    assert "Adam" in costs.contenders
    (line,) = said
    assert "file/cache: a file cannot be written" in line
    assert "Name a folder that can be written" in line


def test_nothing_partial_is_left(tmp_path: Path) -> None:
    (tmp_path / "taken" / "inside").mkdir(parents=True)  # a file cannot take the place of a full folder
    said: list[str] = []
    Cache(tmp_path, said.append).write("taken", b"x")
    assert [file.name for file in tmp_path.iterdir()] == ["taken"]
    assert len(said) == 1


def test_what_a_task_gives_is_part_of_its_stamp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def changed() -> Configured:
        source = Configured("digits", FAMILY, 0)
        monkeypatch.setattr(type(SOURCE), "load", lambda self: own_tasks.task())  # as if its code or data had changed
        return source

    said: list[str] = []
    cache = Cache(tmp_path, said.append)
    cache.save(job_of(ADAM), {"validation": np.zeros((2, 2, 3))})
    assert cache.load(job_of(ADAM)) is not None
    assert cache.load(job_of(ADAM, source=changed())) is None
    assert said == ["cache of digits, Adam: made by another version (task); computed again"]


@pytest.mark.parametrize("edited", ["one_file.py", "a_package/__init__.py", "a_package/parts/core.py"])
def test_the_code_of_somebody_elses_optimizer_is_part_of_the_stamp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edited: str
) -> None:
    (tmp_path / "a_package" / "parts").mkdir(parents=True)
    code = "import torch\n\ndef make(params, lr):\n    return torch.optim.SGD(params, lr)\n"
    for file in ("one_file.py", "a_package/__init__.py", "a_package/parts/core.py"):
        (tmp_path / file).write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    module = edited.partition("/")[0].removesuffix(".py")
    monkeypatch.delitem(sys.modules, module, raising=False)  # of another test
    contender = Contender("mine", find("optimizer", f"{module}.make"), (0.1,))
    stamps = []
    for end in ("", "", "# edited\n"):
        (tmp_path / edited).write_text(code + end)
        cache_module._code.cache_clear()  # as in another process
        stamps.append(cache_module.stamp_of(contender))
    assert stamps[0] == stamps[1] != stamps[2]
    assert stamps[0].keys() == {"torch", "tasks and runs", module}


def test_a_rule_of_somebody_else_is_stamped_as_well() -> None:
    class Mine(SGDM):
        """A rule that is not lopt's."""

    assert {"lopt", "tests"} <= cache_module.stamp_of(Contender("mine", Mine(), (0.1,))).keys()
    assert "tests" not in cache_module.stamp_of(Contender("ours", SGDM(), (0.1,)))


@pytest.mark.parametrize("optimizer", [lambda params, lr: None, functools.partial(torch.optim.SGD, momentum=0.5)])
def test_what_has_no_name_of_its_own_is_not_cached(optimizer: Any) -> None:
    assert key_of(job_of(Contender("x", optimizer, (0.1,)))) is None


def test_what_changes_a_run_changes_its_key(make_task: MakeTask) -> None:
    torch.manual_seed(0)
    rule = Contender("rule", PerParameter(), (0.1,))
    other = Configured("digits", {**FAMILY, "hidden": [5]}, 0)
    jobs = [
        job_of(ADAM),
        job_of(ADAM, (0, 2)),
        job_of(ADAM, source=other),
        job_of(replace(ADAM, schedule="cosine")),
        job_of(replace(ADAM, arguments={"eps": 1e-4})),
        job_of(Contender("Adam", torch.optim.AdamW, (0.01, 0.1))),
        job_of(rule),
        job_of(Contender("rule", PerParameter(), (0.1,))),  # other θ
        replace(job_of(ADAM), points=(0, 6)),
    ]
    keys = [key_of(job) for job in jobs]
    assert len(set(keys)) == len(keys)
    assert key_of(job_of(replace(ADAM, label="other name"))) == keys[0]
    assert key_of(job_of(ADAM, source=Given(make_task()))) is None  # not known by content: not cached


class Broken:
    """An optimizer class whose third step raises."""

    def __new__(cls, params: Any, lr: float) -> Any:
        optimizer = torch.optim.SGD(params, lr)
        steps: list[int] = []

        def check(*step: object) -> None:
            steps.append(1)
            if len(steps) == 3:
                raise RuntimeError("it broke\n on purpose")

        optimizer.register_step_pre_hook(check)
        return optimizer


def test_the_race_goes_on_when_a_contender_raises(make_task: MakeTask) -> None:
    contenders = [Contender("broken", Broken, (0.1,)), Contender("SGDM", SGDM(), (0.05,)), ADAM]
    result = race(make_task(), contenders, steps=6, seeds=(0, 1), evaluate_every=3)
    assert [entry.label for entry in result.entries] == ["SGDM", "Adam"]
    (failure,) = result.failures
    assert (failure.label, failure.message) == ("broken", "RuntimeError: it broke on purpose")
    assert "check" in failure.trace
    costs = step_costs(make_task(), contenders, rounds=1)
    assert not Outcome("x", (Race(result, costs),), "Adam").flawless


def test_a_race_without_its_reference_still_has_results(make_task: MakeTask) -> None:
    contenders = [Contender("broken", Broken, (0.1,)), Contender("SGDM", SGDM(), (0.05,))]
    result = race(make_task(), contenders, steps=6, seeds=(0, 1), evaluate_every=3, target="broken")
    (row,) = Race(result, step_costs(make_task(), contenders, rounds=1)).rows
    assert row.speed is None
    assert row.factor is None
    assert np.isfinite(row.final.mean)


def test_tuning_runs_never_look_at_test_data(make_task: MakeTask, monkeypatch: pytest.MonkeyPatch) -> None:
    task, asked = make_task(), []
    evaluation = task.evaluation_batch
    monkeypatch.setattr(task, "evaluation_batch", lambda split: [asked.append(split), evaluation(split)][1])
    runs(ADAM, task, settings_of(ADAM.axes), (0,), (0, 6), ("validation",))
    assert set(asked) == {"validation"}


def test_fewer_seeds_may_choose_and_all_are_shown(make_task: MakeTask) -> None:
    plan = Plan(6, (0, 1, 2), 3, tuning_seeds=1)
    with Crew(1, Cache(None)) as crew:
        (result,) = run_races([(Given(make_task()), plan)], [ADAM, COUNTED], "Adam", crew, Silent())
    assert result["Adam"].curves.test.shape == (3, 3)
    assert max(result["Adam"].tuning.diverged) <= 1
    with pytest.raises(InvalidInput, match="tuning_seeds: 4; give 1 to 3"):
        Plan(6, (0, 1, 2), 3, tuning_seeds=4)
