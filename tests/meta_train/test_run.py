"""The command line: what a person types, sees, interrupts and resumes."""

import errno
import io
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from hydra import compose, initialize_config_dir
from matplotlib.figure import Figure

from lopt import InvalidInput, load_rule, read_card
from meta_train.__main__ import train
from meta_train.cli import CONFIGS, check_choices
from meta_train.keep import KeepRun
from meta_train.plots import draw_run
from meta_train.record import read_log
from tests.meta_train.forked import Forked

ROOT = CONFIGS.parent
TINY = ["family=quadratic", "rule=per_parameter", "estimator.pairs=2", "estimator.truncation=3", "estimator.horizon=6"]
TINY += ["validation.horizon=6", "validation.truncation=3", "validation.every=2"]


def run(tmp_path, *overrides):
    out = tmp_path / "run"
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("meta_train", [*TINY, f"out={out}", "name=tiny", *overrides])
    return train(config), out


def theta(path):
    return torch.cat([p.detach().flatten() for p in load_rule(path).parameters()])


def test_a_run_leaves_rule_card_log_plot_and_configuration(tmp_path):
    code, out = run(tmp_path, "steps=4", "estimator=backprop")  # whose two pairs agree on the meta-gradient
    assert code == 0
    assert not torch.equal(theta(out / "initial.safetensors"), theta(out / "rule.safetensors"))
    card = read_card(out / "rule.safetensors")
    assert card["meta_steps"] == 4
    assert card["config"]["family"]["_target_"] == "tasks.Quadratic"
    assert (out / "config.yaml").is_file() and (out / "last.ckpt").is_file()
    rows = read_log(out / "log.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert all(row["meta_loss"] > 0 and row["meta_gradient_norm"] > 0 and row["meta_gradient_snr"] > 0 for row in rows)
    validated = {row["step"]: row["validation"] for row in rows if "validation" in row}
    assert list(validated) == [0, 1, 3]
    assert read_card(out / "best.safetensors")["validation"] == min(validated.values())
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")


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
    weights = saved["particles"][0]["population.0"]
    assert weights.dtype == getattr(torch, dtype)


def test_a_part_of_a_fitted_rule_can_be_fitted(tmp_path):
    """It goes on from the θ of a file; what does not match `fit` stays, bit for bit, also through a resume."""
    _, first = run(tmp_path / "first", "steps=2")
    words = ["rule=fitted", f"rule.source={first / 'rule.safetensors'}", "fit=update"]
    names = [name for name, _ in load_rule(first / "rule.safetensors").named_parameters()]
    chosen = [name for name in names if name.startswith("update")]
    assert chosen and len(chosen) < len(names)
    _, whole = run(tmp_path / "whole", *words, "steps=4")
    _, half = run(tmp_path / "half", *words, "steps=2")
    _, rest = run(tmp_path / "rest", *words, "steps=4", f"ckpt_path={half / 'last.ckpt'}")
    before, after, again = (load_rule(path / "rule.safetensors").state_dict() for path in (first, whole, rest))
    assert [name for name in names if not torch.equal(before[name], after[name])] == chosen
    assert all(torch.equal(after[name], again[name]) for name in names)
    with pytest.raises(InvalidInput, match=r"fit: no meta-parameter matches 'nothing'\. There are: .*update.a"):
        run(tmp_path / "none", "fit=nothing")


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path):
    _, whole = run(tmp_path / "whole", "steps=6")
    _, half = run(tmp_path / "half", "steps=3")
    _, rest = run(tmp_path / "rest", "steps=6", f"ckpt_path={half / 'last.ckpt'}")
    assert torch.equal(theta(whole / "rule.safetensors"), theta(rest / "rule.safetensors"))
    assert not torch.equal(theta(half / "rule.safetensors"), theta(rest / "rule.safetensors"))


