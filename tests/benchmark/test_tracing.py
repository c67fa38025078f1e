"""The benchmark of traces: its rows and its zoo, on models that take no time and with processes that misbehave."""

import importlib
import io
import json
import sys

import pytest
import torch
import transformers
from torch import nn

from benchmark import tracing, tracing_cases, tracing_worker, tracing_zoo
from benchmark.layer_cases import Row
from benchmark.timm_import import without_torchvision
from benchmark.tracing_models import NETWORKS
from benchmark.tracing_timm import _rank, _small
from benchmark.tracing_tiny import SPECIAL, VOCABULARY, tiny
from benchmark.tracing_transformers import build, names
from benchmark.tracing_worker import Finding, Specimen, examine
from lopt.tracing import trace

# --- one model -------------------------------------------------------------------------------------------------------


class Hidden(nn.Module):
    """A hidden layer of four neurons, whose order nothing depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.inner(x))


def test_a_model_that_holds():
    def make(family: str, name: str) -> Specimen:
        assert (family, name) == ("net", "small")
        return Specimen(Hidden(), (torch.randn(2, 3),), {})

    found = examine("net", "small", make)
    assert found.outcome == "verified"
    assert (found.parameters, found.groups, found.why) == (26, 1, "")
    assert found.share == pytest.approx(24 / 26)
    assert found.tracing is not None and found.tracing > 0
    assert found.verification is not None and found.verification > 0


def test_a_model_that_does_not_build():
    def make(family: str, name: str) -> Specimen:
        raise ValueError("no such\nthing")

    assert examine("net", "none", make) == Finding("net", "none", "skipped", "ValueError: no such thing")


def test_a_trace_that_raises():
    found = examine("net", "wrong", lambda *_: Specimen(Hidden(), (torch.randn(2, 5),), {}))
    assert found.outcome == "raised"
    assert "shapes" in found.why
    assert found.tracing is None


def test_a_symmetry_that_does_not_hold(monkeypatch):
    real = tracing_worker.analyse

    def lying(module, *inputs, **options):
        found = real(module, *inputs, **options)
        wrong = type(found.space)(
            {
                name: ", ".join(f"{name[0]}{i}:{n}" for i, n in enumerate(shape))
                for name, shape in found.space.shapes.items()
            }
        )
        return type(found)(wrong, {})

    monkeypatch.setattr(tracing_worker, "analyse", lying)
    found = examine("net", "lied about", lambda *_: Specimen(Hidden(), (torch.randn(2, 3),), {}))
    assert found.outcome == "failed"
    assert "i0" in found.why


def test_the_process_answers_every_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("net a\nnet b\n"))
    monkeypatch.setattr(sys, "argv", ["worker"])
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(tracing_worker.os, "_exit", lambda code: None)
    tracing_worker.serve(lambda: [], lambda *_: Specimen(Hidden(), (torch.randn(2, 3),), {}))
    ready, *answers = capsys.readouterr().out.splitlines()
    assert ready == tracing_worker.READY
    assert [Finding(**json.loads(answer))[:3] for answer in answers] == [("net", n, "verified") for n in "ab"]


# --- the keeper of the process ---------------------------------------------------------------------------------------

PROCESS = """
import json, sys, time
print("ready", flush=True)
for line in sys.stdin:
    family, name = line.split()
    if name == "hangs":
        time.sleep(60)
    if name == "dies":
        sys.exit(3)
    print(json.dumps({"family": family, "name": name, "outcome": "verified"}), flush=True)
