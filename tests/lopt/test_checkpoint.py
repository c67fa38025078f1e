"""Checkpoints: what is saved comes back bit for bit, and whatever is wrong with a file is said before it is used."""

import builtins
import json
import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import lopt.checkpoint
from lopt import InvalidInput, WeightSpace, __version__, load_rule, packaged_rules, read_card, save_rule
from lopt.rules import RULES, SGDM, Adam, Functional, Neuron, PerParameter, UpdateRule

SPACE = WeightSpace({"0.weight": "h:4, in=3", "0.bias": "h:4", "qk": "H:2*d[H]:3+(h:4+1), 2*3"})
BUILD = {
    "sgdm": lambda: SGDM(0.8),
    "adam": lambda: Adam(0.8, 0.95, 1e-6),
    "per_parameter": lambda: PerParameter(width=8, layers=2),
    "functional": lambda: Functional(SPACE, width=8, layers=2),
    "neuron": lambda: Neuron(width=8),
}


def made(name: str, dtype: torch.dtype = torch.float32) -> UpdateRule:
    torch.manual_seed(0)
    rule = BUILD[name]().to(dtype)
    with torch.no_grad():
        for p in rule.parameters():
            p.add_(torch.randn_like(p) / 3)
    return rule


def forged(path: Path, theta=None, **record: str | None) -> Path:
    """A file like the one of an Adam rule, with parts of its record changed, or left out where they are None."""
    rule = Adam()
    arguments = json.dumps(dict(rule.arguments))
    record = {"format": "1", "rule": "adam", "arguments": arguments, "card": "{}"} | record
    theta = {k: v.detach() for k, v in rule.state_dict().items()} if theta is None else theta
    save_file(theta, path, metadata={k: v for k, v in record.items() if v is not None})
    return path


@pytest.fixture
def packaged(tmp_path, monkeypatch) -> Path:
    """A package whose pretrained rules lie in a folder of this test."""
    monkeypatch.setattr(lopt.checkpoint.resources, "files", lambda package: tmp_path)
    return tmp_path / "pretrained"


# --- the round trip --------------------------------------------------------------------------------------------------


