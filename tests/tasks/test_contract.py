"""What every family of tasks must do. A new family is one row of `ROWS`."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch.func import grad_and_value, vmap
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

import tasks
from lopt.errors import InvalidInput
from tasks import Split, Task, TaskFamily

CONFIGS = Path(__file__).parents[2] / "configs"
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
SMALL_TEXT = {"length": 6, "batch_size": 8, "evaluation_size": 64}
CHARACTERS = 91  # of the text that comes with scikit-learn


class Row(NamedTuple):
    make: Callable[..., TaskFamily]  # takes device and dtype
    level: tuple[float, float]  # between which the initial validation loss lies, in the mean over seeds
    lr: float  # at which 40 steps of Adam bring the loss of the train split well down
    gain: float = 0.9  # below this many times the initial loss
    yaml: str | None = None  # the file in configs/family that holds the defaults; None: made of other families


def classifier(kind: Callable[..., TaskFamily], yaml: str, lr: float = 1e-2, **arguments) -> Row:
    return Row(functools.partial(kind, batch_size=32, **arguments), near(math.log(10)), lr, yaml=yaml)


def near(level: float, below: float = 0.9, above: float = 1.25) -> tuple[float, float]:
    return below * level, above * level


def mlp(**arguments) -> TaskFamily:
    return tasks.ImageMLP(batch_size=32, hidden=(8,), **arguments)


def mixture(**arguments) -> TaskFamily:
    return tasks.Mixture([mlp(**arguments), tasks.ImageResNet(widths=(4, 8), batch_size=32, **arguments)], [1, 1])


def varied(**arguments) -> TaskFamily:
    family = functools.partial(tasks.ImageMLP, batch_size=32, **arguments)
    return tasks.Varied(family, hidden=[[8], [8, 8]], activation=["relu", "tanh"])


LN10, LNV = near(math.log(10)), near(math.log(CHARACTERS))
ROWS: dict[str, Row] = {
    "Quadratic": Row(tasks.Quadratic, (0.05, 0.2), 0.1, yaml="quadratic"),
    "LogisticRegression": Row(
        functools.partial(tasks.LogisticRegression, "wine"),
        near(math.log(3), above=1.6),
        1e-2,
        yaml="logistic_regression",
    ),
    "Tabular": Row(functools.partial(tasks.Tabular, hidden=(8,)), near(1.0, 0.8, 1.5), 1e-2, yaml="tabular"),
    "ImageMLP": classifier(tasks.ImageMLP, "image_mlp", hidden=(16,), norm="layer"),
    "ImageCNN": classifier(tasks.ImageCNN, "image_cnn", channels=(8, 8), norm="batch"),
    "ImageResNet": classifier(tasks.ImageResNet, "image_resnet", widths=(4, 8)),
    "ImageViT": classifier(tasks.ImageViT, "image_vit", blocks=1, width=16),
    "ImageMixer": classifier(tasks.ImageMixer, "image_mixer", blocks=1, width=16, token_hidden=8, channel_hidden=16),
    "Autoencoder": Row(tasks.Autoencoder, near(1.0), 1e-2, yaml="autoencoder"),
    "ConvAutoencoder": Row(tasks.ConvAutoencoder, near(1.0), 1e-2, yaml="conv_autoencoder"),
    "VariationalAutoencoder": Row(
        tasks.VariationalAutoencoder, near(math.log(2)), 1e-2, yaml="variational_autoencoder"
    ),
    "ImageFit": Row(functools.partial(tasks.ImageFit, "digits", size=16, count=2), (0.3, 1.2), 1e-3, yaml="image_fit"),
    "TransformerLanguageModel": Row(
        functools.partial(tasks.TransformerLanguageModel, blocks=1, width=16, **SMALL_TEXT),
        LNV,
        1e-2,
        yaml="transformer_language_model",
    ),
    "RecurrentLanguageModel": Row(
        functools.partial(tasks.RecurrentLanguageModel, cell="lstm", embedding=8, hidden=16, **SMALL_TEXT),
        LNV,
        1e-2,
        yaml="recurrent_language_model",
    ),
    "Mixture": Row(mixture, LN10, 1e-2),
    "Varied": Row(varied, LN10, 1e-2),
    "ParameterScaling": Row(lambda **a: tasks.ParameterScaling(mlp(**a), 0.5, 2.0), LN10, 1e-2),
    "LossScaling": Row(lambda **a: tasks.LossScaling(mlp(**a), 3.0, 3.0), near(3 * math.log(10)), 1e-2),
    "FewExamples": Row(lambda **a: tasks.FewExamples(mlp(**a), 50, 500), LN10, 1e-2),
    "GradientNoise": Row(lambda **a: tasks.GradientNoise(mlp(**a)), LN10, 1e-2),
    "LabelNoise": Row(lambda **a: tasks.LabelNoise(mlp(**a)), LN10, 1e-2),
    "InputPermutation": Row(lambda **a: tasks.InputPermutation(mlp(**a)), LN10, 1e-2),
    "a whole tower": Row(
        lambda **a: tasks.LossScaling(
            tasks.GradientNoise(tasks.ParameterScaling(tasks.LabelNoise(tasks.InputPermutation(varied(**a)))))
        ),
        (0.1, 30.0),
        1e-2,
    ),
}
every_family = pytest.mark.parametrize("name", ROWS)


@functools.cache
def family(name: str, dtype: str = "float32", device: str = "cpu") -> TaskFamily:
    return ROWS[name].make(dtype=dtype, device=device)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def task_of(name: str, seed: int = 0, dtype: str = "float32") -> Task:
    return family(name, dtype).sample(seeded(seed))


def same(one, other) -> bool:
    pairs = zip(pytree.tree_leaves(one), pytree.tree_leaves(other), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def stack(trees: list):
    return pytree.tree_map(lambda *leaves: torch.stack(leaves), *trees)


def test_every_family_has_a_row() -> None:
    found = {
        name
        for name, kind in vars(tasks).items()
        if isinstance(kind, type) and issubclass(kind, TaskFamily) and not inspect.isabstract(kind)
    }
    assert found - set(ROWS) == {"OwnData"}  # takes a user's module and table: test_own_data.py


@every_family
def test_the_initial_loss_is_at_its_level(name: str) -> None:
    low, high = ROWS[name].level
    losses = []
    for seed in range(5):
        task = task_of(name, seed)
        losses.append(float(task.loss(task.init(seeded(seed)), task.evaluation_batch("validation"))))
    assert low < sum(losses) / len(losses) < high


@every_family
def test_gradients_are_finite_and_reach_every_parameter(name: str) -> None:
    task = task_of(name)
    params = task.init(seeded(1))
    before = {k: p.clone() for k, p in params.items()}
    gradients, loss = grad_and_value(task.loss)(params, task.batch("train", seeded(2)))
    task.weight_space.check(params)
    assert loss.shape == () and loss.isfinite() and same(params, before)
    for key, g in gradients.items():
        assert g.isfinite().all() and g.shape == params[key].shape
        # What a norm takes away again has a gradient of rounding errors only: biases before a batch norm.
        assert g.any()


@every_family
def test_the_traced_symmetry_is_true(name: str) -> None:
    task = task_of(name, dtype="float64")
    space, batch = task.weight_space, task.batch("train", seeded(1))
    params = {k: p + 0.1 * torch.randn_like(p) for k, p in task.init(seeded(0)).items()}
    loss = task.loss(params, batch)
    for seed in range(2):
        permuted = space.permute(params, space.random_permutations(seeded(seed)))
        torch.testing.assert_close(task.loss(permuted, batch), loss, rtol=1e-9, atol=1e-9)


@every_family
def test_a_population_equals_the_loop(name: str) -> None:
    member = family(name, "float64").member(seeded(3))
    population = [member.sample(seeded(seed)) for seed in range(3)]
    assert len({task.population for task in population}) == 1
    first = population[0]
    params = [task.init(seeded(seed)) for seed, task in enumerate(population)]
    for split in SPLITS:
        drawn = [task.draw(split, seeded(seed)) for seed, task in enumerate(population)]

        def one(p, d, split: Split = split):
            return grad_and_value(first.loss)(p, first.gather(split, d))

        gradients, losses = vmap(one)(stack(params), stack(drawn))
        for k, task in enumerate(population):
            alone, loss = grad_and_value(task.loss)(params[k], task.gather(split, drawn[k]))
            torch.testing.assert_close(losses[k], loss, rtol=1e-9, atol=1e-9)
            for key, g in alone.items():
                torch.testing.assert_close(gradients[key][k], g, rtol=1e-7, atol=1e-9)


@every_family
def test_generators_fix_tasks_weights_and_draws(name: str) -> None:
    task_of(name, 4)  # a network is built once, which draws from the global random state
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one, again = task_of(name, 4), task_of(name, 4)
    assert one.population == again.population and one.weight_space == again.weight_space
    assert same(one.init(seeded(0)), again.init(seeded(0)))
    assert not same(one.init(seeded(0)), one.init(seeded(1)))
    for split in SPLITS:
        assert same(one.draw(split, seeded(0)), again.draw(split, seeded(0)))
        assert same(one.evaluation_batch(split), again.evaluation_batch(split))
    generator = seeded(0)
    assert not same(one.draw("train", generator), one.draw("train", generator))
    assert torch.equal(torch.get_rng_state(), state)


@every_family
def test_batches_of_all_kinds_have_one_form(name: str) -> None:
    task = task_of(name)
    params = task.init(seeded(0))
    leaves, form = pytree.tree_flatten(task.batch("train", seeded(0)))
    for split in SPLITS:
        for batch in (task.batch(split, seeded(1)), task.evaluation_batch(split)):
            others, other_form = pytree.tree_flatten(batch)
            assert other_form == form and [x.dtype for x in others] == [x.dtype for x in leaves]
            assert task.loss(params, batch).isfinite()


@every_family
def test_adam_learns(name: str) -> None:
    task, generator = task_of(name), seeded(1)
    params = {k: p.requires_grad_() for k, p in task.init(generator).items()}
    optimizer = torch.optim.Adam(params.values(), ROWS[name].lr)
    with torch.no_grad():
        before = task.loss(params, task.evaluation_batch("train"))
    for _ in range(40):
        optimizer.zero_grad()
        task.loss(params, task.batch("train", generator)).backward()
        optimizer.step()
    with torch.no_grad():
        assert task.loss(params, task.evaluation_batch("train")) < ROWS[name].gain * before


@every_family
def test_dtype(name: str) -> None:
    task = task_of(name, dtype="float64")
    params, batch = task.init(seeded(0)), task.batch("train", seeded(0))
    kinds = {x.dtype for x in pytree.tree_leaves((params, batch)) if x.is_floating_point()}
    assert kinds == {torch.float64} == {task.loss(params, batch).dtype}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@every_family
def test_cuda_gives_what_the_cpu_gives(name: str) -> None:
    here, there = task_of(name, dtype="float64"), family(name, "float64", "cuda").sample(seeded(0))
    params, moved = here.init(seeded(0)), there.init(seeded(0))
    drawn, drawn_there = here.draw("train", seeded(1)), there.draw("train", seeded(1))
    devices = {x.device.type for x in pytree.tree_leaves((moved, drawn_there, there.evaluation_batch("test")))}
    assert devices == {"cuda"}
    expected = here.loss(params, here.gather("train", drawn))
    torch.testing.assert_close(there.loss(moved, there.gather("train", drawn_there)).cpu(), expected)


class _Drawing(TorchFunctionMode):
    """Notes what draws from a generator without being told the generator's device: on CUDA that is refused."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.generator = generator
        self.homeless: list[str] = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        given = kwargs or {}
        made_from = any(isinstance(x, torch.Tensor) for x in args)  # such as torch.multinomial(weights, ...)
        ours = given.get("generator") is self.generator
        if ours and not made_from and given.get("device") != self.generator.device:
            self.homeless.append(function.__name__)
        return function(*args, **given)


