"""Character-level language models: transformers and recurrent networks on texts.

Legend of shapes: B sequences of a batch, L characters, V characters of the vocabulary.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import ClassVar, TypedDict, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lopt.errors import InvalidInput
from tasks.arguments import check_divides, check_positive, floating_dtype, pick, usable_device
from tasks.data import SPLITS
from tasks.modules.attention import MLPS, TransformerLM
from tasks.modules.parts import TOKEN_NORMS
from tasks.modules.recurrent import CELLS, RecurrentLM
from tasks.supervised import Supervised
from tasks.task import Split, Task, TaskFamily, weight_space_of
from tasks.text import check_texts, load_texts


class TextOptions(TypedDict, total=False):
    """The arguments that every language model takes besides `data`; see `LanguageFamily`."""

    length: int
    batch_size: int
    evaluation_size: int
    device: str | torch.device
    dtype: str | torch.dtype


class LanguageFamily(TaskFamily):
    """Predicting the next character of a text, or of one drawn from several over a common vocabulary.

    The loss is the mean cross-entropy in nats a character, over all positions. A training batch are B stretches of L
    characters that begin anywhere; the loss of a split is measured on stretches that do not overlap, evenly spread.
    Building a family checks its arguments; the first task that is sampled reads the texts.

    Args:
        data: "descriptions" (comes with scikit-learn), "tinyshakespeare", the path of a text file, or a list of them.
        length: L.
        batch_size: B.
        evaluation_size: how many stretches measure the loss of a split; too many: as many as there are.
        device, dtype: of the weights. A dtype may be given by name.

    Raises:
        InvalidInput: an argument cannot be used; or, when a text is read, it is too short or no text.
    """

    def __init__(
        self,
        data: str | Sequence[str] = "descriptions",
        length: int = 8,
        batch_size: int = 8,
        evaluation_size: int = 512,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = torch.float32,
    ) -> None:
        if not isinstance(data, Sequence) or not data or len(set(data)) < len(data) and not isinstance(data, str):
            raise InvalidInput(f"data={data!r}: give the name or path of a text, or a list of them, each once")
        self.data = [data] if isinstance(data, str) else list(data)
        check_texts(self.data)
        for argument, value in (("length", length), ("batch_size", batch_size), ("evaluation_size", evaluation_size)):
            check_positive(argument, value)
        self.length, self.batch_size, self.evaluation_size = length, batch_size, evaluation_size
        self.device, self.dtype = usable_device(device), floating_dtype(dtype)

    @abstractmethod
    def build(self, vocabulary: int) -> nn.Module:
        """The network, tokens (B, L) -> logits (B, L, V)."""

    @cached_property
    def tasks(self) -> tuple[Supervised, ...]:
        """One task for each text, in the order of `data`."""
        texts = load_texts(self.data)
        module = self.build(len(texts.vocabulary)).to(self.dtype)
        inputs: dict[Split, Tensor] = {}
        targets: dict[Split, Tensor] = {}
        rows: dict[str, dict[Split, range]] = {name: {} for name in texts.tokens}
        for split in SPLITS:
            together = torch.cat([parts[split] for parts in texts.tokens.values()]).to(self.device)
            start = 0
            for name, parts in texts.tokens.items():
                count = len(parts[split]) - self.length  # stretches with the character that follows them
                if count < 1:
                    raise InvalidInput(
                        f"length={self.length}: the {split} part of {name!r} has {len(parts[split])} characters. Give "
                        "a smaller length or a longer text"
                    )
                rows[name][split] = range(start, start + count)
                start += len(parts[split])
            windows = together.unfold(0, self.length, 1)  # (N - L + 1, L), a view
            inputs[split], targets[split] = windows[:-1], windows[1:]
        space = weight_space_of(module, inputs["train"][:2])
        return tuple(
            Supervised(
                f"{self.name}/{name}",
                module,
                space,
                inputs,
                targets,
                r,
                self.batch_size,
                self._spread(r),
                next_token,
                overlap=self.length,
            )
            for name, r in rows.items()
        )

    def sample(self, generator: torch.Generator) -> Task:
        """The task of one of the texts, each equally likely."""
        return self.tasks[int(torch.randint(len(self.tasks), (), generator=generator, device=generator.device))]

    def _spread(self, rows: dict[Split, range]) -> dict[Split, range]:
        """Stretches that do not overlap, evenly spread over the rows of each split."""
        return {
            split: r[:: max(self.length, len(r) // self.evaluation_size)][: self.evaluation_size]
            for split, r in rows.items()
        }


def next_token(logits: Tensor, targets: Tensor) -> Tensor:
    """The mean cross-entropy of logits (B, L, V) against the characters that come (B, L)."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


