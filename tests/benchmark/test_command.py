"""`python -m benchmark`: its files, that they are the same each time, and what it says of bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from benchmark.__main__ import benchmark
from benchmark.contenders import Contender
from benchmark.settings import read
from lopt.errors import InvalidInput
from lopt.rules import SGDM, UpdateRule

ROOT = Path(__file__).resolve().parents[2]
ADAM: dict[str, Any] = {"label": "Adam", "rule": {"_target_": "lopt.rules.Adam"}, "lr": [0.001, 0.01, 0.1]}
LEARNED: dict[str, Any] = {"label": "learned", "rule": {"_target_": "lopt.rules.PerParameter"}, "lr": None}
TINY: dict[str, Any] = {
    "contenders": [ADAM, LEARNED],
    "steps": 6,
    "seeds": 2,
    "evaluate_every": 3,
    "max_widenings": 1,
    "learned": "learned",
    "initial": None,
}
SMALL = {"hidden": [4], "evaluation_size": 16, "batch_size": 8}


def configuration(out: str = "out/demo", **suite: Any) -> DictConfig:
    """configs/benchmark.yaml with a suite of our own in place of the demo's contenders."""
    with initialize_config_dir(str(ROOT / "configs"), version_base=None):
        config = compose("benchmark", overrides=[f"out={out}"])
    OmegaConf.set_struct(config, False)
    config.cache = None
    config.suite.update(TINY | suite)
    config.suite.family.update(SMALL)
    return config


def test_a_race_writes_the_same_results_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    contents = []
    for out in ("one", "two"):
        benchmark(configuration(out))
        content = json.loads((tmp_path / out / "results.json").read_text())
        times = content.pop("times")
        assert set(times["contenders"]) == {"Adam", "learned"}
        contents.append(json.dumps(content))
        assert (tmp_path / out / "curves.png").read_bytes().startswith(b"\x89PNG")
        assert (tmp_path / out / "report.html").read_text().startswith("<!doctype html>")
        captured = capsys.readouterr()
        assert f"{out}/report.html" in captured.out
        assert content["verdict"][0][:20] in captured.out
        assert "Adam: learning rate" in captured.err  # the tuned rate is printed
    assert contents[0] == contents[1]
    assert str(tmp_path) not in contents[0]


def test_other_seeds_give_other_runs(tmp_path: Path) -> None:
    first, other = configuration(), configuration()
    other.seed = 1
    assert not set(read(first).seeds) & set(read(other).seeds)


@pytest.mark.parametrize(
    ("suite", "message"),
    [
        ({"contenders": []}, "contenders: 0 is no race"),
        ({"contenders": [ADAM]}, "contenders: 1 is no race"),
        ({"contenders": [ADAM, ADAM | {"schedule": "cosine"}]}, "'Adam' stands 2 times"),
        ({"contenders": [ADAM, LEARNED | {"label": ""}]}, "contender 2: it has no label"),
        ({"contenders": [ADAM, LEARNED | {"rule": None}]}, "neither a rule nor a checkpoint nor an optimizer"),
        ({"contenders": [ADAM, LEARNED | {"checkpoint": "x"}]}, "both a rule and a checkpoint"),
        ({"contenders": [ADAM, LEARNED | {"rule": {"_target_": "lopt.rules.Perparameter"}}]}, "mean 'PerParameter'"),
        ({"contenders": [ADAM, LEARNED | {"rule": {"_target_": "lopt.rules.Functional"}}]}, "cannot be made"),
        ({"contenders": [ADAM, LEARNED | {"rule": {"_target_": "nowhere.Rule"}}]}, "nowhere"),
        ({"contenders": [ADAM, LEARNED | {"rule": {"_target_": "builtins.dict"}}]}, "not an UpdateRule"),
        ({"contenders": [ADAM, LEARNED | {"rule": "adam"}]}, "names no class"),
        (
            {"contenders": [ADAM, LEARNED | {"rule": {"_target_": "lopt.rules.Adam", "beta1": 2.0}}]},
            "strictly between 0 and 1",
        ),
        ({"contenders": [ADAM, LEARNED | {"shedule": "cosine"}]}, "did you mean 'schedule'"),
        ({"contenders": [ADAM, LEARNED | {"schedule": "cosin"}]}, "did you mean 'cosine'"),
        ({"contenders": [ADAM | {"lr": []}, LEARNED]}, "the grid is empty"),
        ({"contenders": [ADAM | {"lr": [-1, 1]}, LEARNED]}, "-1.0 is not a positive"),
        ({"contenders": [ADAM | {"lr": "much"}, LEARNED]}, "neither a number nor a list"),
        ({"steps": 2}, "steps: 2 is less than evaluate_every"),
        ({"seeds": 1}, "seeds: 1 gives no standard error"),
        ({"reference": "Adan"}, "did you mean 'Adam'"),
        ({"learned": "lerned"}, "did you mean 'learned'"),
        ({"steps": "abc"}, "steps: 'abc' is not a whole number"),
        ({"steps": 4.5}, "steps: 4.5 is not a whole number"),
        ({"steps": None}, "steps: None is not a whole number"),
        ({"evaluate_every": 2.5}, "evaluate_every: 2.5 is not a whole number"),
        ({"evaluate_every": 0}, "evaluate_every: 0 is not positive"),
        ({"seeds": 0}, "seeds: 0 gives no standard error"),
        ({"seeds": True}, "seeds: True; give a whole number"),
        ({"tuning_seeds": "two"}, "tuning_seeds: 'two' is not a whole number"),
        ({"tuning_seeds": 3}, "tuning_seeds: 3; give 1 to 2"),
        ({"max_widenings": -1}, "max_widenings: -1 is not a whole number of at least 0"),
        ({"contenders": "adam"}, r"contenders: 'adam' is no list. Write contenders=\[adam\]"),
        ({"contenders": [ADAM | {"grid": 3}, LEARNED]}, "grid of 'Adam': 3 is no mapping. Write grid"),
        ({"contenders": [ADAM | {"arguments": 3}, LEARNED]}, "arguments of 'Adam': 3 is no mapping. Write arguments"),
        ({"contenders": [ADAM, {"label": "learned", "checkpoint": 3}]}, "unknown rule '3'"),
        ({"tasks": 3}, "suite.tasks: 3; give a family for each name"),
        ({"tasks": {"one": 3}}, "suite.tasks: {'one': 3}; give a family for each name"),
        ({"goals": 3}, "goals: 3 is no list"),
        ({"published": 3}, "published: 3 is no list"),
        ({"family": {"_target_": "tasks.ImageMPL"}}, "did you mean 'ImageMLP'"),
        ({"family": {"_target_": "tasks.ImageMLP", "data": "digit"}}, "digits"),
    ],
)
def test_bad_input_is_refused_before_any_work(suite: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        read(configuration(**suite))


def test_a_key_that_nobody_reads() -> None:
    config = OmegaConf.merge(configuration(), {"nonsense": 3})
    assert isinstance(config, DictConfig)
    with pytest.raises(InvalidInput, match="unknown key 'nonsense'.*contenders"):
        read(config)


@pytest.mark.parametrize("threads", [0, "two"])
def test_bad_threads(threads: object) -> None:
    config = configuration()
    config.threads = threads
    with pytest.raises(InvalidInput, match="threads"):
        read(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threads": True}, "threads: True is not a positive whole number"),
        ({"seed": "abc"}, "seed: 'abc' is not a whole number"),
        ({"seed": 1.5}, "seed: 1.5 is not a whole number"),
        ({"seed": None}, "seed: None is not a whole number"),
        ({"quick": "maybe"}, "quick: 'maybe' is neither true nor false"),
        ({"contenders": 5}, r"contenders: 5 is no list. Write contenders=\[5\]"),
        ({"contenders": ["nope"]}, "unknown contender 'nope'"),
        ({"tasks": "digits"}, r"tasks: 'digits' is no list. Write tasks=\[digits\]"),
    ],
)
def test_bad_values_beside_the_suite(change: dict[str, Any], message: str) -> None:
    config = configuration()
    config.update(change)
    with pytest.raises(InvalidInput, match=message):
        read(config)


