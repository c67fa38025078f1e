"""Features in and out: from modules, state dicts, gradients and files, and back into modules; all of it checked."""

import io
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lopt import InvalidInput, WeightSpace
from lopt.functionals import (
    EquivariantLinear,
    apply_updates,
    call,
    features_of,
    gradients_of,
    load_checkpoints,
    presets,
    stack_networks,
    tensors_of,
)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


SPACE = WeightSpace.linear_stack(dict(network().named_parameters()))
X = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def parameters(net: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in net.named_parameters()}


# --- in --------------------------------------------------------------------------------------------------------------


def test_a_module_and_its_gradients_become_channels():
    net = network()
    net(X).square().sum().backward()
    x = features_of(SPACE, net, gradients_of(SPACE, net), parameters(net))
    assert list(x) == list(SPACE)
    for name, p in net.named_parameters():
        assert p.grad is not None
        torch.testing.assert_close(x[name], torch.stack([p, p.grad, p], -1), rtol=0, atol=0)
    assert EquivariantLinear(SPACE, 3, 2).double()(x)["2.bias"].shape == (2, 2)


def test_gradients_flow_through_features():
    net = network()
    features_of(SPACE, net)["0.bias"].sum().backward()
    assert [None if p.grad is None else p.grad.sum().item() for p in net.parameters()] == [None, 4, None, None]


def test_gradients_of_a_network_with_frozen_parameters():
    net = network()
    net[2].requires_grad_(False)
    net(X).sum().backward()
    part = SPACE.restrict(["0.weight", "0.bias"])
    assert list(features_of(part, gradients_of(part, net))) == ["0.weight", "0.bias"]
    with pytest.raises(InvalidInput, match=r"'2\.weight' has no gradient.*space\.restrict"):
        gradients_of(SPACE, net)


@pytest.mark.parametrize("batch", [(), (5,), (5, 2)])
def test_batch_axes_go_through(batch):
    stacked = {name: torch.randn(*batch, *shape) for name, shape in SPACE.shapes.items()}
    x = features_of(SPACE, stacked, stacked)
    assert all(x[name].shape == (*batch, *shape, 2) for name, shape in SPACE.shapes.items())
    for channel in (0, 1, -1):
        back = tensors_of(SPACE, x, channel)
        assert all(torch.equal(back[name], stacked[name]) for name in SPACE)


def test_networks_are_stacked_in_order():
    nets = [network(seed) for seed in range(3)]
    batch = stack_networks(SPACE, [nets[0], nets[1].state_dict(), parameters(nets[2])])
    for i, net in enumerate(nets):
        assert all(torch.equal(batch[name][i], p) for name, p in net.named_parameters())
    twice = stack_networks(SPACE, [batch, batch])
    assert twice["0.weight"].shape == (2, 3, 4, 3)


def test_buffers_are_named_or_left_out():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    space = WeightSpace.from_shapes(dict(net.named_parameters()))
    assert set(features_of(space, net)) == set(space)  # a module's parameters are asked for, and no more
    with pytest.raises(InvalidInput, match=r"network 0.*1\.running_mean.*strict=False"):
        stack_networks(space, [net.state_dict()])
    assert set(stack_networks(space, [net.state_dict()], strict=False)) == set(space)


def test_the_order_is_that_of_the_space():
    shuffled = dict(reversed(list(parameters(network()).items())))
    assert list(features_of(SPACE, shuffled)) == list(SPACE) == list(stack_networks(SPACE, [shuffled]))


# --- out -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
@pytest.mark.parametrize("own", [False, True])
def test_call_is_a_loop_over_networks(batch, own):
    net = network()
    tensors = {k: torch.randn(*batch, *s, dtype=torch.float64) for k, s in SPACE.shapes.items()}
    x = torch.randn(*batch, 6, 3, dtype=torch.float64) if own else X
    y = call(net, tensors, x, own_inputs=own)
    assert y.shape == (*batch, 6, 2)
    for index in torch.cartesian_prod(*map(torch.arange, batch)).reshape(-1, len(batch)) if batch else [()]:
        at = tuple(int(i) for i in index)
        one = network()
        one.load_state_dict({name: t[at] for name, t in tensors.items()})
        torch.testing.assert_close(y[at], one(x[at] if own else x))
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), network().parameters(), strict=True))


def test_call_with_some_of_the_parameters_and_keywords():
    class Scaled(nn.Linear):
        def forward(self, x: Tensor, factor: float = 1.0) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
            return factor * super().forward(x)

    net = Scaled(3, 2).double()
    biases = {"bias": torch.randn(5, 2, dtype=torch.float64)}
    torch.testing.assert_close(call(net, biases, X, factor=2.0), 2 * (X @ net.weight.T + biases["bias"][:, None]))


