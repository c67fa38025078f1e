"""Fitting one image by a network from coordinates to colours: SIREN.

Legend of shapes: S pixels a side, C channels, N pixels of all images.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lopt.errors import InvalidInput, unknown
from tasks.arguments import check_at_least, check_positive, check_widths, floating_dtype, usable_device
from tasks.data import SPLITS, check_images, load_images
from tasks.image_sources import DATA_SETS
from tasks.modules.siren import siren
from tasks.supervised import Supervised
from tasks.task import Split, Task, TaskFamily, weight_space_of

PHOTOGRAPHS = ("china", "flower")  # both come with scikit-learn
SHARES = (0.8, 0.9)  # where validation and test begin, of the shuffled pixels
_SPLIT_SEED = 2006


class ImageFit(TaskFamily):
    """A SIREN (arXiv 2006.09661) that fits an image, by the mean squared error of colours in [-1, 1].

    The pixels are split once by a fixed shuffle: 80 % train, 10 % validation, 10 % test. With a data set in place of a
    photograph, every task is one of its first images, and all of them run as one population.

    Args:
        data: "china" or "flower" (photographs, come with scikit-learn), the path of an image file, or a data set of
            `tasks.DATA_SETS`.
        size: S; photographs are cut to a square first.
        count: how many train images of a data set; a photograph is one.
        hidden: widths of the hidden layers.
        frequency: ω of the sines.
        batch_size: pixels of a training batch, drawn with replacement.
        device, dtype: of pixels and weights. A dtype may be given by name.

    Raises:
        InvalidInput: an argument cannot be used, or an image not be read.
    """

    name: ClassVar[str] = "image_fit"

    def __init__(
        self,
        data: str = "china",
        size: int = 32,
        count: int = 1,
        hidden: Sequence[int] = (32, 32),
        frequency: float = 30.0,
        batch_size: int = 256,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = torch.float32,
    ) -> None:
        for argument, value in (("size", size), ("count", count), ("batch_size", batch_size)):
            check_positive(argument, value)
        check_at_least("frequency", frequency, 1e-3)
        self.data, self.size, self.count, self.frequency = data, size, count, float(frequency)
        self.hidden, self.batch_size = check_widths("hidden", hidden, least=1), batch_size
        self.device, self.dtype = usable_device(device), floating_dtype(dtype)
        self._check_data()
        if size < 4:
            raise InvalidInput(f"size={size}: give at least 4, for pixels in all three splits")

    @cached_property
    def tasks(self) -> tuple[Supervised, ...]:
        """One task for each image."""
        images = self._images().to(self.device, self.dtype)  # (count, C, S, S)
        parts = _pixel_splits(self.size**2)
        colours = images.flatten(2).movedim(1, -1)  # (count, S², C)
        axis = torch.linspace(-1, 1, self.size, dtype=self.dtype, device=self.device)
        places = torch.cartesian_prod(axis, axis).expand(len(images), -1, -1)
        inputs: dict[Split, Tensor] = {split: places[:, part].flatten(0, 1) for split, part in parts.items()}
        targets: dict[Split, Tensor] = {split: colours[:, part].flatten(0, 1) for split, part in parts.items()}
        module = siren([2, *self.hidden, images.shape[1]], self.frequency).to(self.dtype)
        space = weight_space_of(module, inputs["train"][:2])
        tasks = []
        for k in range(len(images)):
            rows: dict[Split, range] = {split: range(k * len(p), (k + 1) * len(p)) for split, p in parts.items()}
            name = f"{self.name}/{self.data}" + (f"/{k}" if len(images) > 1 else "")
            tasks.append(
                Supervised(name, module, space, inputs, targets, rows, self.batch_size, loss_function=F.mse_loss)
            )
        return tuple(tasks)

    def sample(self, generator: torch.Generator) -> Task:
        """The task of one of the images, each equally likely."""
        return self.tasks[int(torch.randint(len(self.tasks), (), generator=generator, device=generator.device))]

    def _check_data(self) -> None:
        if isinstance(self.data, str) and self.data in DATA_SETS:
            check_images(self.data, self.size, None)
            return
        if self.count != 1:
            raise InvalidInput(f"count={self.count}: {self.data!r} is one image. Give count=1, or a data set")
        if isinstance(self.data, str) and (self.data in PHOTOGRAPHS or Path(self.data).expanduser().is_file()):
            return
        raise unknown("image, data set or file", str(self.data), [*PHOTOGRAPHS, *DATA_SETS])

    def _images(self) -> Tensor:
        """The images (count, C, S, S), scaled to [-1, 1]."""
        if self.data not in DATA_SETS:
            return _square(_photograph(self.data), self.size)[None] / 127.5 - 1
        found = load_images(self.data, self.size, standardise=False).images["train"]
        if self.count > len(found):
            raise InvalidInput(f"count={self.count}: {self.data!r} has {len(found)} train images")
        return 2 * found[: self.count] - 1


def _pixel_splits(count: int) -> dict[Split, Tensor]:
    # NumPy promises that the stream of this generator never changes; PyTorch makes no such promise.
    order = torch.from_numpy(np.random.RandomState(_SPLIT_SEED).permutation(count))
    return dict(zip(SPLITS, order.tensor_split([int(share * count) for share in SHARES]), strict=True))


def _photograph(name: str) -> Tensor:
    """A photograph or an image file, (3, H, W), 0 .. 255."""
    if name in PHOTOGRAPHS:
        from sklearn.datasets import load_sample_image  # noqa: PLC0415 - an optional package, and slow to import

        pixels = load_sample_image(f"{name}.jpg")
    else:
        from PIL import Image, UnidentifiedImageError  # noqa: PLC0415 - as above

        try:
            with Image.open(Path(name).expanduser()) as file:
                pixels = np.asarray(file.convert("RGB"))
        except (OSError, UnidentifiedImageError, ValueError) as error:
            raise InvalidInput(f"data: {name} cannot be read as an image ({error})") from error
    return torch.from_numpy(np.array(pixels)).movedim(-1, 0).float()


def _square(image: Tensor, size: int) -> Tensor:
    """The middle square of (3, H, W), resampled to (3, size, size)."""
    side = min(image.shape[1:])
    top, left = ((length - side) // 2 for length in image.shape[1:])
    middle = image[None, :, top : top + side, left : left + side]
    return F.interpolate(middle, (size, size), mode="bilinear", antialias=True)[0]