def test_the_first_contender_is_the_reference_where_none_is_named() -> None:
    assert read(configuration(reference=None)).reference == "Adam"


def test_the_device_and_dtype_of_several_tasks_are_checked() -> None:
    bowl = {"family": {"_target_": "tasks.Quadratic", "dimensions": 4}}
    for name, message in (("device", "cannot be used here"), ("dtype", "give torch.float32")):
        config = configuration(tasks={"one": bowl, "two": bowl})
        config[name] = "nope"
        with pytest.raises(InvalidInput, match=f"{name}='nope'.*{message}"):
            read(config)


def test_a_folder_may_have_a_number_for_a_name() -> None:
    config = configuration("5")
    config.cache = 7
    settings = read(config)
    assert (settings.out, settings.cache) == (Path("5"), Path("7"))


def test_a_missing_checkpoint_names_the_command_that_makes_it(tmp_path: Path) -> None:
    missing = {"label": "learned", "checkpoint": str(tmp_path / "rule.safetensors"), "made_by": "make demo"}
    with pytest.raises(InvalidInput, match=r"there is no file .*rule.safetensors. Make it with: make demo"):
        read(configuration(contenders=[ADAM, missing]))


def test_a_rule_from_a_checkpoint_runs_at_its_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rule.safetensors"
    path.touch()
    monkeypatch.setattr("benchmark.contender_nodes.load_rule", lambda source: SGDM())
    monkeypatch.setattr("benchmark.contender_nodes.read_card", lambda source: {"horizon": 200})
    settings = read(configuration(contenders=[ADAM, {"label": "learned", "checkpoint": str(path), "lr": None}]))
    contender = settings.contenders[1]
    assert (contender.axes, contender.tuned) == ({"lr": (SGDM.default_lr,)}, False)
    assert (contender.about, contender.card) == (str(path), {"horizon": 200})


def rule_of(contender: Contender) -> UpdateRule:
    assert isinstance(contender.optimizer, UpdateRule)
    return contender.optimizer


def test_the_dtype_reaches_task_and_rules() -> None:
    config = configuration()
    config.dtype = "float64"
    settings = read(config)
    weights = settings.tasks[0][0].load().init(torch.Generator().manual_seed(0))
    assert {w.dtype for w in weights.values()} == {torch.float64}
    assert {p.dtype for c in settings.contenders for p in rule_of(c).parameters()} == {torch.float64}


def test_the_demo_suite_is_complete() -> None:
    with initialize_config_dir(str(ROOT / "configs"), version_base=None):
        suite = compose("benchmark").suite
    labels = [node.label for node in suite.contenders]
    assert {suite.reference, suite.learned, suite.initial} <= set(labels)
    assert suite.family.classes == [5, 6, 7, 8, 9]
    assert len(suite.contenders[0].lr) >= 9
