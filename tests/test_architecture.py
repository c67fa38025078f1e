"""Who may import whom (section 3 of the design), the form of a module, and that this checker finds what is wrong."""

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("lopt", "tasks", "meta_train", "benchmark", "examples")
OWN = {*PACKAGES, "configs", "tests"}
MAX_LINES = 400

# What a package may import besides itself: own packages or single modules of them.
IMPORTS = {
    "lopt": set(),
    "tasks": {"lopt"},
    "meta_train": {"lopt", "tasks"},
    "benchmark": {"lopt", "tasks", "meta_train.unroll", "meta_train.cli"},
    "examples": {"lopt", "tasks", "meta_train.cli", "meta_train.memory"},
}
# What a single module may import beyond that: this one measures meta-training itself.
MORE = {"benchmark/meta_train_worker.py": {"meta_train"}}
# lopt alone is shipped: nothing else may be imported at all, or, for the extras, by name when it is needed.
SHIPPED = {"torch", "numpy", "safetensors", *sys.stdlib_module_names}
OPTIONAL = {"huggingface_hub", "triton"}


def sources() -> dict[str, str]:
    """Every module of the packages, by its path from the root."""
    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]
    return {file.relative_to(ROOT).as_posix(): file.read_text(encoding="utf-8") for file in sorted(files)}


def violations(files: Mapping[str, str]) -> list[str]:
    """What breaks the rules, one line each."""
    found = []
    for path, source in files.items():
        tree, package = ast.parse(source, path), path.split("/")[0]
        found += [f"{path}: {problem}" for problem in _form(path, source, tree)]
        for node, inside in _nodes(tree):
            for module in _imported(node, path):
                if problem := _forbidden(IMPORTS[package] | {package} | MORE.get(path, set()), package, module, inside):
                    found.append(f"{path}:{getattr(node, 'lineno', 0)}: {problem}")
    return found


def _form(path: str, source: str, tree: ast.Module) -> Iterator[str]:
    if (lines := len(source.splitlines())) > MAX_LINES:
        yield f"{lines} lines, over {MAX_LINES}; one concept a file"
    if any(isinstance(n, ast.ImportFrom) and any(a.name == "*" for a in n.names) for n in ast.walk(tree)):
        yield "import *"
    targets = [t for node in tree.body if isinstance(node, ast.Assign) for t in node.targets]
    names = {t.id for t in targets if isinstance(t, ast.Name)}
    statements = [n for n in tree.body if not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))]
    if path.endswith("__init__.py") and statements and "__all__" not in names:
        yield "no explicit __all__"


def _nodes(tree: ast.AST, inside: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """Every node, and whether it stands in a function."""
    for node in ast.iter_child_nodes(tree):
        yield node, inside
        yield from _nodes(node, inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))


def _imported(node: ast.AST, path: str) -> Iterator[str]:
    """The modules that a node imports; for `from a import b`, both a and a.b, since b may be a module."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        folder = path.split("/")[:-1]
        base = folder[: len(folder) - node.level + 1] if node.level else []
        parent = ".".join([*base, *([node.module] if node.module else [])])
        yield from (f"{parent}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Call):
        function = node.func
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        if name in ("import_module", "__import__"):
            argument = node.args[0] if node.args else None
            yield f"?{argument.value if isinstance(argument, ast.Constant) else 'computed'}"


def _forbidden(allowed: set[str], package: str, module: str, inside: bool) -> str | None:
    """Why `package` may not import `module`; a module that is looked up by name begins with ?.

    Args:
        allowed: own packages and modules.
    """
    name = module.removeprefix("?")
    top = name.split(".")[0]
    if top not in OWN:
        others = SHIPPED | OPTIONAL if module.startswith("?") else SHIPPED
        return f"lopt imports {name}" if package == "lopt" and top not in others else None
    if inside and not module.startswith("?"):
        return f"imports {name} inside a function"
    return None if any(f"{name}.".startswith(f"{one}.") for one in allowed) else f"{package} imports {name}"


def test_the_packages_are_there():
    assert {path.split("/")[0] for path in sources()} == set(PACKAGES)


def test_the_architecture_holds():
    assert violations(sources()) == []


@pytest.mark.parametrize(
    ("path", "source", "complaint"),
    [
        ("lopt/a.py", "import tasks", "lopt imports tasks"),
        ("lopt/a.py", "from meta_train.unroll import unroll", "lopt imports meta_train.unroll.unroll"),
        ("lopt/a.py", "import lightning.pytorch as pl", "lopt imports lightning.pytorch"),
        ("lopt/a.py", "def f():\n    from scipy import stats", "lopt imports scipy.stats"),
        ("lopt/a.py", "if True:\n    import matplotlib", "lopt imports matplotlib"),
        ("lopt/a.py", "from importlib import import_module\nimport_module('hydra')", "lopt imports hydra"),
        ("lopt/a.py", "import importlib\nimportlib.import_module('tasks.data')", "lopt imports tasks.data"),
        ("lopt/a.py", "__import__(name)", "lopt imports computed"),
        ("lopt/sub/a.py", "from ... import tasks", "lopt imports .tasks"),
        ("tasks/a.py", "from meta_train import unroll", "tasks imports meta_train.unroll"),
        ("meta_train/a.py", "import benchmark.race", "meta_train imports benchmark.race"),
        ("meta_train/a.py", "import tests", "meta_train imports tests"),
        ("benchmark/a.py", "import meta_train", "benchmark imports meta_train"),
        ("benchmark/a.py", "from meta_train import module", "benchmark imports meta_train.module"),
        ("benchmark/a.py", "from meta_train.estimators import PES", "benchmark imports meta_train.estimators.PES"),
        ("tasks/a.py", "def f():\n    import lopt", "imports lopt inside a function"),
        ("tasks/a.py", "class A:\n    def f(self):\n        from lopt import rules", "inside a function"),
        ("tasks/a.py", "from torch import *", "import *"),
        ("tasks/a.py", "x = 1\n" * (MAX_LINES + 1), f"over {MAX_LINES}"),
        ("tasks/sub/__init__.py", '"""Doc."""\nfrom tasks.data import load', "no explicit __all__"),
    ],
)
def test_a_planted_violation_is_found(path, source, complaint):
    (found,) = violations({path: source})
    assert found.startswith(path)
    assert complaint in found


@pytest.mark.parametrize(
    ("path", "source"),
    [
        (
            "lopt/a.py",
            "import math, torch\nfrom numpy import array\nfrom safetensors.torch import save\nimport lopt.rules",
        ),
        ("lopt/a.py", "from importlib import import_module\ndef f():\n    return import_module('huggingface_hub')"),
        ("lopt/sub/a.py", "from . import b\nfrom ..rules import Adam"),
        ("tasks/a.py", "import sklearn, lopt\nfrom tasks import data\ndef f():\n    import datasets"),
        ("meta_train/a.py", "from tasks.task import Task\nfrom lopt import rules\nimport lightning"),
        ("benchmark/a.py", "from meta_train.unroll import unroll\nfrom meta_train import cli\nfrom tasks import Task"),
        ("benchmark/meta_train_worker.py", "from meta_train.estimators import PES"),
        ("tasks/__init__.py", '"""Only words."""'),
        ("tasks/__init__.py", ""),
        ("tasks/__init__.py", "from tasks.data import load\n__all__ = ['load']"),
    ],
)
def test_what_is_allowed_passes(path, source):
    assert violations({path: source}) == []