def test_ctrl_c_leaves_a_checkpoint_that_resumes(tmp_path):
    out = tmp_path / "run"
    process = Forked(tmp_path, *TINY, f"out={out}", "steps=100000")
    log = out / "log.jsonl"
    deadline = time.monotonic() + 600
    while not (log.exists() and log.read_text()) and process.returncode is None and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=600)
    assert process.returncode == 130, stderr
    assert f"ckpt_path={out}/last.ckpt" in stdout
    done = torch.load(out / "last.ckpt", weights_only=True)["global_step"]
    assert done == read_card(out / "rule.safetensors")["meta_steps"] > 0
    code, resumed = run(tmp_path / "more", f"steps={done + 2}", f"ckpt_path={out / 'last.ckpt'}")
    assert code == 0
    assert read_card(resumed / "rule.safetensors")["meta_steps"] == done + 2


def test_a_killed_run_loses_no_more_than_the_interval(tmp_path):
    """kill -9 at any moment: what was saved is whole, and from it the run comes to the same θ, bit for bit."""
    out = tmp_path / "run"
    words = ["name=tiny", "steps=100000", "checkpoint_minutes=1e-9"]  # at every step
    process = Forked(tmp_path, *TINY, f"out={out}", *words)
    deadline = time.monotonic() + 600
    log = out / "log.jsonl"
    while not (log.exists() and log.read_text().count("\n") > 5) and process.returncode is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=600)
    done = torch.load(out / "last.ckpt", weights_only=True)["global_step"]
    assert done >= 5
    _, again = run(tmp_path, f"steps={done + 3}", "ckpt_path=auto")
    _, whole = run(tmp_path / "whole", f"steps={done + 3}")
    assert again == out
    assert torch.equal(theta(whole / "rule.safetensors"), theta(again / "rule.safetensors"))
    assert [row["step"] for row in read_log(log)] == list(range(done + 3))
    assert read_log(log) == read_log(whole / "log.jsonl")
    assert read_card(out / "best.safetensors")["validation"] == read_card(whole / "best.safetensors")["validation"]


def test_what_a_checkpoint_follows_is_in_the_log_before_it(tmp_path, monkeypatch):
    """A kill between the two would leave a gap: a resumed run does not come to these steps again."""
    logged = []

    def note(path, content):
        logged.append(([row["step"] for row in read_log(path.parent / "log.jsonl")], torch.load(io.BytesIO(content))))

    monkeypatch.setattr("meta_train.keep.write_atomically", note)
    run(tmp_path, "steps=3", "checkpoint_minutes=1e-9", "validation.every=100")
    assert [(steps, saved["global_step"]) for steps, saved in logged] == [
        ([0], 1), ([0, 1], 2), ([0, 1, 2], 3), ([0, 1, 2], 3)
    ]  # fmt: skip


def test_a_full_disk_is_said_in_words_and_damages_nothing(tmp_path, monkeypatch, capsys):
    _, out = run(tmp_path, "steps=2")
    before = (out / "last.ckpt").read_bytes()
    rule_before = (out / "rule.safetensors").read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        code, _ = run(tmp_path, "steps=4", "ckpt_path=auto", "checkpoint_minutes=1e-9")
    assert code == 1
    said = capsys.readouterr().err
    assert "last.ckpt' could not be written: No space left on device; the one before is as it was" in said
    assert "curves.png' could not be written: No space left on device" in said
    assert "error: the checkpoint" in said and "Make room, and resume with ckpt_path=" in said
    assert (out / "last.ckpt").read_bytes() == before
    assert (out / "rule.safetensors").read_bytes() != rule_before  # which does not go through fsync here
    assert not [path.name for path in out.iterdir() if "partial" in path.name]
    code, _ = run(tmp_path, "steps=4", "ckpt_path=auto")
    assert code == 0


def test_a_folder_that_vanishes_is_made_again(tmp_path, monkeypatch):
    out = tmp_path / "run"
    original = KeepRun.on_train_batch_end

    def vanish(self, trainer, *args):
        if trainer.global_step == 2:
            shutil.rmtree(out)
        original(self, trainer, *args)

    monkeypatch.setattr(KeepRun, "on_train_batch_end", vanish)
    code, _ = run(tmp_path, "steps=4", "checkpoint_minutes=1e-9")
    assert code == 0 and (out / "last.ckpt").is_file() and (out / "rule.safetensors").is_file()