def test_every_rule_has_a_row():
    assert set(BUILD) == set(RULES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", RULES)
def test_a_rule_comes_back_bit_for_bit(name, dtype, tmp_path):
    rule = made(name, dtype)
    path = save_rule(tmp_path / "new" / "folder" / "rule.safetensors", rule)
    for source in (path, str(path)):
        again = load_rule(source)
        assert type(again) is type(rule)
        assert dict(again.arguments) == dict(rule.arguments)
        assert all(p.requires_grad for p in again.parameters())
        for (key, x), (other, y) in zip(rule.state_dict().items(), again.state_dict().items(), strict=True):
            assert (key, x.dtype) == (other, y.dtype)
            assert torch.equal(x, y)


def test_arguments_that_theta_fits_can_be_changed():
    plain, changed = load_rule("neuron-1"), load_rule("neuron-1", orthogonalise=True)
    assert dict(changed.arguments) == {**plain.arguments, "orthogonalise": True} != dict(plain.arguments)
    assert all(torch.equal(x, changed.state_dict()[key]) for key, x in plain.state_dict().items())
    with pytest.raises(InvalidInput, match=r"θ does not fit the rule 'neuron' with \{'width': 8\}"):
        load_rule("neuron-1", width=8)
    with pytest.raises(InvalidInput, match="with {'orthogonalize': True} do not fit the rule 'neuron'.*unexpected"):
        load_rule("neuron-1", orthogonalize=True)


def test_a_rule_with_another_space_comes_back_with_it(tmp_path):
    rule = load_rule(save_rule(tmp_path / "rule.safetensors", made("functional")))
    assert isinstance(rule, Functional)
    assert rule.space == SPACE


def test_a_neuron_of_before_the_law_of_the_data_set_loads_as_it_was(tmp_path):
    rule, old = made("neuron", torch.float64), tmp_path / "old.safetensors"
    path = save_rule(tmp_path / "new.safetensors", rule)
    with safe_open(path, "pt") as file:
        record, theta = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    save_file({key: x for key, x in theta.items() if "data_law" not in key}, old, metadata=record)
    loaded = load_rule(old).state_dict()
    for key, x in theta.items():
        assert torch.equal(loaded[key], torch.zeros_like(x) if "data_law" in key else x)
    save_file({key: x for key, x in theta.items() if "scale_law" not in key}, old, metadata=record)
    with pytest.raises(InvalidInput, match="first differences.*scale_law"):
        load_rule(old)


def test_loading_draws_nothing_from_the_callers_seed(tmp_path):
    path = save_rule(tmp_path / "rule.safetensors", made("functional"))
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    load_rule(path)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_loaded_rule_is_no_view_of_its_file(tmp_path):
    path = save_rule(tmp_path / "rule.safetensors", made("adam"))
    rule = load_rule(path)
    before = {k: v.clone() for k, v in rule.state_dict().items()}
    path.write_bytes(b"\xff" * path.stat().st_size)
    assert all(torch.equal(v, before[k]) for k, v in rule.state_dict().items())


def test_the_card(tmp_path):
    card = {"meta-trained on": ["digits", "mnist"], "steps": 3, "measured": {"loss": 0.25}, "note": "θ"}
    path = save_rule(tmp_path / "rule.safetensors", made("adam"), card)
    assert read_card(path) == {"lopt": __version__, "torch": torch.__version__, **card}
    assert read_card(save_rule(path, made("adam"))) == {"lopt": __version__, "torch": torch.__version__}


def test_packaged_names(packaged):
    assert packaged_rules() == []  # not even a folder
    for name in ("b", "a"):
        save_rule(packaged / f"{name}.safetensors", made("adam"), {"name": name})
    (packaged / "README.md").write_text("not a rule")
    assert packaged_rules() == ["a", "b"]
    assert isinstance(load_rule("a"), Adam)
    assert read_card("b")["name"] == "b"


# --- saving ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["write_bytes", "replace"])
def test_a_failing_save_leaves_the_old_file(step, tmp_path, monkeypatch):
    path = save_rule(tmp_path / "rule.safetensors", made("adam"))
    before = path.read_bytes()

    def half(target: Path, data: bytes) -> None:
        with target.open("wb") as file:
            file.write(data[:10])
        raise OSError("disk full")

    def refuse(*_):
        raise OSError("disk full")

    if step == "write_bytes":
        monkeypatch.setattr(Path, "write_bytes", half)
    else:
        monkeypatch.setattr(lopt.checkpoint.os, "replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        save_rule(path, made("sgdm"))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_rule_outside_the_registry_is_not_saved(tmp_path):
    class Mine(SGDM):
        pass

    with pytest.raises(InvalidInput, match=r"Mine is not registered. Add it to lopt.rules.RULES"):
        save_rule(tmp_path / "rule.safetensors", Mine())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [torch.zeros(1), {1, 2}, "circle"])
def test_a_card_of_something_else_is_not_saved(value, tmp_path):
    card: dict = {"x": value}
    if value == "circle":
        card["x"] = card
    with pytest.raises(InvalidInput, match="a card holds JSON values only"):
        save_rule(tmp_path / "rule.safetensors", made("adam"), card)
    assert not list(tmp_path.iterdir())


# --- files that cannot be used ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0, 4, 40, 0.5, -1])
def test_a_truncated_file(keep, tmp_path):
    path = save_rule(tmp_path / "rule.safetensors", made("functional"))
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    for read in (load_rule, read_card):
        with pytest.raises(InvalidInput, match=r"rule.safetensors: damaged, or not a .safetensors file"):
            read(path)


@pytest.mark.parametrize("data", [bytes(range(256)) * 8, b"PK\x03\x04" + bytes(500), b'{"a": 1}', b"\xff" * 100])
def test_a_file_of_something_else(data, tmp_path):
    path = tmp_path / "rule.safetensors"
    path.write_bytes(data)
    with pytest.raises(InvalidInput, match="damaged, or not a .safetensors file"):
        load_rule(path)


def test_a_safetensors_file_that_is_no_rule(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(InvalidInput, match="format None, .*Is it a rule saved by lopt.save_rule"):
        load_rule(path)
    assert read_card(path) == {}


ADAM = {"beta1_logit": torch.zeros(()), "beta2_logit": torch.zeros(()), "log_eps": torch.zeros(())}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"format": "2"}, "format '2', this version of lopt reads '1'.*upgrade lopt"),
        ({"rule": "adm"}, "unknown rule in .* 'adm'; did you mean 'adam'"),
        ({"rule": None}, "unknown rule in .* ''"),
        ({"rule": "__import__"}, "unknown rule"),
        ({"arguments": '{"momentum": 0.5}'}, "its arguments do not fit the rule 'adam': .*momentum"),
        ({"arguments": '{"beta1": 2}'}, "its arguments do not fit the rule 'adam': decay: 2"),
        ({"arguments": '{"beta1": "os.system"}'}, "its arguments do not fit the rule 'adam'"),
        ({"arguments": "not json"}, "its arguments do not fit"),
        ({"arguments": "[1]"}, "its arguments do not fit"),
        ({"arguments": None}, "its arguments do not fit"),
        ({"rule": "per_parameter", "arguments": '{"width": -1, "layers": 2}'}, "its arguments do not fit"),
        ({"rule": "per_parameter", "arguments": '{"width": 1000000, "layers": 1000}'}, "θ does not fit"),
        ({"rule": "functional", "arguments": '{"space": 3}'}, "its arguments do not fit"),
        ({"rule": "functional", "arguments": '{"space": {"w": "h:"}}'}, "cannot read 'h:'"),
        ({"rule": "sgdm", "arguments": "{}"}, "θ does not fit the rule 'sgdm'.*momentum_logit"),
        ({"theta": ADAM}, r"θ does not fit the rule 'adam'.*log_scale"),
        ({"theta": ADAM | {"log_scale": torch.zeros(1)}}, r"θ does not fit the rule 'adam'.*log_scale"),
        ({"theta": ADAM | {"log_scale": torch.zeros((), dtype=torch.int64)}}, "θ holds torch.int64"),
    ],
)
def test_a_record_that_does_not_fit(change, complaint, tmp_path):
    assert isinstance(load_rule(forged(tmp_path / "good.safetensors")), Adam)
    path = forged(tmp_path / "bad.safetensors", **change)
    with pytest.raises(InvalidInput, match=complaint):
        load_rule(path)


