"""Contenders as configurations write them: a name in configs/contender, a file of a fitted rule, or a mapping."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

import lopt.rules
from benchmark.contenders import Contender, MakeOptimizer
from benchmark.grids import as_grid
from benchmark.schedules import SCHEDULES
from benchmark.sources import build, find
from lopt.checkpoint import load_rule, packaged_rules, read_card
from lopt.errors import InvalidInput, unknown
from lopt.rules import UpdateRule
from meta_train.cli import CONFIGS

KEYS = ("label", "rule", "checkpoint", "optimizer", "made_by", "lr", "grid", "arguments", "schedule", "about")
KINDS = ("rule", "checkpoint", "optimizer")
REMEDY = {
    "label": "Name it for the table.",
    "rule": (
        "Give the rule as {_target_: lopt.rules.Adam}, the file of a checkpoint: checkpoint=..., or a class: "
        "optimizer=torch.optim.AdamW."
    ),
}


def known_contenders() -> dict[str, Path]:
    """The contenders of configs/contender, by name."""
    return {path.stem: path for path in sorted((CONFIGS / "contender").glob("*.yaml"))}


def find_node(given: Any) -> Mapping[str, Any]:
    """What a name, a file or a mapping stands for.

    Raises:
        InvalidInput: no such contender; with the near matches.
    """
    if isinstance(given, Mapping):
        return given
    name, known = str(given), known_contenders()
    if name in known:
        node = OmegaConf.to_container(OmegaConf.load(known[name]), resolve=True)
        assert isinstance(node, dict)
        return {str(key): value for key, value in node.items()}
    if name.endswith(".safetensors") or name.startswith("hub:") or name in packaged_rules():
        return {"label": Path(name).stem if name.endswith(".safetensors") else name, "checkpoint": name, "lr": None}
    raise unknown("contender", name, [*known, *packaged_rules()])


def check_node(number: int, node: Mapping[str, Any]) -> dict[str, Any]:
    """One entry of `contenders`, with every default filled in that needs no rule."""
    for key in node:
        if key not in KEYS:
            raise unknown(f"key of contender {number}", str(key), KEYS)
    whole: dict[str, Any] = {**dict.fromkeys(KEYS), "schedule": "constant", "about": "", **node}
    if not str(whole["label"] or "").strip():
        raise InvalidInput(f"contender {number}: it has no label. {REMEDY['label']}")
    label = whole["label"] = str(whole["label"])
    given = [kind for kind in KINDS if whole[kind] is not None]
    if len(given) != 1:
        what = f"both a {' and a '.join(given)}" if given else "neither a rule nor a checkpoint nor an optimizer"
        raise InvalidInput(f"contender {label!r}: it has {what}. {REMEDY['rule']}")
    if whole["schedule"] not in SCHEDULES:
        raise unknown(f"schedule of {label!r}", str(whole["schedule"]), SCHEDULES)
    for key, example in (("grid", "{lr: [0.001, 0.01]}"), ("arguments", "{eps: 0.0001}")):
        if not isinstance(whole[key] or {}, Mapping):
            raise InvalidInput(f"{key} of {label!r}: {whole[key]!r} is no mapping. Write {key}: {example}.")
        whole[key] = dict(whole[key] or {})
    if whole["lr"] is not None:
        whole["grid"] = {"lr": _rates(label, whole["lr"]), **whole["grid"]}
        as_grid(label, whole["grid"])
    if whole["checkpoint"] is not None:
        whole["checkpoint"] = str(whole["checkpoint"])
    if whole["checkpoint"] is not None and _missing(Path(whole["checkpoint"])):
        remedy = f"Make it with: {whole['made_by']}" if whole["made_by"] else "Check the path."
        raise InvalidInput(f"checkpoint of {label!r}: there is no file {whole['checkpoint']}. {remedy}")
    return whole


def _missing(path: Path) -> bool:
    """Whether this is a path, not the name of a packaged rule or one on the hub, and leads nowhere."""
    if str(path).startswith("hub:"):
        return False
    return not path.is_file() and (path.suffix == ".safetensors" or len(path.parts) > 1)


def _rates(label: str, lr: Any) -> tuple[float, ...]:
    rates = lr if isinstance(lr, list) else [lr]
    try:
        return tuple(float(rate) for rate in rates)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"lr of {label!r}: {lr!r} is neither a number nor a list of numbers.") from error


def build_contender(node: Mapping[str, Any]) -> Contender:
    """The contender that a checked node describes. Without a learning rate it runs at its default."""
    label, card = node["label"], None
    optimizer: UpdateRule | MakeOptimizer
    arguments: dict[str, Any] = {name: _value(value) for name, value in node["arguments"].items()}
    if node["optimizer"] is not None:
        optimizer = _optimizer(f"optimizer of {label!r}", str(node["optimizer"]))
    else:
        optimizer = _rule(node)
        card = _card(node["checkpoint"])
    grid = dict(node["grid"])
    if "lr" not in grid:
        default = Contender(label, optimizer, (1.0,)).default_lr
        grid = {"lr": (1e-3 if default is None else default,), **grid}
    about = node["about"] or node["checkpoint"] or ""
    return Contender(label, optimizer, grid, node["schedule"], about, arguments, card)


def _optimizer(what: str, path: str) -> MakeOptimizer:
    found = find(what, path)
    if not callable(found):
        raise InvalidInput(f"{what}: {path} is no class. {REMEDY['rule']}")
    return cast(MakeOptimizer, found)


def _value(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _card(checkpoint: str | None) -> Mapping[str, Any] | None:
    return None if checkpoint is None else read_card(checkpoint)


def _rule(node: Mapping[str, Any]) -> UpdateRule:
    if node["checkpoint"] is not None:
        return load_rule(node["checkpoint"])
    what = f"rule of {node['label']!r}"
    known = {kind.__name__: kind for kind in lopt.rules.RULES.values()}
    rule = build(what, node["rule"], "lopt.rules", known)
    if not isinstance(rule, UpdateRule):
        raise InvalidInput(f"{what}: {node['rule']} gives a {type(rule).__name__}, which is not an UpdateRule.")
    return rule
