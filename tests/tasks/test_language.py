"""Texts: where they come from, how they are split, and what a language model is given of them."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest
import torch

from lopt.errors import InvalidInput
from tasks import RecurrentLanguageModel, TransformerLanguageModel, load_texts
from tasks.data import SPLITS
from tasks.language import next_token

TEXT = "".join(chr(ord("a") + (i * i + i // 7) % 26) for i in range(2000))


@pytest.fixture(autouse=True)
def _no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOPT_DATA", raising=False)


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    (tmp_path / "one.txt").write_text(TEXT, encoding="utf-8")
    (tmp_path / "two.txt").write_text(TEXT[::-1].upper() + "é" * 100, encoding="utf-8")
    return [str(tmp_path / "one.txt"), str(tmp_path / "two.txt")]


def small(data, **arguments) -> TransformerLanguageModel:
    return TransformerLanguageModel(data, blocks=1, width=8, heads=2, **arguments)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_text_is_split_by_position_and_nothing_is_lost(files: list[str]) -> None:
    data = load_texts(files[:1])
    parts = data.tokens[files[0]]
    assert [len(parts[split]) for split in SPLITS] == [1800, 100, 100]
    assert "".join(data.vocabulary[i] for split in SPLITS for i in parts[split]) == TEXT
    assert list(data.vocabulary) == sorted(set(TEXT))


def test_the_bundled_text_is_english() -> None:
    data = load_texts(["descriptions"])
    train = "".join(data.vocabulary[i] for i in data.tokens["descriptions"]["train"])
    assert len(train) > 35_000 and train.count(" the ") > 100 and train.isascii()


def test_targets_are_what_comes_next(files: list[str]) -> None:
    task = small(files[0], length=6, batch_size=500).tasks[0]
    parts = load_texts(files[:1])
    for split in SPLITS:
        whole = "".join(parts.vocabulary[i] for i in parts.tokens[files[0]][split])
        inputs, targets = task.batch(split, seeded(0))
        assert inputs.shape == targets.shape == (500, 6)
        for x, y in zip(inputs, targets, strict=True):
            assert "".join(parts.vocabulary[i] for i in (*x, y[-1])) in whole
            assert torch.equal(x[1:], y[:-1])


def test_training_stretches_begin_anywhere(files: list[str]) -> None:
    task = small(files[0], length=6, batch_size=40_000).tasks[0]
    assert sorted(task.draw("test", seeded(0)).unique().tolist()) == list(range(100 - 6))


def test_evaluation_stretches_do_not_overlap_and_are_spread(files: list[str]) -> None:
    task = small(files[0], length=6, evaluation_size=5).tasks[0]
    for split in SPLITS:
        rows = task.evaluation[split]
        assert len(rows) == 5 and rows.step == len(task.rows[split]) // 5
        assert torch.equal(task.evaluation_batch(split)[0], task.inputs[split][list(rows)])
    everything = small(files[0], length=6, evaluation_size=10**6).tasks[0].evaluation["test"]
    assert everything.step == 6 and len(everything) == 16


def test_two_texts_are_one_population_over_one_vocabulary(files: list[str]) -> None:
    family = small(files, length=6, batch_size=200)
    one, two = family.tasks
    assert one.population == two.population and one.weight_space == two.weight_space
    vocabulary = load_texts(files).vocabulary
    lower, upper = (one.gather("train", task.draw("train", seeded(0)))[0] for task in (one, two))
    assert all(vocabulary[i].islower() and vocabulary[i] != "é" for i in lower.flatten())
    assert all(vocabulary[i].isupper() or vocabulary[i] == "é" for i in upper.flatten())
    # None of the stretches runs from one text into the other.
    for split in SPLITS:
        last = one.gather(split, torch.tensor([one.rows[split][-1]]))
        assert all(vocabulary[i].islower() for part in last for i in part.flatten())
    assert {family.sample(seeded(k)).name for k in range(20)} == {one.name, two.name}


def test_the_loss_is_the_mean_over_all_characters() -> None:
    logits, targets = torch.randn(3, 4, 5), torch.randint(5, (3, 4))
    rows = zip(logits.log_softmax(-1).reshape(12, 5), targets.flatten(), strict=True)
    torch.testing.assert_close(next_token(logits, targets), -torch.stack([row[t] for row, t in rows]).mean())


def test_shakespeare_from_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOPT_DATA", str(tmp_path))
    with pytest.raises(InvalidInput, match=r"missing .*tinyshakespeare/input\.txt.*'descriptions'"):
        small("tinyshakespeare")
    (tmp_path / "tinyshakespeare").mkdir()
    (tmp_path / "tinyshakespeare/input.txt").write_text(TEXT, encoding="utf-8")
    assert small("tinyshakespeare").tasks[0].name == "transformer_language_model/tinyshakespeare"


def test_shakespeare_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = {"train": TEXT[:1500], "validation": TEXT[1500:1700], "test": TEXT[1700:]}
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: {k: {"text": [v]} for k, v in tables.items()})
    data = load_texts(["tinyshakespeare"])
    together = "".join(data.vocabulary[i] for split in SPLITS for i in data.tokens["tinyshakespeare"][split])
    assert together == TEXT

    def fail(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(InvalidInput, match="no network.*'descriptions'"):
        load_texts(["tinyshakespeare"])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("tinyshakespear", "unknown text 'tinyshakespear'; did you mean 'tinyshakespeare'"),
        ("nowhere/at/all.txt", "there is no file 'nowhere/at/all.txt'"),
        ([], r"data=\[\]"),
        (None, "data=None"),
        (["descriptions", "descriptions"], "each once"),
        ([3], "data: 3; give the name of a text"),
    ],
)
def test_texts_that_are_not_there(data, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        RecurrentLanguageModel(data)


def test_files_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(bytes(range(128, 256)))
    with pytest.raises(InvalidInput, match="cannot be read as text in UTF-8"):
        load_texts([str(tmp_path / "image.png")])
    (tmp_path / "short.txt").write_text("too short", encoding="utf-8")
    with pytest.raises(InvalidInput, match="length=8: .* part of .*short.txt.* Give a smaller length"):
        small(str(tmp_path / "short.txt")).sample(seeded(0))
