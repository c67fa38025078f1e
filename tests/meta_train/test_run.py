"""The command line: what a person types, sees, interrupts and resumes."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from lopt import InvalidInput, load_rule, read_card
from meta_train.__main__ import train
from meta_train.cli import CONFIGS, check_choices

ROOT = CONFIGS.parent
TINY = ["family=quadratic", "rule=per_parameter", "estimator.pairs=2", "estimator.truncation=3", "estimator.horizon=6"]


def run(tmp_path, *overrides):
    out = tmp_path / "run"
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("meta_train", [*TINY, f"out={out}", "name=tiny", *overrides])
    return train(config), out


def theta(path):
    return torch.cat([p.detach().flatten() for p in load_rule(path).parameters()])


def command(*overrides, **kwargs):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "meta_train", *overrides]
    return subprocess.Popen(
        words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kwargs
    )


def test_a_run_leaves_rule_card_log_and_configuration(tmp_path):
    code, out = run(tmp_path, "steps=4")
    assert code == 0
    assert not torch.equal(theta(out / "initial.safetensors"), theta(out / "rule.safetensors"))
    card = read_card(out / "rule.safetensors")
    assert card["meta_steps"] == 4
    assert card["config"]["family"]["_target_"] == "tasks.Quadratic"
    assert (out / "config.yaml").is_file() and (out / "last.ckpt").is_file()
    with (out / "log" / "version_0" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["0", "1", "2", "3"]
    assert all(float(row["meta_loss"]) > 0 and float(row["meta_gradient_norm"]) > 0 for row in rows)


def test_equal_seeds_give_equal_rules_and_others_do_not(tmp_path):
    finals = [
        theta(run(tmp_path / str(i), "steps=3", f"seed={s}")[1] / "rule.safetensors") for i, s in enumerate("001")
    ]
    assert torch.equal(finals[0], finals[1])
    assert not torch.equal(finals[0], finals[2])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_dtype_given_once_reaches_everything(tmp_path, dtype):
    _, out = run(tmp_path, "steps=1", f"dtype={dtype}")
    assert theta(out / "rule.safetensors").dtype == getattr(torch, dtype)
    saved = torch.load(out / "last.ckpt", weights_only=True)
    weights = saved["particles"][0]
    assert weights.dtype == getattr(torch, dtype)


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path):
    _, whole = run(tmp_path / "whole", "steps=6")
    _, half = run(tmp_path / "half", "steps=3")
    _, rest = run(tmp_path / "rest", "steps=6", f"ckpt_path={half / 'last.ckpt'}")
    assert torch.equal(theta(whole / "rule.safetensors"), theta(rest / "rule.safetensors"))
    assert not torch.equal(theta(half / "rule.safetensors"), theta(rest / "rule.safetensors"))


def test_ctrl_c_leaves_a_checkpoint_that_resumes(tmp_path):
    out = tmp_path / "run"
    process = command(*TINY, f"out={out}", "steps=100000")
    log = out / "log" / "version_0" / "metrics.csv"
    deadline = time.monotonic() + 60
    while not log.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert f"ckpt_path={out}/last.ckpt" in stdout
    done = torch.load(out / "last.ckpt", weights_only=True)["global_step"]
    assert done == read_card(out / "rule.safetensors")["meta_steps"] > 0
    code, resumed = run(tmp_path / "more", f"steps={done + 2}", f"ckpt_path={out / 'last.ckpt'}")
    assert code == 0
    assert read_card(resumed / "rule.safetensors")["meta_steps"] == done + 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["steps=0"], "steps: 0"),
        (["ckpt_path=nowhere.ckpt"], "there is no file 'nowhere.ckpt'"),
        (["dtype=float31"], "dtype: 'float31'"),
        (["device=cuda:99"], "device: 'cuda:99' cannot be used"),
        (["clip=0"], "clip: 0"),
        (["checkpoint_minutes=0"], "checkpoint_minutes: 0"),
    ],
)
def test_bad_settings_are_named_before_any_work(tmp_path, overrides, message):
    with pytest.raises(InvalidInput, match=message):
        run(tmp_path, *overrides)
    assert not (tmp_path / "run" / "last.ckpt").exists()


def test_a_damaged_or_foreign_checkpoint_is_refused(tmp_path):
    _, out = run(tmp_path / "a", "steps=1")
    with pytest.raises(InvalidInput, match="another rule, family, estimator or seed"):
        run(tmp_path / "b", "steps=2", "estimator.pairs=3", f"ckpt_path={out / 'last.ckpt'}")
    damaged = tmp_path / "damaged.ckpt"
    damaged.write_bytes((out / "last.ckpt").read_bytes()[:1000])
    with pytest.raises(InvalidInput, match="damaged.ckpt.*cannot be read"):
        run(tmp_path / "c", "steps=2", f"ckpt_path={damaged}")


@pytest.mark.parametrize("override", ["rule=functionl", "family=image_mpl", "estimator=psе"])
def test_unknown_names_come_with_near_matches(override):
    with pytest.raises(InvalidInput, match="unknown (rule|family|estimator).*Known: "):
        check_choices([override])
    check_choices(["rule=functional", "steps=3", "+family=image_mlp"])


def test_errors_are_printed_without_a_traceback(tmp_path):
    process = command("rule=functionl", f"out={tmp_path}")
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 2
    assert stderr.strip() == (
        "error: unknown rule 'functionl'; did you mean 'functional'? "
        "Known: adam, functional, neuron, per_parameter, sgdm"
    )


def test_constructor_errors_are_printed_without_a_traceback(tmp_path):
    process = command("estimator.horizon=20", f"out={tmp_path}")
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 2
    assert stderr.startswith("error: estimator.horizon: 20") and "Traceback" not in stderr
    assert list(Path(tmp_path).iterdir()) == []