"""


def test_a_process_that_hangs_or_dies_does_not_stop_the_zoo(monkeypatch):
    monkeypatch.setattr(tracing_zoo, "PER_PROCESS", 2)
    with tracing_zoo.Keeper([sys.executable, "-c", PROCESS], limit=2.0) as keeper:
        wanted = ["a", "hangs", "b", "dies", "c", "d", "e"]
        outcomes = [keeper.examine("net", name).outcome for name in wanted]
    assert outcomes == ["verified", "too slow", "verified", "raised", "verified", "verified", "verified"]


def test_a_package_that_is_not_there():
    with pytest.raises(RuntimeError, match="does not start"):
        tracing_zoo.Keeper([sys.executable, "-c", "raise SystemExit(1)"]).examine("net", "a")


# --- what is printed -------------------------------------------------------------------------------------------------

FINDINGS = [
    Finding("bert", "Bert", "verified", "", 1000, 3, 0.995, 0.02, 0.1),
    Finding(
        "bert", "BertLarge", "verified", "", 1000, 3, 0.5, 0.04, 0.1, ("frobnicate in 0, which has no rule",), 2, 1
    ),
    Finding("t5", "T5", "failed", "g1", 1000, 3, 0.5, 0.06, 0.1),
    Finding("vit", "ViT", "raised", "KeyError: x", 1000),
    Finding("swin", "Swin", "too slow"),
    Finding("gpt", "GPT", "skipped", "ValueError: no"),
]


def test_the_sums():
    first, second, third = tracing_zoo.totals("transformers", FINDINGS)
    assert "5 models of 4 types built, 3 traced, 2 of 1 types verified (goal: 150 of 100)" in first
    assert "1 failed, 1 raised, 1 too slow" in first
    assert "median of tracing 0.040 s, longest 0.06 s; median share 50.0%; 1 with operators" in second
    assert "1 skipped" in third
    assert "ValueError 1" in third


def test_a_line_for_a_model():
    assert tracing_zoo.line(FINDINGS[0]).split() == [
        "bert",
        "Bert",
        "1,000",
        "3",
        "99.5%",
        "0.02",
        "s",
        "0.10",
        "s",
        "verified",
    ]
    assert tracing_zoo.line(FINDINGS[1]).endswith("verified; no rule: frobnicate; 2 unused; 1 untested")
    assert tracing_zoo.line(FINDINGS[3]).endswith("raised: KeyError: x")


def test_the_zoo(monkeypatch, tmp_path, capsys):
    seen = []

    def findings(source, wanted):
        seen.append((source, wanted))
        return [Finding(family, name, "verified", tracing=0.1) for family, name in wanted]

    monkeypatch.setattr(tracing_zoo, "names", lambda source: [("bert", "Bert"), ("t5", "T5"), ("bert", "BertLarge")])
    monkeypatch.setattr(tracing_zoo, "findings", findings)
    path = tmp_path / "zoo.json"
    assert tracing.main(["zoo", "--match", "bert", "--limit", "1", "--json", str(path)]) == 0
    assert seen == [("transformers", [("bert", "Bert")]), ("timm", [("bert", "Bert")])]
    assert [(row["source"], row["name"]) for row in json.loads(path.read_text())] == [
        ("transformers", "Bert"),
        ("timm", "Bert"),
    ]
    assert "timm: 1 models" in capsys.readouterr().out
    monkeypatch.setattr(tracing_zoo, "findings", lambda source, wanted: FINDINGS)
    assert tracing.main(["zoo", "--only", "timm"]) == 1
    with pytest.raises(SystemExit):
        tracing.main(["zoo", "--limit", "0"])
    assert "--limit: 0" in capsys.readouterr().err


# --- times -----------------------------------------------------------------------------------------------------------


def test_the_small_networks_have_the_symmetry_that_is_timed():
    for name, make in NETWORKS.items():
        module, inputs = make()
        space = trace(module, *inputs)  # verifies
        assert space.groups, name
        assert space.verify(module, *inputs), name


def test_the_rows_of_the_small_networks(monkeypatch):
    monkeypatch.setattr(tracing_cases, "NETWORKS", {name: NETWORKS[name] for name in ("MLP", "CNN, pooled")})
    *rows, of_all = tracing_cases.small()
    assert [row.case for row in rows] == ["MLP", "CNN, pooled"]
    assert of_all.value == pytest.approx(sum(row.value or 0 for row in rows) / 2)
    assert of_all.value is not None
    assert (of_all.holds, of_all.goal) == (of_all.value < 100, "< 100")


def test_the_command(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(tracing, "small", lambda: [Row("MLP", "trace", 1.5, "ms", "", "< 100", True)])
    monkeypatch.setattr(tracing, "large", lambda: [Row("GPT-2", "trace", 3.25, "s", "", "< 2", False)])
    path = tmp_path / "rows.json"
    assert tracing.main(["--json", str(path)]) == 0
    assert set(json.loads(path.read_text())[0]) == {"case", "metric", "value", "unit", "reference", "goal", "holds"}
    printed = capsys.readouterr().out
    assert "1.50 yes" in printed
    assert "3.25 NO" in printed


# --- other people's models -------------------------------------------------------------------------------------------


def test_a_tiny_language_model():
    found = examine("gpt2", "GPT2LMHeadModel", build)
    assert found.outcome == "verified"
    assert found.parameters < 50_000
    assert found.share == 1.0
    assert dict(names())["gpt2"] == "GPT2LMHeadModel"


def test_a_tiny_configuration_keeps_what_belongs_together():
    config = tiny(transformers.LlamaConfig())
    assert config.hidden_size == config.num_attention_heads * config.head_dim
    assert config.num_key_value_heads == config.num_attention_heads, "no grouped queries where there were none"
    assert config.vocab_size == VOCABULARY > SPECIAL > config.eos_token_id
    grouped = tiny(transformers.MistralConfig())
    assert grouped.num_key_value_heads == 2
    mixed = tiny(transformers.Gemma2Config())
    assert len(set(mixed.layer_types)) == mixed.num_hidden_layers == 2


def test_small_image_models():
    assert _small("depths", (3, 3, 9), "depths?", "dims") == (1, 1, 1)
    assert _small("depth", 12, "depths?", "dims") == 2
    assert _small("dims", [64, 128, 40], "depths?", "dims") == [16, 32, 40]
    assert _small("in_chans", 3, ".*", ".*") is None
    assert _small("act", ("relu",), ".*", ".*") is None
    assert sorted(["net_b3", "net_tiny", "net_b0", "test_net"], key=_rank) == [
        "test_net",
        "net_tiny",
        "net_b0",
        "net_b3",
    ]


def test_a_stand_in_for_torchvision_leaves_nothing_behind():
    with without_torchvision():
        misc = importlib.import_module("torchvision.ops.misc")
        assert issubclass(misc.FrozenBatchNorm2d, nn.Module)
        assert misc.InterpolationMode.NEAREST == "NEAREST"
    assert not [name for name in sys.modules if name.startswith("torchvision")]
