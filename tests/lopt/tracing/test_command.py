"""python -m lopt.tracing: what it prints, and what it says to a factory that is not one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from lopt.tracing import analyse
from lopt.tracing.__main__ import folded, main, report

ROOT = Path(__file__).parents[3]
MODELS = """
import torch
from torch import nn


class Ordered(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.out, self.spare = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(4, 7)

    def forward(self, x, scale=1.0):
        return self.out(torch.cumsum(self.inner(x), dim=1)) * scale


def ordered():
    return Ordered(), torch.randn(2, 3), {"scale": 2.0}


def mlp():
    return nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)), (torch.randn(2, 3),)


def dropout():
    return nn.Sequential(nn.Linear(3, 5), nn.Dropout(0.5), nn.Linear(5, 2)), (torch.randn(2, 3),)


def three():
    return 3


def no_module():
    return "net", torch.randn(2, 3)


def no_inputs():
    return nn.Linear(2, 2), 7


def lazy():
    return nn.LazyLinear(2), torch.randn(2, 3)


def broken():
    import there_is_no_such_package


value = 7
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "my_models.py").write_text(MODELS, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("my_models", None)


def test_the_command_in_a_process_of_its_own(folder):
    done = subprocess.run(
        [sys.executable, "-m", "lopt.tracing", "my_models:mlp", "--draw", "picture.svg"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 group;" in done.stdout
    assert "g0:5, in=3" in done.stdout
    assert "Verification: holds" in done.stdout
    assert (folder / "picture.svg").read_text(encoding="utf-8").lstrip().startswith("<svg")


def test_what_was_fixed_and_why(folder, capsys):
    assert main(["my_models:ordered"]) == 0
    printed = capsys.readouterr().out
    fixed = printed.split("Fixed, and why")[1].split("\n\n")[0]
    assert "cumsum: inner.weight[0], inner.bias[0], out.weight[1]" in fixed
    assert "the input: inner.weight[1]" in fixed
    assert "the output: out.weight[0], out.bias[0]" in fixed
    assert "not used by the example: spare.weight[0], spare.weight[1], spare.bias[0]" in fixed
    unused = printed.split("Not used by the example, or not wholly:")[1].split("\n\n")[0]
    assert unused.split() == ["spare.weight", "spare.bias"]
    assert "0 groups" in printed


def test_options(folder, capsys):
    assert main(["my_models:mlp", "--no-verify"]) == 0
    assert "Not verified" in capsys.readouterr().out
    assert main(["my_models:dropout"]) == 0
    assert "1 group;" in capsys.readouterr().out
    assert main(["my_models:dropout", "--training"]) == 0
    printed = capsys.readouterr().out
    assert "0 groups;" in printed
    assert "bernoulli_ in 1: 0.weight[0], 0.bias[0], 2.weight[1]" in printed


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("my_models", "module:function"),
        (":mlp", "module:function"),
        ("no_such_module:mlp", "no module 'no_such_module'"),
        ("my_models:nothing", "no attribute 'nothing'"),
        ("my_models:value", "int; give a function"),
        ("my_models:three", "returned int"),
        ("my_models:no_module", "returned str for module"),
        ("my_models:no_inputs", "returned int for inputs"),
        ("my_models:lazy", "'weight' is lazy"),
        ("my models:mlp", "my models"),
    ],
)
def test_a_factory_that_is_none(folder, capsys, name, complaint):
    assert main([name]) == 2
    captured = capsys.readouterr()
    assert complaint in captured.err
    assert captured.out == ""


def test_an_error_of_the_factory_itself_is_not_hidden(folder):
    with pytest.raises(ModuleNotFoundError, match="there_is_no_such_package"):
        main(["my_models:broken"])


def test_an_operator_that_is_not_understood_is_told():
    class Escape(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.out = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.inner(x)
            return self.out(torch.from_numpy(y.detach().numpy()) + y)

    text = report(analyse(Escape(), torch.randn(2, 3)))
    assert "Not understood:" in text
    assert "numpy" in text.split("Not understood:")[1].split("\n\n")[0]


def test_names_are_folded_by_the_numbers_of_layers():
    names = ["h.0.fc.weight[0]", "h.1.fc.weight[0]", "h.1.fc.weight[1]", "norm2.weight[0]", "norm3.weight[0]"]
    assert folded(names) == ["h.*.fc.weight[0] (2)", "h.1.fc.weight[1]", "norm2.weight[0]", "norm3.weight[0]"]
