"""Texts as tensors of characters: bundled, from `$LOPT_DATA`, from the Hugging Face hub, or a user's own files.

Legend of shapes: N characters.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

from lopt.errors import InvalidInput, unknown
from tasks.data import SPLITS
from tasks.task import Split

SHARES = (0.9, 0.95)  # where validation and test begin, of the characters of a text


@dataclass(frozen=True)
class TextData:
    """Texts over one vocabulary: for every text and split its characters (N,) as positions in the vocabulary."""

    vocabulary: str
    tokens: dict[str, dict[Split, Tensor]]


def check_texts(names: Sequence[str]) -> None:
    """Raises `InvalidInput` unless each is the name of a text that can be had here, or the path of a file."""
    for name in names:
        _locate(name)


def load_texts(names: Sequence[str]) -> TextData:
    """The texts, each split by position into 90 % train, 5 % validation, 5 % test.

    The vocabulary holds every character of all of them, in the order of their code points.

    Args:
        names: of `TEXTS`, or paths of text files in UTF-8. "tinyshakespeare" is read from
            `$LOPT_DATA/tinyshakespeare/input.txt`, or from the Hugging Face hub where LOPT_DATA is not set.

    Raises:
        InvalidInput: a text cannot be found or read.

    >>> data = load_texts(["descriptions"])
    >>> "".join(data.vocabulary[i] for i in data.tokens["descriptions"]["train"][:22])
    '.. _breast_cancer_data'
    """
    texts = {name: _locate(name)() for name in names}
    vocabulary = "".join(sorted(set().union(*texts.values())))
    position = {character: i for i, character in enumerate(vocabulary)}
    tokens: dict[str, dict[Split, Tensor]] = {}
    for name, text in texts.items():
        encoded = torch.tensor([position[character] for character in text], dtype=torch.long)
        parts = encoded.tensor_split([int(share * len(encoded)) for share in SHARES])
        tokens[name] = dict(zip(SPLITS, parts, strict=True))
    return TextData(vocabulary, tokens)


# --- where texts come from -------------------------------------------------------------------------------------------


def _descriptions() -> str:
    """The descriptions of the data sets that come with scikit-learn: 50,000 characters of English, in ASCII."""
    files = sorted(resources.files("sklearn.datasets.descr").iterdir(), key=lambda file: file.name)
    text = "\n".join(file.read_text(encoding="utf-8") for file in files if file.name.endswith(".rst"))
    return text.encode("ascii", "ignore").decode()


def _tinyshakespeare() -> Callable[[], str]:
    root = os.environ.get("LOPT_DATA")
    if not root:
        return _hub_tinyshakespeare
    path = Path(root) / "tinyshakespeare" / "input.txt"
    if not path.is_file():
        raise InvalidInput(
            f"LOPT_DATA={root!r}: missing {path}. Put the text there, unset LOPT_DATA to read from the hub, or use "
            "'descriptions', which needs neither."
        )
    return lambda: _read(path)


def _hub_tinyshakespeare() -> str:
    import datasets  # noqa: PLC0415 - an optional package, and slow to import

    try:  # the hub keeps a parquet form beside the script, which new versions of `datasets` refuse to run
        found = datasets.load_dataset("karpathy/tiny_shakespeare", revision="refs/convert/parquet")
        return "".join(found[table]["text"][0] for table in ("train", "validation", "test"))
    except Exception as error:  # network, hub and cache each bring exceptions of their own
        cause = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise InvalidInput(
            f"data 'tinyshakespeare': the hub data set 'karpathy/tiny_shakespeare' cannot be loaded ({cause}). Connect "
            "to the network, set LOPT_DATA to a folder with tinyshakespeare/input.txt, give the path of a text file, "
            "or use 'descriptions', which needs none of these."
        ) from error


# From a name to what finds the text: it raises an `InvalidInput` where that is not to be had, or returns what reads it.
TEXTS: dict[str, Callable[[], Callable[[], str]]] = {
    "descriptions": lambda: _descriptions,
    "tinyshakespeare": _tinyshakespeare,
}


def _locate(name: str) -> Callable[[], str]:
    if isinstance(name, str) and name in TEXTS:
        return TEXTS[name]()
    if not isinstance(name, str) or not name:
        raise InvalidInput(f"data: {name!r}; give the name of a text ({', '.join(TEXTS)}) or the path of a text file")
    path = Path(name).expanduser()
    if path.is_file():
        return lambda: _read(path)
    if len(path.parts) > 1 or path.suffix:
        raise InvalidInput(
            f"data: there is no file {name!r}. Give the path of a text file, or one of {', '.join(TEXTS)}"
        )
    raise unknown("text", name, TEXTS)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"data: {path} cannot be read as text in UTF-8 ({error})") from error