@every_family
def test_what_is_drawn_is_drawn_where_the_generator_is(name: str) -> None:
    generator = seeded(0)
    with _Drawing(generator) as seen:
        task = family(name).member(generator).sample(generator)
        task.init(generator)
        task.draw("train", generator)
    assert seen.homeless == []


# --- the data behind them --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ImageMLP", "ImageCNN", "Tabular", "LogisticRegression", "ImageFit", "Autoencoder"])
def test_splits_share_no_row(name: str) -> None:
    task = task_of(name)
    rows = {split: {tuple(x.flatten().tolist()) for x in task.evaluation_batch(split)[0]} for split in SPLITS}
    assert all(rows.values())
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not rows[one] & rows[other]


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.yaml])
def test_the_yaml_names_the_defaults(name: str) -> None:
    kind = getattr(tasks, name)
    with initialize_config_dir(str(CONFIGS), version_base=None):
        config = compose("meta_train", overrides=[f"family={ROWS[name].yaml}"]).family
    made = instantiate(config)
    assert type(made) is kind
    if name != "Quadratic":  # has no arguments left, only a task
        assert vars(made) == vars(kind())
    taken = {p for base in kind.__mro__[:-2] for p in inspect.signature(base).parameters} - {"images", "text", "family"}
    assert taken - set(config) <= {"standardise"}  # which a variational autoencoder cannot change


