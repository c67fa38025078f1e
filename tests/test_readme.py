"""The README's snippets run as they are printed, one after the other, and its commands exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from meta_train.cli import CONFIGS, check_choices

ROOT = CONFIGS.parent
README = (ROOT / "README.md").read_text()
COMMANDS = [line.split() for block in re.findall(r"```sh\n(.*?)```", README, re.S) for line in block.splitlines()]


def test_the_snippets_run_in_the_order_of_the_page(tmp_path):
    snippets = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(snippets) == 4  # swap in, trace, meta-train, race
    program = tmp_path / "readme.py"
    program.write_text("\n".join(snippets))
    done = subprocess.run(
        [sys.executable, program],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^Adam [\d.]+$", done.stdout, re.M) and re.search(r"^mine [\d.]+$", done.stdout, re.M)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_commands_name_what_exists(command):
    match command[:3]:
        case ["make", target, *_]:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M)
        case ["python", "-m", module] if "." in module:
            done = subprocess.run([sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            assert all(option in done.stdout for option in command[3:] if option.startswith("--"))
        case ["python", "-m", module]:
            assert (ROOT / module / "__main__.py").is_file()
            check_choices(command[3:])
        case _:
            raise AssertionError(f"unexpected command: {command}")


def test_local_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links
    assert [link for link in links if not Path(ROOT, link).exists()] == []
