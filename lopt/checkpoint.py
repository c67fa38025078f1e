"""A fitted rule as one .safetensors file: θ, and in its metadata the rule's name, its arguments and a card.

Loading never executes what a file says: the name is looked up in the registry of rules, the arguments are JSON values
handed to that class, and θ must fit it exactly. Whatever is wrong is an `InvalidInput` before anything is changed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from importlib import import_module, resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lopt.errors import InvalidInput, unknown
from lopt.rules import RULES, UpdateRule
from lopt.version import __version__

FORMAT = "1"
HUB_FILE = "rule.safetensors"  # what a hub repository of a rule holds


def save_rule(path: str | os.PathLike[str], rule: UpdateRule, card: Mapping[str, Any] | None = None) -> Path:
    """Writes θ, the rule's name and arguments, and a card. The file appears whole or not at all.

    Args:
        card: what the rule was meta-trained on, for how long, what was measured; JSON values.

    Raises:
        InvalidInput: the rule's class is not in `lopt.rules.RULES`; the card is not JSON.
    """
    names = [name for name, cls in RULES.items() if type(rule) is cls]
    if not names:
        raise InvalidInput(f"rule: {type(rule).__name__} is not registered. Add it to lopt.rules.RULES under a name")
    try:
        record = {
            "format": FORMAT,
            "rule": names[0],
            "arguments": json.dumps(dict(rule.arguments)),
            "card": json.dumps({"lopt": __version__, "torch": torch.__version__, **(card or {})}),
        }
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"card: {error}; a card holds JSON values only") from None
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    theta = {name: tensor.detach().cpu().contiguous() for name, tensor in rule.state_dict().items()}
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(save(theta, metadata=record))
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def load_rule(source: str | os.PathLike[str], **changes: Any) -> UpdateRule:
    """The rule in a file, in the package, or on the Hugging Face hub.

    Args:
        source: a packaged name (`packaged_rules()` lists them), a path to a .safetensors file, or
            "hub:owner/repository", which needs the extra `lopt[hub]` and is the only source that uses the network.
        changes: arguments of the rule in place of those in the file, as far as θ fits them.

    Raises:
        InvalidInput: no such name or file, a damaged file, a rule that this version does not know, a θ of wrong shape,
            a change of an argument that the rule does not have, or that θ does not fit.

    >>> load_rule("neuron-1", orthogonalise=True).arguments["orthogonalise"]
    True
    """
    path = _locate(source)
    theta, record = _read(path)
    if record.get("format") != FORMAT:
        raise InvalidInput(
            f"{path}: format {record.get('format')!r}, this version of lopt reads {FORMAT!r}. "
            "Is it a rule saved by lopt.save_rule? If it is newer, upgrade lopt."
        )
    name = record.get("rule", "")
    if name not in RULES:
        raise unknown(f"rule in {path}", name, RULES)
    try:
        with torch.device("meta"):  # θ comes from the file: no memory for another one, no draw from the caller's seed
            rule = RULES[name](**{**json.loads(record.get("arguments", "null")), **changes})
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        whose = f"its arguments with {changes}" if changes else "its arguments"
        raise InvalidInput(f"{path}: {whose} do not fit the rule {name!r}: {error}") from None
    wanted = {key: tuple(tensor.shape) for key, tensor in rule.state_dict().items()}
    like = next(iter(theta.values()), torch.empty(0))
    theta = {**{key: like.new_zeros(wanted[key]) for key in rule.zero_if_absent}, **theta}
    came = {key: tuple(tensor.shape) for key, tensor in theta.items()}
    if wanted != came:
        wrong = sorted(set(wanted.items()) ^ set(came.items()))[:4]
        whose = f"the rule {name!r} with {changes}" if changes else f"the rule {name!r}"
        raise InvalidInput(f"{path}: θ does not fit {whose}; first differences: {wrong}")
    if kinds := sorted(str(t.dtype) for t in theta.values() if not t.is_floating_point()):
        raise InvalidInput(f"{path}: θ holds {kinds[0]}, and a rule's θ is of a floating-point dtype")
    rule.load_state_dict(theta, assign=True)
    return rule


def read_card(source: str | os.PathLike[str]) -> dict[str, Any]:
    """The card of a rule: what it was meta-trained on, for how long, with which version."""
    path = _locate(source)
    _, record = _read(path)
    try:
        return dict(json.loads(record.get("card", "{}")))
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"{path}: its card is damaged ({error}). Fetch or save it again") from None


def packaged_rules() -> list[str]:
    """The names of the rules that ship with the package."""
    folder = resources.files("lopt") / "pretrained"
    files = [file.name for file in folder.iterdir()] if folder.is_dir() else []
    return sorted(name.removesuffix(".safetensors") for name in files if name.endswith(".safetensors"))


def _locate(source: str | os.PathLike[str]) -> Path:
    text = os.fspath(source)
    if text in packaged_rules():
        return Path(str(resources.files("lopt") / "pretrained" / f"{text}.safetensors"))
    if text.startswith("hub:"):
        try:
            hub = import_module("huggingface_hub")
        except ImportError:
            raise InvalidInput(f"rule: {text!r} needs the hub client. Install it: pip install 'lopt[hub]'") from None
        return Path(hub.hf_hub_download(text.removeprefix("hub:"), HUB_FILE))
    path = Path(text)
    if path.is_file():
        return path
    if path.suffix == ".safetensors" or os.sep in text:
        raise InvalidInput(f"rule: there is no file {text!r}. Packaged rules: {', '.join(packaged_rules()) or 'none'}")
    if text in RULES:
        raise InvalidInput(
            f"rule: no fitted {text!r} is packaged. Pass one to fit: lopt.rules.{RULES[text].__name__}(...)"
        )
    raise unknown("rule", text, packaged_rules())


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            # Cloned, so that θ is no view of the file.
            theta = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
            return theta, file.metadata() or {}
    except SafetensorError as error:
        raise InvalidInput(f"{path}: damaged, or not a .safetensors file ({error}). Fetch or save it again") from None
