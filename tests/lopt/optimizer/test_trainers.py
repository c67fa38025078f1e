"""Programs that drive an optimizer: Lightning's Trainer, Accelerate, GradScaler."""

import copy
import warnings
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from accelerate import Accelerator
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lopt import LearnedOptimizer
from tests.lopt.optimizer.common import ANY_NETWORK, LR, backward, build, network, same, state_of, weights

STEPS = 8


def data() -> DataLoader:
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(16 * STEPS, 3, generator=g), torch.randn(16 * STEPS, 2, generator=g)
    return DataLoader(TensorDataset(x, y), batch_size=16)


# --- Lightning -------------------------------------------------------------------------------------------------------


class Module(lightning.LightningModule):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.network, self.name = network(), name

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        return nn.functional.mse_loss(self.network(batch[0]).float(), batch[1])

    def configure_optimizers(self) -> Any:
        optimizer = LearnedOptimizer(
            self.network.parameters(), LR[self.name], rule=build(self.name, self.network), total_steps=STEPS
        )
        return [optimizer], [torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.5, total_iters=2)]


def fit(folder: Path, name: str, precision: Any, epochs: int, resume: Path | None = None, **options: Any) -> Module:
    module = Module(name)
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        precision=precision,
        max_epochs=epochs,
        default_root_dir=folder,
        callbacks=[ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice about workers
        trainer.fit(module, data(), ckpt_path=resume)  # pyright: ignore[reportArgumentType]
    assert trainer.global_step == epochs * STEPS
    return module


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("name", [name for name in ANY_NETWORK if name in ("adam", "neuron")])
def test_lightning_trains_and_resumes_exactly(tmp_path, name, precision):
    through = fit(tmp_path / "through", name, precision, 2, gradient_clip_val=1.0)
    fit(tmp_path / "first", name, precision, 1, gradient_clip_val=1.0)
    checkpoint = tmp_path / "first" / "epoch=0.ckpt"
    resumed = fit(tmp_path / "second", name, precision, 2, checkpoint, gradient_clip_val=1.0)
    assert same(weights(resumed), weights(through))
    assert not same(weights(through), weights(Module(name)))
    optimizer: Any = resumed.optimizers(use_pl_optimizer=False)
    assert all(optimizer.state[p]["step"] == 2 * STEPS for p in resumed.parameters())


# --- Accelerate ------------------------------------------------------------------------------------------------------


def accelerate(name: str, accumulate: int = 1) -> tuple[nn.Module, Any]:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
    model = network()
    optimizer = LearnedOptimizer(model.parameters(), LR[name], rule=build(name, model))
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
    model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, data(), schedule)
    for x, y in loader:
        with accelerator.accumulate(model):
            accelerator.backward(nn.functional.mse_loss(model(x), y))
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    return model, optimizer


def test_accelerate_trains_as_a_plain_loop(name):
    model, optimizer = accelerate(name)
    twin = network()
    other = LearnedOptimizer(twin.parameters(), LR[name], rule=build(name, twin))
    for x, y in data():
        other.zero_grad()
        nn.functional.mse_loss(twin(x), y).backward()
        other.step()
    assert same(weights(model), weights(twin))
    assert same(state_of(optimizer), state_of(other))
    assert optimizer.skipped_steps == 0 if hasattr(optimizer, "skipped_steps") else not optimizer.step_was_skipped


def test_accelerate_accumulates(name):
    _, optimizer = accelerate(name, accumulate=4)
    assert all(x == STEPS / 4 for x in (entry["step"] for entry in optimizer.state.values()))


def test_a_wrapper_may_copy_save_and_load(name, model):
    optimizer = LearnedOptimizer(model.parameters(), LR[name], rule=build(name, model), total_steps=20)
    optimizer.load_state_dict(optimizer.state_dict())  # as Accelerate does to place it, before any step
    backward(model, 0)
    optimizer.step()
    twin, wrapped = copy.deepcopy((model, optimizer))
    wrapped.load_state_dict(wrapped.state_dict())
    for m, o in ((model, optimizer), (twin, wrapped)):
        backward(m, 1)
        o.step()
    assert same(weights(model), weights(twin))


# --- GradScaler ------------------------------------------------------------------------------------------------------


def test_the_scaler_unscales_clips_and_skips(name, model):
    twin = copy.deepcopy(model)
    optimizer = LearnedOptimizer(model.parameters(), LR[name], rule=build(name, model))
    other = LearnedOptimizer(twin.parameters(), LR[name], rule=build(name, twin))
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    for step in range(4):
        g = torch.Generator().manual_seed(step)
        x, y = torch.randn(16, 3, generator=g), torch.randn(16, 2, generator=g)
        for m, o in ((model, optimizer), (twin, other)):
            o.zero_grad()
            loss = nn.functional.mse_loss(m(x), y)
            scaler.scale(loss).backward() if m is model else loss.backward()
        if step == 2:
            next(model.parameters()).grad.fill_(torch.nan)
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        scaler.step(optimizer)
        scaler.update()
        if step != 2:
            nn.utils.clip_grad_norm_(twin.parameters(), 0.1)
            other.step()
    assert same(weights(model), weights(twin))
    assert optimizer.skipped_steps == 0  # the scaler saw it first