def test_call_keeps_tied_parameters_tied():
    net = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5, bias=False))
    net[1].weight = net[0].weight
    table, tokens = torch.randn(3, 5, 4), torch.tensor([0, 4])
    torch.testing.assert_close(call(net, {"0.weight": table}, tokens), table[:, tokens] @ table.mT)


def test_call_with_dropout():
    net = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5))
    batch = stack_networks(WeightSpace.linear_stack(dict(net.named_parameters())), [net] * 8)
    y = call(net, batch, torch.randn(20, 3), randomness="different")
    assert not torch.equal(y[0], y[1])


def test_updates_are_applied_to_new_tensors():
    net, before = network(), parameters(network())
    updates = {name: torch.ones_like(p) for name, p in net.named_parameters()}
    after = apply_updates(SPACE, net, updates, scale=-0.5)
    assert all(torch.equal(after[name], before[name] - 0.5) for name in SPACE)
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())
    many = apply_updates(SPACE, net, {name: torch.stack([u, 2 * u]) for name, u in updates.items()})
    assert all(torch.equal(many[name][1], before[name] + 2) for name in SPACE)


def test_an_edit_of_a_batch_of_networks_is_learned_end_to_end():
    """The whole way: networks -> features -> functional -> update -> networks run on data -> loss -> gradients."""
    torch.manual_seed(0)
    nets = [network(seed) for seed in range(4)]
    batch = stack_networks(SPACE, [parameters(net) for net in nets])
    functional = presets.stack("hnp", SPACE, [1, 8, 1], nn.Tanh).double()
    scale = nn.Parameter(torch.tensor(0.01, dtype=torch.float64))
    optimizer = torch.optim.Adam([*functional.parameters(), scale], lr=1e-2)

    def loss() -> Tensor:
        edited = apply_updates(SPACE, batch, tensors_of(SPACE, functional(features_of(SPACE, batch))), scale)
        return call(nets[0], edited, X).square().mean()

    first = loss().item()
    for _ in range(30):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        assert scale.grad is not None and scale.grad != 0
        optimizer.step()
    assert loss().item() < 0.5 * first


# --- what does not fit -----------------------------------------------------------------------------------------------


def without(name: str) -> dict[str, Tensor]:
    return {k: v for k, v in parameters(network()).items() if k != name}


GOOD = parameters(network())
TWO = {k: torch.stack([v, v]) for k, v in GOOD.items()}


@pytest.mark.parametrize(
    ("call_it", "complaint"),
    [
        (lambda: features_of(SPACE), "sources: none"),
        (lambda: features_of(SPACE, GOOD, without("2.bias")), r"source 1: .*missing \['2\.bias'\]"),
        (lambda: features_of(SPACE, GOOD | {"extra": torch.ones(1)}), r"source 0: .*not in the space \['extra'\]"),
        (
            lambda: features_of(SPACE, GOOD | {"0.bias": torch.ones(5)}),
            r"source 0: '0\.bias' has shape \(5,\), wanted \(4\)",
        ),
        (
            lambda: features_of(SPACE, GOOD | {"0.bias": torch.ones(2, 4)}),
            r"'0\.bias' has shape \(2, 4\), wanted \(4\)",
        ),
        (lambda: features_of(SPACE, TWO | {"0.bias": torch.ones(4)}), r"'0\.bias' has shape \(4,\), wanted \(2, 4\)"),
        (lambda: features_of(SPACE, GOOD | {"0.weight": torch.ones(())}), r"'0\.weight' has shape \(\), wanted"),
        (lambda: features_of(SPACE, GOOD, TWO), r"source 1: its batch axes are \(2,\), those of source 0 are \(\)"),
        (lambda: features_of(SPACE, GOOD | {"0.bias": torch.ones(4).long()}), r"'0\.bias' is of type torch\.int64"),
        (lambda: features_of(SPACE, dict[str, Any](GOOD | {"0.bias": 1.0})), r"'0\.bias' is of type float"),
        (lambda: features_of(SPACE, nn.Linear(3, 4)), r"source 0: .*missing \['0\.weight'"),
        (lambda: gradients_of(SPACE, network()), r"parameter '0\.weight' has no gradient. Call backward"),
        (lambda: stack_networks(SPACE, []), "networks: none"),
        (lambda: stack_networks(SPACE, [GOOD, without("0.bias")]), r"network 1: .*missing \['0\.bias'\]"),
        (lambda: stack_networks(SPACE, [GOOD, TWO]), r"network 1: its batch axes are \(2,\)"),
        (lambda: tensors_of(SPACE, features_of(SPACE, GOOD), 1), r"channel: 1; features '0\.weight'"),
        (lambda: tensors_of(SPACE, features_of(SPACE, GOOD), -2), "channel: -2"),
        (lambda: tensors_of(SPACE, GOOD), r"'0\.weight' has shape \(4, 3\), wanted \(\*batch, 4, 3, channels\)"),
        (lambda: apply_updates(SPACE, GOOD, without("0.bias")), r"updates: .*missing \['0\.bias'\]"),
        (lambda: apply_updates(SPACE, TWO, {k: torch.stack([v] * 3) for k, v in GOOD.items()}), "do not broadcast"),
        (lambda: call(network(), GOOD | {"nothing": torch.ones(1)}, X), r"\['nothing'\] are no parameters"),
        (lambda: call(network(), GOOD | {"0.bias": torch.ones(3)}, X), r"'0\.bias' has shape \(3,\)"),
        (lambda: call(network(), TWO, X, own_inputs=True), r"argument 0 has shape \(6, 3\).*\(2,\)"),
    ],
)
def test_what_does_not_fit_is_named(call_it, complaint):
    with pytest.raises(InvalidInput, match=complaint):
        call_it()


