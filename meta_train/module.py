"""MetaTraining: wires an estimator to Lightning. It asks for a meta-gradient, reduces, clips, steps, and logs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import IterableDataset

from lopt.errors import InvalidInput
from lopt.rules import UpdateRule
from meta_train.arguments import check_above_zero
from meta_train.estimators import Estimator, Particles, Share
from meta_train.ranks import joined, mean_over_ranks, world
from meta_train.validation import MetaValidation
from tasks.task import TaskFamily

LEAST_NOISE = 1e-30  # where contributions are all alike


class Forever(IterableDataset[int]):
    """What Lightning iterates over: meta-steps have no data of their own."""

    def __iter__(self) -> Iterator[int]:
        while True:
            yield 0


def signal_to_noise(norm: Tensor, squared_norm: Tensor, count: int) -> Tensor:
    r"""How far the mean of independent contributions stands out of its standard error.

    $$ s = \sqrt{\max(|\bar g|^2 - e^2, 0)} / e, \quad e^2 = (\overline{|g|^2} - |\bar g|^2) / (N - 1) $$

    The squared length of the mean is that of the true one and e² of noise, so this is 0 where there is nothing else.

    Args:
        norm: |ḡ|, of the mean. squared_norm: the mean of |g|². count: N.

    >>> signal_to_noise(torch.tensor(3.0), torch.tensor(12.0), 4)  # e² = 1, and 8 of 9 are signal
    tensor(2.8284, dtype=torch.float64)
    """
    length = norm.double() ** 2
    noise = (squared_norm.double() - length).clamp_min(0) / max(1, count - 1)
    return (length - noise).clamp_min(0).sqrt() / noise.sqrt().clamp_min(LEAST_NOISE)


class MetaTraining(L.LightningModule):
    """Fits the parameters θ of `rule` on a task family.

    On several processes each runs its share of the pairs; all get the mean meta-gradient, so θ is the same in each, and
    the same as one process would find with all pairs.

    Args:
        rule: the update rule; those of its parameters that require a gradient are trained in place.
        family: where tasks come from.
        estimator: of the meta-gradient.
        optimizer: from parameters to the outer optimizer.
        scheduler: from the outer optimizer to the schedule of its learning rate, stepped at every meta-step.
        clip: the largest norm of the meta-gradient.
        seed: names every random number; see `meta_train.keys`.
        validation: on held-out tasks, if any.
    """

    def __init__(
        self,
        rule: UpdateRule,
        family: TaskFamily,
        estimator: Estimator,
        optimizer: Callable[[Any], Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        clip: float = 1.0,
        seed: int = 0,
        validation: MetaValidation | None = None,
    ) -> None:
        super().__init__()
        check_above_zero(clip=clip)
        self.automatic_optimization = False
        self.rule, self.family, self.estimator = rule, family, estimator
        self.make_optimizer, self.make_scheduler = optimizer, scheduler
        self.clip, self.seed, self.validation = clip, seed, validation
        self.particles: Particles | None = None
        self.best: float | None = None  # of the meta-validation so far
        self.metrics: dict[str, float] = {}  # of the last meta-step, the same in every process

    def setup(self, stage: str) -> None:
        self.particles = self.estimator.start(self.rule, self.family, self.seed, Share(*world()))

    @property
    def fitted(self) -> dict[str, nn.Parameter]:
        """The part of θ that is fitted: all that requires a gradient."""
        return {name: p for name, p in self.rule.named_parameters() if p.requires_grad}

    def configure_optimizers(self) -> Any:
        what = "optimizer"
        try:
            optimizer = self.make_optimizer(list(self.fitted.values()))
            if self.make_scheduler is None:
                return optimizer
            what = "scheduler"
            return {"optimizer": optimizer, "lr_scheduler": self.make_scheduler(optimizer)}
        except (TypeError, ValueError) as error:  # what PyTorch's own say of arguments that they do not take
            raise InvalidInput(f"{what}: {error}. Give others, such as those in configs/meta_train.yaml") from error

    def train_dataloader(self) -> Forever:
        return Forever()

    def training_step(self, batch: int, batch_index: int) -> None:
        assert self.particles is not None
        theta = {name: p.detach() for name, p in self.fitted.items()}
        estimate = self.estimator.estimate(self.rule, theta, self.family, self.particles, self.seed)
        shared = {f"gradient.{k}": g for k, g in estimate.gradient.items()} | estimate.metrics
        shared = mean_over_ranks(shared)
        for name, p in self.fitted.items():
            p.grad = shared.pop(f"gradient.{name}").to(p)
        norm = torch.nn.utils.clip_grad_norm_(self.fitted.values(), self.clip, error_if_nonfinite=True)
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        optimizer.step()
        scheduler = self.lr_schedulers()
        if scheduler is not None:
            assert isinstance(scheduler, LRScheduler)
            scheduler.step()  # pyright: ignore[reportCallIssue]
        self.particles = estimate.particles
        snr = signal_to_noise(norm, shared.pop("squared_norm"), self.estimator.count)
        shared |= {"meta_gradient_norm": norm, "meta_gradient_snr": snr}
        self.metrics = {name: float(value) for name, value in shared.items()} | self._validate()
        self.log_dict(self.metrics)

    def _validate(self) -> dict[str, float]:
        """The metrics of an evaluation, where one is due: after the first meta-step, and then now and then."""
        assert self.particles is not None
        done = int(self.particles.iteration)
        if self.validation is None or (done != 1 and done % self.validation.every):
            return {}
        theta = {name: p.detach() for name, p in self.rule.named_parameters()}
        return {name: float(value) for name, value in self.validation.evaluate(self.rule, theta).items()}

    # Particles hold tasks, which are drawn again from their keys; their tensors are saved by name, joined over ranks.
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        assert self.particles is not None
        checkpoint["particles"] = joined(self.estimator.pack(self.particles))
        checkpoint["seed"], checkpoint["best"] = self.seed, self.best

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        try:
            if checkpoint.get("seed") != self.seed:
                raise InvalidInput(f"its seed is {checkpoint.get('seed')}, and this run's {self.seed}")
            packed = checkpoint.get("particles", [])
            self.particles = self.estimator.restore(self.rule, self.family, packed, self.seed, Share(*world()))
        except (InvalidInput, KeyError) as error:
            raise InvalidInput(
                f"ckpt_path: this checkpoint is of a run with another rule, family, estimator or seed: {error}. "
                "Resume with the configuration in that run's config.yaml"
            ) from None
        self.best = checkpoint.get("best")
