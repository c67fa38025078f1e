"""How a run begins: what is refused before any work, and that a refusal leaves every file as it was."""

import pytest
import torch
from hydra import compose, initialize_config_dir

from lopt import InvalidInput, read_card
from meta_train.__main__ import train
from meta_train.cli import CONFIGS
from meta_train.record import read_log
from tests.meta_train.forked import Forked

TINY = ["family=quadratic", "rule=per_parameter", "estimator.pairs=2", "estimator.truncation=3", "estimator.horizon=6"]
TINY += ["validation=null", "name=tiny"]
COSINE = ["scheduler={_target_:torch.optim.lr_scheduler.CosineAnnealingLR,_partial_:true,T_max:${steps}}"]


def run(out, *overrides):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("meta_train", [*TINY, f"out={out}", *overrides])
    return train(config)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run of two steps; do not write into its folder."""
    out = tmp_path_factory.mktemp("begun") / "run"
    assert run(out, "steps=2", "fit=weight|bias", *COSINE) == 0
    return out


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optimizer.lr=1e-9", r"optimizer\.lr was 0\.003 and is 1e-09"),
        ("+optimizer.eps=1e-3", r"optimizer\.eps was not set and is 0\.001"),
        ("estimator=es_single", r"estimator\._target_ was meta_train\.PES and is meta_train\.ESSingle"),
        ("estimator.truncation=2", r"estimator\.truncation was 3 and is 2"),
        ("estimator.horizon=9", r"estimator\.horizon was 6 and is 9"),
        ("objective=final", r"estimator\.objective\._target_ was meta_train\.MeanLoss and is meta_train\.FinalLoss"),
        ("fit=weight", r"fit was weight\|bias and is weight"),
        ("family.dimensions=3", r"family\.dimensions was \d+ and is 3"),
        ("seed=1", r"seed was 0 and is 1"),
        ("+trainer.precision=bf16-mixed", r"trainer\.precision was not set and is bf16-mixed"),
        ("steps=9", r"scheduler\.T_max was 2 and is 9"),  # its θ would not be that of a run of 9 steps
    ],
)
def test_a_run_that_was_begun_with_other_settings_does_not_go_on(begun, override, said):
    before = files(begun)
    with pytest.raises(InvalidInput, match=f"another rule, family, estimator or seed.*: {said}.*rule=fitted"):
        run(begun, "steps=2", "fit=weight|bias", *COSINE, override, "ckpt_path=auto")
    assert files(begun) == before  # config.yaml among them


def test_what_theta_does_not_depend_on_may_change(tmp_path):
    assert run(tmp_path / "a", "steps=2") == 0
    others = ["threads=1", "checkpoint_minutes=1", "name=other", "trainer.strategy=auto", f"out={tmp_path / 'b'}"]
    assert run(tmp_path / "b", "steps=3", *others, f"ckpt_path={tmp_path / 'a' / 'last.ckpt'}") == 0
    assert read_card(tmp_path / "b" / "rule.safetensors")["meta_steps"] == 3
    assert "name: other" in (tmp_path / "b" / "config.yaml").read_text()


def test_a_checkpoint_of_an_earlier_version_still_loads(tmp_path):
    """It holds no settings; what does not fit its particles is an error of ours all the same."""
    out = tmp_path / "run"
    assert run(out, "steps=2", "fit=weight|bias") == 0
    saved = torch.load(out / "last.ckpt", weights_only=True)
    assert saved.pop("settings")["estimator.pairs"] == 2
    torch.save(saved, out / "last.ckpt")
    before = files(out)
    with pytest.raises(InvalidInput, match="another rule, family, estimator or seed: perturbation.*bias is of it"):
        run(out, "steps=3", "fit=weight", "ckpt_path=auto")
    assert files(out) == before
    assert run(out, "steps=3", "fit=weight|bias", "ckpt_path=auto") == 0
    assert "settings" in torch.load(out / "last.ckpt", weights_only=True)


def test_a_folder_that_holds_a_run_is_written_over_only_when_told(tmp_path):
    out = tmp_path / "run"
    assert run(out, "steps=4") == 0
    before = files(out)
    with pytest.raises(InvalidInput, match="holds a run already .*last.ckpt.*ckpt_path=auto.*overwrite=true.*name="):
        run(out, "steps=2")
    run(tmp_path / "other", "steps=1")
    with pytest.raises(InvalidInput, match="holds a run already"):
        run(out, "steps=2", f"ckpt_path={tmp_path / 'other' / 'last.ckpt'}")
    assert files(out) == before
    (out / "best.safetensors").write_bytes(b"of the run before")
    assert run(out, "steps=2", "seed=1", "overwrite=true") == 0
    assert "best.safetensors" not in files(out)  # this run has no validation
    assert [row["step"] for row in read_log(out / "log.jsonl")] == [0, 1]
    assert torch.load(out / "last.ckpt", weights_only=True)["global_step"] == 2


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_anew_by_auto(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 0, "meta_loss": 1.0}\n')
    (tmp_path / "best.safetensors").write_bytes(b"of the run before")
    assert run(tmp_path, "steps=1", "ckpt_path=auto") == 0
    assert "best.safetensors" not in files(tmp_path) and len(read_log(tmp_path / "log.jsonl")) == 1


@pytest.mark.parametrize(
    "launcher",
    [
        {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"},
        {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
    ],
)
def test_processes_that_would_not_know_of_each_other_are_refused(tmp_path, monkeypatch, launcher):
    for name, value in launcher.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InvalidInput, match=r"trainer.devices: 1 with trainer.num_nodes=1, .*started 2 processes"):
        run(tmp_path / "run", "steps=1")
    assert files(tmp_path / "run") == {}


def test_a_foreign_file_is_no_checkpoint(tmp_path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "model.pt")
    (tmp_path / "text.ckpt").write_text("not a checkpoint")
    for name, said in (("model.pt", "no checkpoint of a run. Give the last.ckpt"), ("text.ckpt", "cannot be read")):
        with pytest.raises(InvalidInput, match=f"ckpt_path: .*{name}.*{said}"):
            run(tmp_path / "run", f"ckpt_path={tmp_path / name}")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("fit='['", r"fit: '\[' is no regular expression"),
        ("fit=3", "fit: 3 is no regular expression"),
        ("seed=-1", "seed: -1; give a whole number of at least 0"),
        ("seed=1.5", "seed: 1.5; give a whole number"),
        ("seed=4294967296", "seed: 4294967296; .* at most 4294967295"),
        ("steps=abc", "steps: 'abc'; give a whole number"),
        ("steps=4.5", "steps: 4.5; give a whole number"),
        ("clip=abc", "clip: 'abc'; give a number above 0"),
        ("threads=0", "threads: 0; give a whole number"),
        ("checkpoint_minutes=abc", "checkpoint_minutes: 'abc'; give a number above 0"),
        ("optimizer.lr=-1", "optimizer: Invalid learning rate: -1"),
        ("+optimizer.foo=1", "optimizer: .*unexpected keyword argument 'foo'"),
        ("scheduler={_target_:torch.optim.lr_scheduler.CosineAnnealingLR,_partial_:true}", "scheduler: .*T_max"),
        ("+rule.foo=1", "rule: PerParameter got an unexpected keyword argument 'foo'"),
        ("dtype=bfloat16", "dtype: 'bfloat16'; give float32 or float64"),
        ("+nonsense=3", "unknown key 'nonsense'.* Known: .*checkpoint_minutes"),
        ("+trainer.foo=1", "trainer: Trainer got an unexpected keyword argument 'foo'"),
        ("+trainer.max_steps=3", "trainer.max_steps: the command sets it itself"),
        ("+trainer.gradient_clip_val=1.0", "trainer: "),
        ("trainer.devices=0", "trainer: "),
        ("out=/proc/nope", "out: '/proc/nope' cannot be made"),
    ],
)
def test_what_is_mistyped_is_said_in_words(tmp_path, override, said):
    with pytest.raises(InvalidInput, match=said):
        run(tmp_path / "run", override)
    assert not (tmp_path / "run").exists() or files(tmp_path / "run") == {}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("estimator.truncation=2.5", "error: estimator.truncation: 2.5; give a whole number of at least 1"),
        ("+estimator.foo=1", "error: Evolution.__init__() got an unexpected keyword argument 'foo'"),
        ("out=/proc/nope", "error: out: '/proc/nope' cannot be made: No such file or directory. Give another folder"),
        ("out=null", "error: While dereferencing interpolation '${out}': Incompatible value 'None'"),
        (
            "rule._target_=lopt.rules.Neurn",
            "error: unknown rule._target_ 'lopt.rules.Neurn'; did you mean 'lopt.rules.Ne",
        ),
        (
            "rule._target_=lopd.rules.Neuron",
            "error: rule._target_: 'lopd.rules.Neuron' cannot be found, or not be imported: ",
        ),
        (
            "objective=raw_mean ++estimator.reference={tasks:1}",
            "error: estimator.reference: {'tasks': 1} names no class",
        ),
    ],
)
def test_what_is_refused_before_the_job_is_printed_without_a_traceback(tmp_path, words, said):
    process = Forked(
        tmp_path / "printed", *TINY, *([] if "out=" in words else [f"out={tmp_path / 'run'}"]), *words.split()
    )
    _, stderr = process.communicate(timeout=600)
    assert process.returncode == 2
    assert stderr.startswith(said) and "Traceback" not in stderr


def test_the_trainer_is_told_what_a_person_asks(tmp_path, capsys):
    assert run(tmp_path, "steps=100000", "+trainer.max_time=00:00:00:00") == 0
    done = read_card(tmp_path / "rule.safetensors")["meta_steps"]
    assert done < 100000
    assert f"stopped at meta-step {done} of 100000; resume with ckpt_path=" in capsys.readouterr().out