# --- a folder of checkpoints -----------------------------------------------------------------------------------------


def write(folder: Path, count: int = 4) -> list[dict[str, Tensor]]:
    """step_8.safetensors, step_9.pt, step_10.safetensors, step_11.pt: the order is by number and not by letter."""
    networks = [parameters(network(seed)) for seed in range(count)]
    for i, tensors in enumerate(networks):
        if i % 2:
            torch.save(tensors, folder / f"step_{8 + i}.pt")
        else:
            save_file(tensors, folder / f"step_{8 + i}.safetensors")
    return networks


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def test_a_folder_is_a_sequence_in_order(tmp_path):
    networks = write(tmp_path)
    (tmp_path / "notes.txt").write_text("not a checkpoint")
    (tmp_path / "older.pt").mkdir()
    folder = load_checkpoints(tmp_path, SPACE)
    assert len(folder) == 4
    assert folder.names == ["step_8", "step_9", "step_10", "step_11"] == [entry.name for entry in folder]
    assert all(same(entry.tensors, wanted) for entry, wanted in zip(folder, networks, strict=True))
    assert same(folder[-1].tensors, networks[-1])
    with pytest.raises(IndexError):
        folder[4]
    assert folder.skipped == {}


def test_batches_of_a_folder(tmp_path):
    networks = write(tmp_path)
    folder = load_checkpoints(str(tmp_path), SPACE)
    names, tensors = folder.batch()
    assert names == folder.names
    assert same(tensors, stack_networks(SPACE, networks))
    some = folder.batch([2, 0])
    assert (some.names, same(some.tensors, stack_networks(SPACE, [networks[2], networks[0]]))) == (
        ["step_10", "step_8"],
        True,
    )
    assert [batch.names for batch in folder.batches(3)] == [["step_8", "step_9", "step_10"], ["step_11"]]
    with pytest.raises(InvalidInput, match="size: 0"):
        folder.batches(0)


def test_a_folder_under_a_data_loader(tmp_path):
    networks = write(tmp_path)
    loader = DataLoader(load_checkpoints(tmp_path, SPACE), batch_size=2)
    names, tensors = zip(*loader, strict=True)
    assert [name for batch in names for name in batch] == ["step_8", "step_9", "step_10", "step_11"]
    assert same(tensors[1], stack_networks(SPACE, networks[2:]))


def test_entries_are_read_when_they_are_asked_for(tmp_path):
    write(tmp_path)
    folder = load_checkpoints(tmp_path, SPACE)
    other = parameters(network(9))
    torch.save(other, tmp_path / "step_9.pt")
    assert same(folder[1].tensors, other)
    (tmp_path / "step_9.pt").unlink()
    with pytest.raises(InvalidInput, match=r"step_9\.pt: cannot be read"):
        folder[1]


def test_entries_are_no_views_of_their_files(tmp_path):
    networks = write(tmp_path)
    folder = load_checkpoints(tmp_path, SPACE)
    for i in range(2):
        folder[i].tensors["0.bias"].zero_()
        assert same(folder[i].tensors, networks[i])