def test_loading_runs_nothing_that_a_file_says(tmp_path, monkeypatch):
    marker = tmp_path / "executed"
    code = f"__import__('pathlib').Path({str(marker)!r}).touch()"
    ran: list[str] = []
    for name in ("eval", "exec", "compile"):
        monkeypatch.setattr(builtins, name, lambda *_, name=name, **__: ran.append(name))
    monkeypatch.setattr(torch, "load", lambda *_, **__: ran.append("torch.load"))
    records = [
        {"rule": code},
        {"arguments": code},
        {"arguments": json.dumps({"beta1": code})},
        {"rule": "functional", "arguments": json.dumps({"space": {"w": code}})},
        {"rule": "lopt.rules.Adam"},
        {"card": code},
    ]
    for i, record in enumerate(records[:-1]):
        with pytest.raises(InvalidInput):
            load_rule(forged(tmp_path / f"{i}.safetensors", **record))
    load_rule(forged(tmp_path / "card.safetensors", **records[-1]))
    assert not ran
    assert not marker.exists()


def test_a_card_that_is_not_json(tmp_path):
    with pytest.raises(InvalidInput, match="card"):
        read_card(forged(tmp_path / "rule.safetensors", card="{"))


# --- names and places ------------------------------------------------------------------------------------------------


def test_names_that_lead_nowhere(packaged, tmp_path):
    save_rule(packaged / "per-parameter.safetensors", made("adam"))
    for source in ("missing.safetensors", tmp_path / "missing", tmp_path):
        with pytest.raises(InvalidInput, match=r"there is no file .*Packaged rules: per-parameter"):
            load_rule(source)
    with pytest.raises(InvalidInput, match="unknown rule 'per-paramter'; did you mean 'per-parameter'"):
        load_rule("per-paramter")
    with pytest.raises(InvalidInput, match=r"no fitted 'adam' is packaged.*lopt.rules.Adam\("):
        load_rule("adam")


def test_the_hub_without_its_client(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InvalidInput, match=r"pip install 'lopt\[hub\]'"):
        load_rule("hub:owner/repository")


def test_the_hub_with_its_client(monkeypatch, tmp_path):
    path = save_rule(tmp_path / "rule.safetensors", made("sgdm"), {"from": "hub"})
    asked: list[tuple[str, str]] = []

    def hf_hub_download(repository: str, file: str) -> str:
        asked.append((repository, file))
        return str(path)

    client = types.ModuleType("huggingface_hub")
    client.__dict__["hf_hub_download"] = hf_hub_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", client)
    assert isinstance(load_rule("hub:owner/repository"), SGDM)
    assert read_card("hub:owner/repository")["from"] == "hub"
    assert asked == [("owner/repository", "rule.safetensors")] * 2


def test_the_file_can_be_read_without_lopt(tmp_path):
    rule = made("adam")
    with safe_open(save_rule(tmp_path / "rule.safetensors", rule), framework="pt") as file:
        assert set(file.keys()) == set(rule.state_dict())
        assert file.metadata()["rule"] == "adam"
        assert json.loads(file.metadata()["arguments"]) == dict(rule.arguments)
