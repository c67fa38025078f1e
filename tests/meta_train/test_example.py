"""The example of a task family of one's own: copied to where it was never installed, it meta-trains."""

import os
import shutil
import subprocess
import sys

from lopt import load_rule, read_card
from meta_train.cli import CONFIGS

EXAMPLE = CONFIGS.parent / "examples" / "my_task_family"


def test_a_family_in_a_package_of_its_own(tmp_path):
    source = (EXAMPLE / "my_tasks" / "spirals.py").read_text()
    assert len(source.splitlines()) < 60
    folder = tmp_path / "elsewhere"
    shutil.copytree(EXAMPLE, folder)
    words = ["--config-dir", "configs", "family=spirals", "rule=per_parameter", "steps=3", "name=spirals"]
    words += ["estimator.pairs=2", "estimator.truncation=3", "estimator.horizon=6", "validation=null"]
    done = subprocess.run(
        [sys.executable, "-m", "meta_train", *words],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(CONFIGS.parent)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    out = folder / "runs" / "spirals"
    assert read_card(out / "rule.safetensors")["config"]["family"]["_target_"] == "my_tasks.Spirals"
    assert load_rule(out / "rule.safetensors") is not None