def test_entry_prefix_and_buffers(tmp_path):
    state = {f"module.{name}": p for name, p in GOOD.items()} | {"module.steps": torch.tensor(3), "ema": torch.ones(1)}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "a.pt")
    folder = load_checkpoints(tmp_path, SPACE, entry="state_dict", prefix="module.", strict=False)
    assert same(folder[0].tensors, GOOD)
    with pytest.raises(InvalidInput, match=r"a\.pt: .*not in the space \['steps'\]"):
        load_checkpoints(tmp_path, SPACE, entry="state_dict", prefix="module.")
    with pytest.raises(InvalidInput, match=r"no entry 'model'; it holds \['state_dict', 'epoch'\]"):
        load_checkpoints(tmp_path, SPACE, entry="model")
    with pytest.raises(InvalidInput, match="entry='state_dict'"):
        load_checkpoints(tmp_path, SPACE)


class Harmful:
    def __reduce__(self):
        return (Path.touch, (Path(__file__).with_name("executed"),))


def bad_files() -> dict[str, bytes]:
    """What can be wrong with one file, by its name, which the error must hold."""

    def pickled(value: object) -> bytes:
        buffer = io.BytesIO()
        torch.save(value, buffer)
        return buffer.getvalue()

    return {
        "empty.pt": b"",
        "empty.safetensors": b"",
        "text.pt": b"weights",
        "text.safetensors": b"weights",
        "cut.pt": pickled(GOOD)[:-200],
        "cut.safetensors": save(GOOD)[:-8],
        "harmful.pt": pickled({"0.weight": Harmful()}),
        "harmful legacy.pt": pickle.dumps(Harmful(), protocol=2),
        "module.pt": pickled(network()),
        "list.pt": pickled([1, 2]),
        "missing.pt": pickled(without("0.bias")),
        "missing.safetensors": save(without("0.bias")),
        "shape.safetensors": save(GOOD | {"0.bias": torch.ones(5)}),
        "batch.safetensors": save({k: v.contiguous() for k, v in TWO.items()}),
        "integers.safetensors": save(GOOD | {"0.bias": torch.ones(4).long()}),
        "numbers.pt": pickled({name: p.tolist() for name, p in GOOD.items()}),
    }


@pytest.mark.parametrize("name", bad_files())
def test_a_bad_file_is_named_or_skipped_and_reported(tmp_path, name):
    write(tmp_path)
    (tmp_path / name).write_bytes(bad_files()[name])
    with pytest.raises(InvalidInput, match=name.replace(".", r"\.")):
        load_checkpoints(tmp_path, SPACE)
    with pytest.warns(UserWarning, match="1 of 5 checkpoints"):
        folder = load_checkpoints(tmp_path, SPACE, on_error="skip")
    assert folder.names == ["step_8", "step_9", "step_10", "step_11"]
    assert list(folder.skipped) == [name]
    assert name in folder.skipped[name]
    assert not Path(__file__).with_name("executed").exists()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.sampled_from(["a.pt", "a.safetensors"]), st.integers(0, 10_000), st.integers(0, 2))
def test_damage_is_an_error_of_ours_or_does_no_harm(tmp_path_factory, name, seed, kind):
    """Any bytes: what comes back fits the space, or InvalidInput names the file. Nothing else is raised."""
    folder, rng = tmp_path_factory.mktemp("damaged"), random.Random(seed)
    path = folder / name
    (save_file if name.endswith("safetensors") else torch.save)(GOOD, path)
    data = bytearray(path.read_bytes())
    if kind == 0:
        del data[rng.randrange(len(data)) :]
    else:
        for _ in range(kind * 3):
            data[rng.randrange(min(len(data), 1000))] = rng.randrange(256)
    path.write_bytes(data)
    try:
        (entry,) = load_checkpoints(folder, SPACE)
    except InvalidInput as error:
        assert name in str(error)
    else:
        assert {k: tuple(t.shape) for k, t in entry.tensors.items()} == SPACE.shapes


def test_folders_that_cannot_be(tmp_path):
    with pytest.raises(InvalidInput, match="there is no folder"):
        load_checkpoints(tmp_path / "nowhere", SPACE)
    with pytest.raises(InvalidInput, match=r"holds no file that ends in \.safetensors, \.pt"):
        load_checkpoints(tmp_path, SPACE)
    (tmp_path / "a.pt").write_bytes(b"")
    with pytest.raises(InvalidInput, match="none of the 1 files fits"):
        load_checkpoints(tmp_path, SPACE, on_error="skip")
    with pytest.raises(InvalidInput, match="on_error: 'ignore'"):
        load_checkpoints(tmp_path, SPACE, on_error="ignore")  # pyright: ignore[reportArgumentType]
