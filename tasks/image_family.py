"""What all families on images have in common: their data arguments, and one task for each data set.

How the parts fit: `image_tables` puts the images of several data sets into one table a split, once for all families
that ask for the same; `ImageFamily` checks the arguments and makes the tasks. A family adds what network it builds, and
is an `ImageClassifier`, or says itself what its tasks are.

Legend of shapes: N images of all data sets, C channels, S pixels a side, B images of a batch.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, TypedDict
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from lopt.errors import InvalidInput
from lopt.weight_space import WeightSpace
from tasks.arguments import check_positive, floating_dtype, usable_device
from tasks.data import SPLITS, check_images, load_images
from tasks.image_sources import image_origin, image_source
from tasks.supervised import Supervised
from tasks.task import Split, Task, TaskFamily, weight_space_of


class ImageOptions(TypedDict, total=False):
    """The arguments that every family on images takes besides `data`; see `ImageFamily`."""

    size: int
    batch_size: int
    standardise: bool
    classes: Sequence[int] | None
    evaluation_size: int | None
    device: str | torch.device
    dtype: str | torch.dtype


@dataclass(frozen=True, eq=False)
class ImageTables:
    """The images of several data sets, one after the other: for every split a table, for every data set its rows."""

    images: dict[Split, Tensor]  # (N, C, S, S)
    labels: dict[Split, Tensor]  # (N,)
    rows: dict[str, dict[Split, range]]


class ImageFamily(TaskFamily):
    """Tasks on the images of one data set, or of one drawn from several.

    The data sets must agree in channels and classes. Their images lie one after the other in one table a split, and a
    task draws from its own rows: so the tasks of all data sets run as one vmapped population. Building a family checks
    its arguments; the first task that is sampled loads the data. Families that ask for the same images share them.

    Args:
        data: the name of a data set, or several names; `tasks.DATA_SETS` lists them.
        size: height and width that images are brought to.
        batch_size: images of a training batch, drawn with replacement.
        standardise: bring the pixels to mean 0 and standard deviation 1 a channel; else they lie in [0, 1].
        classes: keep these classes only, relabelled 0, 1, ...
        evaluation_size: how many images measure the loss of a split; None or too many: all.
        device, dtype: of images and weights. A dtype may be given by name.

    Raises:
        InvalidInput: an argument or LOPT_DATA cannot be used; or, when the data are loaded, they cannot be read.
    """

    flat: ClassVar[bool]  # whether the network takes images as vectors (B, C S²)

    def __init__(
        self,
        data: str | Sequence[str] = "digits",
        size: int = 8,
        batch_size: int = 64,
        standardise: bool = True,
        classes: Sequence[int] | None = None,
        evaluation_size: int | None = None,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = torch.float32,
    ) -> None:
        self.data = _check_names(data)
        check_positive("batch_size", batch_size)
        if evaluation_size is not None:
            check_positive("evaluation_size", evaluation_size)
        kept = [check_images(name, size, classes) for name in self.data]
        self.channels, self.class_count = image_source(self.data[0]).channels, len(kept[0])
        self.size, self.standardise, self.classes = size, standardise, None if classes is None else list(classes)
        self.batch_size, self.evaluation_size = batch_size, evaluation_size
        self.device, self.dtype = usable_device(device), floating_dtype(dtype)

    @abstractmethod
    def build(self) -> nn.Module:
        """The network for images of this family's channels, size and classes."""

    @abstractmethod
    def make_task(
        self, name: str, module: nn.Module, space: WeightSpace, inputs: dict[Split, Tensor], rows: dict[Split, range]
    ) -> Task:
        """The task on some rows of `inputs`, the images in the form that the network takes."""

    def example_inputs(self, images: Tensor) -> tuple[Tensor, ...]:
        """What the network takes for these images: them alone, unless a family says otherwise."""
        return (images,)

    @cached_property
    def tables(self) -> ImageTables:
        return image_tables(self.data, self.size, self.standardise, self.classes, self.device, self.dtype)

    @cached_property
    def tasks(self) -> tuple[Task, ...]:
        """One task for each data set, in the order of `data`."""
        images = self.tables.images
        inputs: dict[Split, Tensor] = {split: x.flatten(1) if self.flat else x for split, x in images.items()}
        module = self.build().to(self.dtype)
        space = weight_space_of(module, *self.example_inputs(inputs["train"][:2]))
        return tuple(
            self.make_task(f"{self.name}/{name}", module, space, inputs, rows)
            for name, rows in self.tables.rows.items()
        )

    def sample(self, generator: torch.Generator) -> Task:
        """The task of one of the data sets, each equally likely."""
        return self.tasks[int(torch.randint(len(self.tasks), (), generator=generator, device=generator.device))]

    def evaluation(self, rows: dict[Split, range]) -> dict[Split, range]:
        """The first `evaluation_size` rows of every split."""
        return {split: r[: self.evaluation_size] for split, r in rows.items()}


class ImageClassifier(ImageFamily):
    """A family whose networks turn images into the logits of their classes, under the cross-entropy."""

    def make_task(
        self, name: str, module: nn.Module, space: WeightSpace, inputs: dict[Split, Tensor], rows: dict[Split, range]
    ) -> Task:
        evaluation = self.evaluation(rows)
        return Supervised(name, module, space, inputs, self.tables.labels, rows, self.batch_size, evaluation)


# --- the tables ------------------------------------------------------------------------------------------------------

_loaded: WeakValueDictionary[tuple, ImageTables] = WeakValueDictionary()  # as long as a family uses them


def image_tables(
    names: Sequence[str],
    size: int,
    standardise: bool,
    classes: Sequence[int] | None,
    device: torch.device,
    dtype: torch.dtype,
) -> ImageTables:
    """The images of these data sets as tables; the same object for equal arguments while anyone holds it."""
    kept = None if classes is None else tuple(classes)
    origins = tuple(map(image_origin, names))
    key = (tuple(names), origins, size, standardise, kept, device, dtype)
    found = _loaded.get(key)
    if found is None:
        loaded = [load_images(name, size, standardise, classes, device, dtype) for name in names]
        rows: dict[str, dict[Split, range]] = {}
        starts: dict[Split, int] = dict.fromkeys(SPLITS, 0)
        for one in loaded:
            rows[one.name] = {s: range(starts[s], starts[s] + len(one.labels[s])) for s in SPLITS}
            starts = {s: rows[one.name][s].stop for s in SPLITS}
        images: dict[Split, Tensor] = {s: _together([one.images[s] for one in loaded]) for s in SPLITS}
        labels: dict[Split, Tensor] = {s: _together([one.labels[s] for one in loaded]) for s in SPLITS}
        found = _loaded[key] = ImageTables(images, labels, rows)
    return found


def _together(parts: list[Tensor]) -> Tensor:
    """One after the other; a single one is not copied."""
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _check_names(data: str | Sequence[str]) -> list[str]:
    rule = "give the name of a data set, or a list of names, each once"
    if not isinstance(data, Sequence):
        raise InvalidInput(f"data={data!r}: {rule}")
    names = [data] if isinstance(data, str) else list(data)
    shapes = {name: (image_source(name).channels, image_source(name).classes) for name in names}
    if not names or len(shapes) < len(names):
        raise InvalidInput(f"data={names}: {rule}")
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{name} {channels} and {classes}" for name, (channels, classes) in shapes.items())
        raise InvalidInput(
            f"data={names}: they differ in their channels and classes ({listed}), and one network serves them all. "
            "Make a family of each group that agrees."
        )
    return names
