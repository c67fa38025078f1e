"""What a user gets: an import without the extras, and a wheel that holds lopt alone."""

import json
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
NOT_IMPORTED = ["lightning", "hydra", "datasets", "sklearn", "matplotlib", "huggingface_hub", "rich", "nfn"]
NOT_SHIPPED = ["tasks", "meta_train", "benchmark", "configs", "examples", "tests"]


def loaded_by(code: str) -> set[str]:
    """The top-level modules that are loaded after running `code` in a fresh interpreter."""
    script = f"{code}\nimport json, sys\nprint(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_lopt_loads_none_of_the_extras():
    loaded = loaded_by("import lopt")
    assert {"lopt", "torch", "safetensors"} <= loaded
    assert loaded.isdisjoint(NOT_IMPORTED + NOT_SHIPPED)


def test_lopt_works_without_the_extras():
    code = f"""
import sys
sys.modules.update(dict.fromkeys({NOT_IMPORTED!r}))
import torch, lopt
model = torch.nn.Linear(3, 2)
optimizer = lopt.LearnedOptimizer(model.parameters(), rule=lopt.rules.PerParameter())
model(torch.ones(1, 3)).sum().backward()
optimizer.step()
"""
    assert "lopt" in loaded_by(code)


def settings() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_wheel_is_told_to_hold_lopt_alone():
    wheel = settings()["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["packages"] == ["lopt"]
    assert not {"include", "force-include", "exclude"} & set(wheel)
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
    assert not [line for line in ignored if "safetensors" in line or "pretrained" in line]  # hatch leaves these out


def test_the_core_needs_three_packages():
    project = settings()["project"]
    names = {requirement.split(">")[0] for requirement in project["dependencies"]}
    assert names == {"torch", "numpy", "safetensors"}
    assert set(project["optional-dependencies"]) == {"train", "hub", "dev"}


def test_the_wheel_holds_lopt_alone(tmp_path):
    script = f"import hatchling.build, sys; print(hatchling.build.build_wheel({str(tmp_path)!r}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    shipped = {name for name in names if ".dist-info/" not in name}
    wanted = [
        f for f in (ROOT / "lopt").rglob("*") if f.is_file() and f.suffix in (".py", ".safetensors", ".cpp", ".h")
    ]
    assert shipped >= {f.relative_to(ROOT).as_posix() for f in wanted}
    assert {name.split("/")[0] for name in shipped} == {"lopt"}