@pytest.mark.parametrize("path", sorted((CONFIGS / "family").rglob("*.yaml")), ids=lambda p: p.stem)
def test_every_yaml_makes_a_family(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOPT_DATA", str(tmp_path))  # building a family only looks whether its files are there
    for name in ("mnist", "fashion_mnist", "cifar10"):
        (tmp_path / name).mkdir()
        for table in ("train", "test"):
            (tmp_path / name / f"{table}.parquet").touch()
    (tmp_path / "tinyshakespeare").mkdir()
    (tmp_path / "tinyshakespeare" / "input.txt").write_text("To be, or not to be. " * 50, encoding="utf-8")
    choice = path.relative_to(CONFIGS / "family").with_suffix("").as_posix()
    with initialize_config_dir(str(CONFIGS), version_base=None):
        config = compose("meta_train", overrides=[f"family={choice}", "dtype=float64"]).family
    assert isinstance(instantiate(config), TaskFamily)


def test_the_mixture_to_meta_train_on() -> None:
    with initialize_config_dir(str(CONFIGS), version_base=None):
        mixed = instantiate(compose("meta_train", overrides=["family=mixture"]).family)
    names = set()
    for seed in range(12):
        member = mixed.member(seeded(seed))
        task = member.sample(seeded(seed))
        assert member.sample(seeded(seed + 1)).population == task.population
        assert task.loss(task.init(seeded(seed)), task.batch("train", seeded(seed))).isfinite()
        names.add(task.name.partition("/")[0])
    assert len(names) >= 4


# --- arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tasks.ImageMLP(norm="bach"), "unknown norm 'bach'; did you mean 'batch'"),
        (lambda: tasks.ImageMLP(initialisation="xavier"), "did you mean 'xavier_normal' or 'xavier_uniform'"),
        (lambda: tasks.ImageCNN(channels=[]), r"channels=\[\]: give at least 1"),
        (lambda: tasks.ImageCNN(channels=8), "channels=8: give a list"),  # pyright: ignore[reportArgumentType]
        (lambda: tasks.ImageCNN(kernel=2), "kernel=2: give an odd size"),
        (lambda: tasks.ImageCNN(stride=[1]), "one for each of 2 convolutions"),
        (lambda: tasks.ImageCNN(stride=0), "stride, width=0"),
        (lambda: tasks.ImageCNN(norm="rms"), "unknown norm 'rms'"),
        (lambda: tasks.ImageCNN("digts"), "did you mean 'digits'"),
        (lambda: tasks.ImageResNet(blocks=0), "blocks=0"),
        (lambda: tasks.ImageResNet(widths=(8, -1)), "widths, width=-1"),
        (lambda: tasks.ImageViT(patch=3), r"patch: 3 does not divide 8. Give one of \[1, 2, 4, 8\]"),
        (lambda: tasks.ImageViT(heads=5), "heads: 5 does not divide 32"),
        (lambda: tasks.ImageViT(mlp="gel"), "unknown mlp 'gel'; did you mean 'gelu'"),
        (lambda: tasks.ImageMixer(patch=5), "patch: 5"),
        (lambda: tasks.ImageMixer(token_hidden=0), "token_hidden=0"),
        (lambda: tasks.Autoencoder(loss="mae"), "unknown loss 'mae'; did you mean 'mse'"),
        (lambda: tasks.Autoencoder(loss="bce"), "bce wants pixels in"),
        (lambda: tasks.ConvAutoencoder(size=6), r"4 does not divide 6"),
        (lambda: tasks.VariationalAutoencoder(standardise=True), "standardise=True"),
        (lambda: tasks.VariationalAutoencoder(latent=0), "latent=0"),
        (lambda: tasks.Tabular("diabtes"), "unknown table 'diabtes'; did you mean 'diabetes'"),
        (lambda: tasks.Tabular(batch_size=True), "batch_size=True"),
        (lambda: tasks.LogisticRegression("diabetes"), "has numbers to predict; give a table of classes"),
        (lambda: tasks.LogisticRegression(l2=0), "l2=0: give a number above 0"),
        (lambda: tasks.RecurrentLanguageModel(cell="ltsm"), "unknown cell 'ltsm'; did you mean 'lstm'"),
        (lambda: tasks.RecurrentLanguageModel(layers=0), "layers=0"),
        (lambda: tasks.TransformerLanguageModel(heads=3), "heads: 3 does not divide 32"),
        (lambda: tasks.TransformerLanguageModel(norm="batch"), "unknown norm 'batch'"),
        (lambda: tasks.TransformerLanguageModel(device="gpu"), "device='gpu'"),
        (lambda: tasks.TransformerLanguageModel(dtype="float"), "dtype='float'"),
        (lambda: tasks.ImageFit("chin"), "unknown image, data set or file 'chin'; did you mean 'china'"),
        (lambda: tasks.ImageFit(count=2), "'china' is one image"),
        (lambda: tasks.ImageFit(size=2), "size=2"),
        (lambda: tasks.ImageFit(frequency=0), "frequency=0"),
    ],
)
def test_bad_arguments_are_named(make: Callable[[], TaskFamily], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        make()


def test_an_unknown_argument_is_named() -> None:
    with pytest.raises(TypeError, match="batchsize"):
        tasks.ImageCNN(batchsize=3)  # pyright: ignore[reportCallIssue]


@every_family
def test_the_size_of_the_data_set_is_the_number_of_examples_that_are_drawn(name: str) -> None:
    """Of a table every row comes, sooner or later. Whatever is around a task leaves the number as it is."""
    task = task_of(name)
    inner: Any = task
    while hasattr(inner, "inner"):
        inner = inner.inner
    inner = getattr(inner, "table", inner)
    assert task.sizes == inner.sizes
    if task.sizes is None:
        assert name == "Quadratic"  # whose noise is new in every batch
        return
    size, batch = task.sizes
    drawn = [inner.draw("train", seeded(k)) for k in range(200)]
    assert {len(rows) for rows in drawn} == {batch}
    seen = len((torch.cat(drawn) // inner.overlap).unique())
    assert 0.9 * min(100 * batch, size) < seen <= size + 1