@pytest.mark.parametrize("estimator", ["es_single", "truncated_es", "full_es", "backprop"])
@pytest.mark.parametrize("objective", ["final", "validation"])
def test_every_estimator_and_objective_runs_and_resumes_by_name(tmp_path, estimator, objective):
    words = [f"estimator={estimator}", f"objective={objective}", "+horizon=log_uniform"]
    words += ["estimator.horizon.low=3", "estimator.horizon.high=9", "validation=null"]
    overrides = [word for word in TINY if not word.startswith(("estimator.horizon", "validation"))]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        configs = [
            compose("meta_train", [*overrides, *words, f"out={tmp_path / name}", "name=tiny", *more])
            for name, more in (
                ("whole", ["steps=4"]),
                ("half", ["steps=2"]),
                ("rest", ["steps=4", f"ckpt_path={tmp_path / 'half' / 'last.ckpt'}"]),
            )
        ]
    assert [train(config) for config in configs] == [0, 0, 0]
    whole, half, rest = (theta(tmp_path / name / "rule.safetensors") for name in ("whole", "half", "rest"))
    assert torch.equal(whole, rest) and not torch.equal(half, rest)


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


def test_the_best_so_far_is_forgotten_where_the_validation_changes(tmp_path):
    """Losses on other tasks cannot be compared; those on the same, at other times, can."""
    kept = {}
    for name, change in (("same", "validation.every=3"), ("other", "validation.horizon=4")):
        _, out = run(tmp_path / name, "steps=2")
        saved = torch.load(out / "last.ckpt", weights_only=True)
        saved["best"] = -1.0  # which nothing is below
        torch.save(saved, out / "last.ckpt")
        run(tmp_path / name, "steps=4", change, "ckpt_path=auto")
        kept[name] = torch.load(out / "last.ckpt", weights_only=True)["best"]
    assert kept["same"] == -1.0
    assert kept["other"] > 0


def test_raw_losses_are_validated_and_drawn_as_they_are(tmp_path, monkeypatch):
    """Adam measures them nowhere: not in meta-training, not on held-out tasks, not on the labels of the plot."""
    monkeypatch.setattr("meta_train.reference.AdamReference.curves", None)
    _, out = run(tmp_path, "steps=2", "objective=raw_mean")
    rows = read_log(out / "log.jsonl")
    assert all("validation" in row and "validation_adam" not in row and "adam" not in row for row in rows)
    assert "validation_adam" not in read_card(out / "best.safetensors")


@pytest.mark.parametrize("measured", [{"adam"}, {"validation_adam"}, set()])
def test_each_panel_is_labelled_by_its_own_scale(tmp_path, monkeypatch, measured):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kwargs: figures.append(self))
    draw_run([{"step": 0, "meta_loss": 1.0, "validation": 1.0, **dict.fromkeys(measured, 0.5)}], tmp_path / "a.png")
    labels = [axis.get_ylabel() for axis in figures[0].axes[:2]]
    on_adams = [name in measured for name in ("adam", "validation_adam")]
    assert ["Adam" in label for label in labels] == on_adams


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
    """As it is typed; the other tests of the command run it in a fork, without its imports."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "meta_train", "rule=functionl", f"out={tmp_path}"]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 2
    assert done.stderr.strip() == (
        "error: unknown rule 'functionl'; did you mean 'functional'? "
        "Known: adam, fitted, functional, neuron, per_parameter, sgdm"
    )


def test_constructor_errors_are_printed_without_a_traceback(tmp_path):
    process = Forked(tmp_path / "printed", "estimator.horizon=20", f"out={tmp_path / 'run'}")
    _, stderr = process.communicate(timeout=600)
    assert process.returncode == 2
    assert stderr.startswith("error: estimator.horizon: 20") and "Traceback" not in stderr
    assert list((tmp_path / "run").iterdir()) == []
