"""What the tests of the examples share: configurations, small sets of INRs, damaged shards, and tables read back."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file

from examples.common.shards import read_manifest, shards, write_shard
from examples.make_inrs.__main__ import main as make_inrs
from meta_train.cli import CONFIGS

DAMAGES = ("cut", "flipped", "foreign")


def configured(name, changed) -> DictConfig:
    """The configuration of an example, as its `main` gets it from Hydra, with changes."""
    content: Any = OmegaConf.to_container(OmegaConf.load(CONFIGS / "examples" / f"{name}.yaml"))
    kept = {key: value for key, value in content.items() if key not in ("defaults", "hydra")}
    merged = OmegaConf.merge(OmegaConf.create(kept), changed)
    assert isinstance(merged, DictConfig)
    return merged


def small_inrs(folder: Path, train: int, validation: int, test: int) -> Path:
    """A set of INRs: digits of 8 x 8 pixels, SIRENs with one hidden layer."""
    changed = {"data": "digits", "folder": str(folder), "size": 8, "pixels": 64, "frequency": 4.0, "hidden": [16]}
    changed |= {"train": train, "validation": validation, "test": test, "shard": 400}
    assert make_inrs(configured("make_inrs", changed | {"steps": 100, "lr": 0.02, "workers": 1})) == 0
    return folder


def assert_same(one: Path, other: Path) -> None:
    """The same numbers to the last bit. A file's header may name them in another order."""
    first, second = load_file(one), load_file(other)
    assert first.keys() == second.keys() and all(first[name].equal(second[name]) for name in first)


def damage(path: Path, how: str) -> None:
    """Makes a shard useless in one of the ways of `DAMAGES`."""
    content = bytearray(path.read_bytes())
    if how == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif how == "flipped":
        content[-5] ^= 64
        path.write_bytes(content)
    else:
        config = read_manifest(path.parent) | {"seed": 1}
        shard = next(shard for shard in shards(path.parent, config) if shard.path == path)
        write_shard(shard, config, load_file(path))


def column(text: str, number: int = 2) -> dict[str, float]:
    """A column of the table in Markdown, by the first one; of `0.5 ± 0.1` the mean."""
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| ") and "---" not in line]
    return {row[1].strip(): float(row[number].split("±")[0]) for row in rows[1:]}