class TransformerLanguageModel(LanguageFamily):
    """A causal transformer with pre-norm blocks and learned positions.

    The defaults are the small transformer of UNF (arXiv 2402.05232) and GradMetaNet (2507.01649).

    Args:
        data: "descriptions" (comes with scikit-learn), "tinyshakespeare", the path of a text file, or a list of them.
        blocks, width, heads: of the transformer; `heads` divides `width`.
        hidden: width inside the MLP of a block; None: four times `width`.
        norm: "layer" or "rms".
        mlp: "gelu" or "swiglu".
        tied: the embedding serves as output layer.
        text: `length`, `batch_size`, `evaluation_size`, `device`, `dtype`; see `LanguageFamily`.

    Raises:
        InvalidInput: an argument cannot be used; or, when a text is read, it is too short or no text.
    """

    name: ClassVar[str] = "transformer_language_model"

    def __init__(
        self,
        data: str | Sequence[str] = "descriptions",
        blocks: int = 2,
        width: int = 32,
        heads: int = 4,
        hidden: int | None = None,
        norm: str = "layer",
        mlp: str = "gelu",
        tied: bool = False,
        **text: Unpack[TextOptions],
    ) -> None:
        super().__init__(data, **text)
        self.hidden = 4 * width if hidden is None else hidden
        for argument, value in (("blocks", blocks), ("width", width), ("heads", heads), ("hidden", self.hidden)):
            check_positive(argument, value)
        check_divides("heads", heads, width)
        pick("norm", norm, TOKEN_NORMS)
        pick("mlp", mlp, MLPS)
        self.blocks, self.width, self.heads, self.norm, self.mlp, self.tied = blocks, width, heads, norm, mlp, tied

    def build(self, vocabulary: int) -> nn.Module:
        sizes = vocabulary, self.length, self.blocks, self.width, self.heads, self.hidden
        return TransformerLM(*sizes, self.norm, self.mlp, self.tied)


class RecurrentLanguageModel(LanguageFamily):
    """An embedding, recurrent layers, a Linear layer; the state begins at zero in every stretch.

    The defaults are the recurrent language model of UNF (arXiv 2402.05232): 64 units, embedding 32; its batches are 64
    stretches of 16.

    Args:
        data: "descriptions" (comes with scikit-learn), "tinyshakespeare", the path of a text file, or a list of them.
        cell: "rnn", "gru" or "lstm".
        embedding: width of the embedding.
        hidden: units of a layer.
        layers: recurrent layers.
        text: `length`, `batch_size`, `evaluation_size`, `device`, `dtype`; see `LanguageFamily`.

    Raises:
        InvalidInput: an argument cannot be used; or, when a text is read, it is too short or no text.
    """

    name: ClassVar[str] = "recurrent_language_model"

    def __init__(
        self,
        data: str | Sequence[str] = "descriptions",
        cell: str = "rnn",
        embedding: int = 32,
        hidden: int = 64,
        layers: int = 1,
        **text: Unpack[TextOptions],
    ) -> None:
        super().__init__(data, **{"length": 16, "batch_size": 64, **text})
        pick("cell", cell, CELLS)
        for argument, value in (("embedding", embedding), ("hidden", hidden), ("layers", layers)):
            check_positive(argument, value)
        self.cell, self.embedding, self.hidden, self.layers = cell, embedding, hidden, layers

    def build(self, vocabulary: int) -> nn.Module:
        return RecurrentLM(vocabulary, self.cell, self.embedding, self.hidden, self.layers)
