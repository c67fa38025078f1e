"""The suites that ship, and a whole suite from end to end: failures, exit codes, the cache, what is printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from benchmark.__main__ import benchmark
from benchmark.contender_nodes import known_contenders
from benchmark.settings import Settings, read
from lopt.errors import InvalidInput

ROOT = Path(__file__).resolve().parents[2]
DIGITS = {"_target_": "tasks.ImageMLP", "data": "digits", "hidden": [4], "batch_size": 8, "evaluation_size": 16}
QUADRATIC = {"_target_": "tasks.Quadratic", "dimensions": 4}
BROKEN: dict[str, Any] = {"label": "broken", "optimizer": "tests.benchmark.own_tasks.no_optimizer", "lr": 0.1}
WILD: dict[str, Any] = {"label": "wild", "optimizer": "torch.optim.SGD", "lr": 1e6}


def configuration(suite: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(ROOT / "configs"), version_base=None):
        return compose("benchmark", overrides=[f"suite={suite}", "out=out/x", *overrides])


def small(out: Path, *contenders: Any) -> DictConfig:
    """A suite of two tasks that takes moments."""
    config = configuration("own")
    OmegaConf.set_struct(config, False)
    tasks = {"digits": {"family": DIGITS}, "bowl": {"family": QUADRATIC}}
    lengths = {"steps": 6, "evaluate_every": 3, "seeds": 2, "max_widenings": 0}
    config.suite.update({"tasks": tasks, "contenders": ["adam", *contenders], "learned": None, **lengths})
    config.update({"out": str(out / "out"), "cache": str(out / "cache"), "workers": 1})
    return config


def lengths(settings: Settings) -> dict[str, tuple[int, int | None]]:
    return {source.label: (plan.steps, plan.tuning_seeds) for source, plan in settings.tasks}


def test_papers_is_the_protocol_of_the_papers() -> None:
    settings = read(configuration("papers"))
    nodes = {source.label: dict(source.key or {})["family"] for source, _ in settings.tasks}
    for data in ("fashion_mnist", "cifar10"):
        raw, standardised = nodes[data], nodes[f"{data}_standardised"]
        assert (raw["data"], raw["size"], raw["hidden"], raw["batch_size"]) == (data, 8, [32], 128)
        assert not raw["standardise"]
        assert standardised == raw | {"standardise": True}
        assert lengths(settings)[data][0] == lengths(settings)[f"{data}_standardised"][0] == 2000
    language = nodes["transformer"]
    assert [language[key] for key in ("blocks", "width", "heads", "batch_size", "length")] == [2, 32, 4, 8, 8]
    assert language["data"] == "tinyshakespeare"
    assert lengths(settings)["transformer"][0] == 5000
    assert (nodes["cnn"]["channels"], nodes["cnn"]["size"]) == ([16, 32], 16)
    recurrent = nodes["recurrent"]
    assert [recurrent[key] for key in ("hidden", "embedding", "batch_size", "length")] == [64, 32, 64, 16]
    adam = settings.contenders[0]
    assert adam.label == settings.reference == "Adam"
    assert (len(adam.axes["lr"]), adam.axes["lr"][0], adam.axes["lr"][-1]) == (20, 0.0005, 0.01)
    assert len(settings.seeds) == 5


def test_the_other_suites_are_complete() -> None:
    transfer = read(configuration("transfer"))
    assert len(transfer.tasks) >= 10
    assert {goal.task for goal in transfer.goals} == {"all", *lengths(transfer)}
    assert transfer.reference == "Adam"
    assert {goal.than for goal in transfer.goals} == {None, "Adam (cosine)"}
    assert [plan.steps for _, plan in read(configuration("long")).tasks] == [1000, 5000, 20000]
    widths = [dict(source.key or {})["family"]["hidden"] for source, _ in read(configuration("wide")).tasks]
    assert (widths[0], widths[-1]) == ([32], [4096])


def test_every_contender_that_ships_can_be_named() -> None:
    names = list(known_contenders())
    assert {"sgdm", "adam", "adamw", "nadamw", "adam_cosine", "muon", "soap", "schedule_free", "neuron"} <= set(names)
    names.remove("adam_papers")  # its label is that of adam
    settings = read(configuration("own", f"contenders=[{','.join(names)}]"))
    assert len(settings.contenders) == len(names)
    assert settings.reference == "Adam"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["contenders=[adam,adamv]"], "did you mean 'adam' or 'adamw'"),
        (["tasks=[resnt]"], "unknown task of the suite transfer 'resnt'; did you mean 'resnet'"),
        (["task=tests.benchmark.own_tasks.famly"], "did you mean 'family'"),
        (["workers=0"], "workers: 0"),
        (["suite.tuning_seeds=9"], "tuning_seeds: 9"),
    ],
)
def test_unknown_names_are_refused_before_anything_runs(overrides: list[str], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        read(configuration("transfer", *overrides))


def test_a_quick_suite_is_short_and_says_so() -> None:
    settings = read(configuration("papers", "quick=true"))
    assert set(lengths(settings).values()) == {(40, 1)}
    assert (len(settings.seeds), settings.quick, settings.out) == (2, True, Path("out/x-quick"))
    assert settings.goals == settings.published == ()


def test_a_suite_from_end_to_end_and_again_from_the_cache(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert benchmark(small(tmp_path, "sgdm")) == 0
    first = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [race["task"] for race in first["races"]] == ["digits", "bowl"]
    assert {"versions", "hardware", "config", "goals", "summary", "commit"} <= set(first)
    for name in ("curves-digits.png", "curves-bowl.png", "profiles.png", "gains.png", "report.html"):
        assert (tmp_path / "out" / name).is_file()
    assert "all 2 tasks" in capsys.readouterr().out
    monkeypatch.setattr("benchmark.job.runs", lambda *arguments: pytest.fail("computed again"))
    assert benchmark(small(tmp_path, "sgdm")) == 0
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == first


@pytest.mark.parametrize(("contender", "said"), [(BROKEN, "raised TypeError"), (WILD, "2/2")])
def test_the_exit_code_tells_what_went_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], contender: dict[str, Any], said: str
) -> None:
    assert benchmark(small(tmp_path, contender)) == 1
    captured = capsys.readouterr()
    assert said in captured.out
    races = json.loads((tmp_path / "out" / "results.json").read_text())["races"]
    assert all(race["contenders"][0]["label"] == "Adam" for race in races)  # the others raced on
