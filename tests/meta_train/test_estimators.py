"""Estimators against brute force, against the true gradient, and against particles that diverge."""

import pytest
import torch

from lopt import InvalidInput, WeightSpace
from lopt.rules import SGDM, PerParameter
from meta_train.estimators import PES, ESSingle, FullES, Share, TruncatedBackprop, TruncatedES
from meta_train.horizons import Growing, LogUniform
from meta_train.keys import generator
from meta_train.module import signal_to_noise
from meta_train.objectives import FinalLoss, MeanLoss, Objective, ValidationLoss
from meta_train.unroll import Population, draw, start, unroll
from tasks import Mixture, Quadratic

DOUBLE = torch.float64
SEED = 5
FORGETFUL = 1e9  # a loss clip that never clips


def problem(**kwargs):
    family = Quadratic(dimensions=3, condition=5.0, dtype=DOUBLE, **kwargs)
    rule = SGDM(momentum=0.5).to(DOUBLE)
    with torch.no_grad():
        rule.log_scale.fill_(4.0)  # with the rule's learning rate of 0.01: steps of 0.55
    return family, rule, {k: p.detach().clone() for k, p in rule.named_parameters()}


def noise_of(theta, std, *name):
    """ε of one pair as the estimators draw it."""
    flat = std * torch.randn(len(theta), generator=generator(SEED, "perturbation", *name), dtype=DOUBLE)
    return dict(zip(theta, flat, strict=True))


@pytest.mark.parametrize("estimator_class", [PES, ESSingle, TruncatedES])
def test_equals_brute_force_over_two_episodes(estimator_class):
    """Every pair followed by hand: perturbations, resets, the sum ξ and the weights 1/(2 σ² N)."""
    family, rule, theta = problem(noise=0.3)
    estimator = estimator_class(pairs=4, truncation=2, horizon=6, std=0.05, loss_clip=FORGETFUL)
    particles = estimator.start(rule, family, SEED)
    task = family.sample(torch.Generator())
    xi = [{k: torch.zeros_like(p) for k, p in theta.items()} for _ in range(4)]
    episode, left = [0] * 4, [3, 3, 2, 1]
    state: list[list[Population]] = [[] for _ in range(4)]
    for iteration in range(7):
        gradient = {k: torch.zeros_like(p) for k, p in theta.items()}
        for i in range(4):
            name = (0, 0, i, episode[i], 0) if estimator_class is ESSingle else (0, 0, i, iteration)
            noise = noise_of(theta, 0.05, *name)
            init = generator(SEED, "init", 0, 0, i, episode[i])
            state[i] = state[i] or [start(rule, task, [task.init(init)])] * 2
            drawn = draw([task], "train", [generator(SEED, "train batch", 0, 0, i, iteration, 0)], 2)
            losses = []
            for sign, member in ((1, 0), (-1, 1)):
                own = {k: p + sign * noise[k] for k, p in theta.items()}
                lr = torch.full((2, 1), rule.default_lr, dtype=DOUBLE)
                state[i][member], loss = unroll(rule, own, task, state[i][member], drawn, lr)
                losses.append(loss.mean())
            for k in theta:
                xi[i][k] = xi[i][k] + noise[k] if estimator_class is PES else noise[k]
                gradient[k] += xi[i][k] * (losses[0] - losses[1]) / (2 * 0.05**2 * 4)
            left[i] -= 1
            if left[i] == 0:
                episode[i], left[i], state[i] = episode[i] + 1, 3, []
                xi[i] = {k: torch.zeros_like(p) for k, p in theta.items()}
        estimate = estimator.estimate(rule, theta, family, particles, SEED)
        particles = estimate.particles
        for k in theta:
            torch.testing.assert_close(estimate.gradient[k], gradient[k], rtol=1e-9, atol=1e-11)
        assert particles.cohorts[0].left.tolist() == left
        assert particles.cohorts[0].episode.tolist() == episode


def true_gradient(family, rule, theta, horizon, episodes, measure=lambda losses: losses.mean()):
    """The gradient of the objective over the whole horizon, by backpropagation through the whole unroll."""
    task = family.sample(torch.Generator())
    live = {k: p.clone().requires_grad_() for k, p in theta.items()}
    params = [task.init(torch.Generator().manual_seed(1000 + i)) for i in range(episodes)]
    lr = torch.full((horizon, episodes), rule.default_lr, dtype=DOUBLE)
    drawn = torch.zeros(horizon, episodes, 3, dtype=DOUBLE)
    _, losses = unroll(rule, live, task, start(rule, task, params), drawn, lr)
    return dict(zip(live, torch.autograd.grad(measure(losses), list(live.values())), strict=True))


def measured(estimator, meta_steps, group):
    """The mean estimate and its standard error; the estimates of `group` meta-steps share perturbations."""
    family, rule, theta = problem(noise=0.0)
    particles, values = estimator.start(rule, family, SEED), []
    for _ in range(meta_steps):
        estimate = estimator.estimate(rule, theta, family, particles, SEED)
        values.append(estimate.gradient["log_scale"])
        particles = estimate.particles
    means = torch.stack(values).reshape(-1, group).mean(1)
    return float(means.mean()), float(means.std() / len(means) ** 0.5)


def t_statistic(estimator, truth, meta_steps, group):
    mean, error = measured(estimator, meta_steps, group)
    return (mean - float(truth)) / error


@pytest.fixture(scope="module")
def truth():
    family, rule, theta = problem(noise=0.0)
    return true_gradient(family, rule, theta, horizon=6, episodes=20_000)["log_scale"]


UNBIASED = [(PES, 60, 6), (ESSingle, 60, 6), (FullES, 10, 1)]


@pytest.mark.parametrize(("estimator_class", "meta_steps", "group"), UNBIASED)
def test_the_unbiased_ones_are_unbiased(estimator_class, meta_steps, group, truth):
    estimator = estimator_class(pairs=100, truncation=1, horizon=6, std=0.01, loss_clip=FORGETFUL)
    assert abs(t_statistic(estimator, truth, meta_steps, group)) < 4


@pytest.mark.parametrize("estimator_class", [TruncatedES, TruncatedBackprop])
def test_the_truncated_ones_are_not(estimator_class, truth):
    estimator = estimator_class(pairs=60, truncation=2, horizon=6, loss_clip=FORGETFUL)  # σ is 0.01 by default
    assert abs(t_statistic(estimator, truth, 30, 3)) > 5


@pytest.mark.parametrize("estimator_class", [PES, FullES])
def test_the_final_loss_is_estimated_without_bias(estimator_class):
    family, rule, theta = problem(noise=0.0)
    truth = true_gradient(family, rule, theta, 6, 20_000, lambda losses: losses[-1].mean())["log_scale"]
    objective = FinalLoss(last=1)
    estimator = estimator_class(pairs=100, truncation=2, horizon=6, std=0.01, loss_clip=FORGETFUL, objective=objective)
    steps, group = (10, 1) if estimator_class is FullES else (30, 3)
    mean, error = measured(estimator, steps, group)
    assert abs(mean - truth) < 4 * error
    assert abs(mean - truth / 3) > 5 * error  # what a weight of 1 instead of the episode's 3 truncations would give


def test_backprop_equals_finite_differences():
    family = Quadratic(dimensions=3, condition=5.0, noise=0.2, dtype=DOUBLE)
    torch.manual_seed(0)
    rule = PerParameter(width=3, layers=1).to(DOUBLE)
    theta = {k: p.detach().clone() for k, p in rule.named_parameters()}
    estimator = TruncatedBackprop(pairs=3, truncation=4, horizon=8)
    particles = estimator.start(rule, family, SEED)
    gradient = estimator.estimate(rule, theta, family, particles, SEED).gradient

    def loss(name, place, shift):
        moved = {k: p.clone() for k, p in theta.items()}
        moved[name].view(-1)[place] += shift
        return estimator.estimate(rule, moved, family, particles, SEED).metrics["meta_loss"]

    for name, place in (("head.weight", 1), ("features.first.weight", 2), ("update.a", 0), ("update.b", 0)):
        numeric = (loss(name, place, 1e-5) - loss(name, place, -1e-5)) / 2e-5
        torch.testing.assert_close(gradient[name].view(-1)[place], numeric, rtol=1e-5, atol=1e-9)
        assert numeric.abs() > 1e-9


@pytest.mark.parametrize("estimator_class", [PES, TruncatedBackprop])
def test_who_diverged_is_counted_restarted_and_harmless(estimator_class):
    family, rule, theta = problem(noise=0.1)
    theta["log_scale"] = torch.tensor(200.0, dtype=DOUBLE)  # e^200: overflows within two truncations
    estimator = estimator_class(pairs=3, truncation=2, horizon=8)
    particles = estimator.start(rule, family, SEED)
    shares = []
    for _ in range(3):
        estimate = estimator.estimate(rule, theta, family, particles, SEED)
        particles = estimate.particles
        shares.append(float(estimate.metrics["diverged"]))
        assert all(bool(g.isfinite().all()) for g in estimate.gradient.values())
        assert bool(estimate.metrics["meta_loss"].isfinite())
    assert max(shares) == 1.0
    assert particles.cohorts[0].episode.min() >= 1
    assert all(bool(p.isfinite().all()) for p in particles.cohorts[0].population.params.values())


def test_a_clipped_difference_bounds_what_a_pair_does():
    family, rule, theta = problem(noise=0.3)
    free = PES(pairs=1, truncation=2, horizon=6, std=0.05)
    bounded = PES(pairs=1, truncation=2, horizon=6, std=0.05, difference_clip=1e-6)
    particles = free.start(rule, family, SEED)
    whole, clipped = (e.estimate(rule, theta, family, particles, SEED).gradient for e in (free, bounded))
    noise = noise_of(theta, 0.05, 0, 0, 0, 0)
    for k in theta:
        expected = noise[k] * whole[k].div(noise[k]).sign() * 1e-6 / (2 * 0.05**2)
        torch.testing.assert_close(clipped[k], expected)


@pytest.mark.parametrize("estimator_class", [PES, TruncatedBackprop])
def test_a_constant_in_the_loss_changes_no_meta_gradient(estimator_class):
    """Also where it takes the loss below zero, and losses that rise a little."""
    gradients = []
    for constant in (0.0, -10.0):
        family, rule, theta = problem(noise=0.3)
        loss = family.task.loss
        family.task.loss = lambda params, batch, loss=loss, c=constant: loss(params, batch) + c
        estimator = estimator_class(pairs=4, truncation=2, horizon=6, loss_clip=5.0)
        particles = estimator.start(rule, family, SEED)
        gradients.append(estimator.estimate(rule, theta, family, particles, SEED).gradient)
    for k, g in gradients[0].items():
        torch.testing.assert_close(gradients[1][k], g, rtol=1e-6, atol=1e-9)
    assert gradients[1]["log_scale"].abs() > 0


def snr_of(contributions):
    mean = contributions.mean(0)
    return float(signal_to_noise(mean.norm(), contributions.square().sum(1).mean(), len(contributions)))


def test_the_signal_to_noise_is_that_of_known_contributions():
    g = torch.Generator().manual_seed(0)
    noise = torch.stack([torch.randn(16, 2000, generator=g) for _ in range(50)])  # of a standard error 2000 / 16
    assert sum(snr_of(one) for one in noise) / 50 < 0.15
    mean = torch.full((2000,), 0.5)  # so 0.25 * 2000 of signal, against this
    assert sum(snr_of(one + mean) for one in noise) / 50 == pytest.approx(2.0, abs=0.05)


def test_staggered_starts_cover_the_horizon():
    family, rule, _ = problem()
    particles = PES(pairs=8, truncation=5, horizon=40).start(rule, family, 0)
    assert sorted(particles.cohorts[0].left.tolist()) == [1, 2, 3, 4, 5, 6, 7, 8]


def mixture():
    sizes = [Quadratic(dimensions=size, condition=5.0, noise=0.1, dtype=DOUBLE) for size in (2, 3, 5)]
    return Mixture(sizes)


def test_a_mixture_runs_as_populations_that_take_turns():
    family, (_, rule, theta) = mixture(), problem()
    estimator = PES(pairs=2, populations=3, truncation=2, horizon=6)
    particles, seen = estimator.start(rule, family, SEED), set()
    assert [cohort.left.tolist() for cohort in particles.cohorts] == [[3, 3], [2, 2], [1, 1]]
    for _ in range(8):
        for cohort in particles.cohorts:
            seen.add(cohort.population.params["w"].shape[1])
            assert cohort.population.params["w"].shape[0] == 4
            assert len(set(cohort.left.tolist())) == 1
        particles = estimator.estimate(rule, theta, family, particles, SEED).particles
    assert seen == {2, 3, 5}
    assert [int(cohort.generation) for cohort in particles.cohorts] == [2, 3, 3]


@pytest.mark.parametrize("estimator_class", [PES, ESSingle, FullES, TruncatedBackprop])
@pytest.mark.parametrize("make", [mixture, lambda: problem(noise=0.2)[0]])
def test_parts_of_the_pairs_add_up_to_all_of_them(estimator_class, make):
    """What two processes would do, and the mean of it; packed, joined and restored on the way."""
    family, (_, rule, theta) = make(), problem()
    estimator = estimator_class(pairs=4, populations=2, truncation=2, horizon=LogUniform(2, 8))
    whole = estimator.start(rule, family, SEED)
    parts = [estimator.start(rule, family, SEED, Share(rank, 2)) for rank in range(2)]
    for iteration in range(6):
        estimate = estimator.estimate(rule, theta, family, whole, SEED)
        shared = [estimator.estimate(rule, theta, family, part, SEED) for part in parts]
        for k in theta:
            torch.testing.assert_close(estimate.gradient[k], (shared[0].gradient[k] + shared[1].gradient[k]) / 2)
        whole, parts = estimate.particles, [one.particles for one in shared]
        packed = estimator.pack(whole)
        halves = [estimator.pack(part) for part in parts]
        for k, saved in enumerate(packed):
            for key, x in saved.items():
                joined = torch.cat([half[k][key] for half in halves]) if x.dim() else halves[0][k][key]
                torch.testing.assert_close(joined, x, equal_nan=True)
        if iteration == 3:
            whole = estimator.restore(rule, family, packed, SEED)
            parts = [estimator.restore(rule, family, packed, SEED, Share(rank, 2)) for rank in range(2)]


def test_equal_arguments_give_equal_estimates():
    family, rule, theta = problem()
    estimator = PES(pairs=2, truncation=3, horizon=6)
    first, second = (
        estimator.estimate(rule, theta, family, estimator.start(rule, family, 1), 1).gradient for _ in range(2)
    )
    other = estimator.estimate(rule, theta, family, estimator.start(rule, family, 2), 2).gradient
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert not torch.equal(first["log_scale"], other["log_scale"])


def test_the_squared_norm_is_that_of_the_contributions_of_single_pairs():
    family, rule, theta = problem(noise=0.3)
    estimator = PES(pairs=3, truncation=2, horizon=6)
    singles = [PES(pairs=3, truncation=2, horizon=6).start(rule, family, SEED, Share(rank, 3)) for rank in range(3)]
    gradients = [estimator.estimate(rule, theta, family, one, SEED).gradient for one in singles]
    norms = [sum(float(g.square().sum()) for g in gradient.values()) for gradient in gradients]
    whole = estimator.estimate(rule, theta, family, estimator.start(rule, family, SEED), SEED)
    assert float(whole.metrics["squared_norm"]) == pytest.approx(sum(norms) / 3)


@pytest.mark.parametrize("share", ["tell_horizon", "tell_loss"])
@pytest.mark.parametrize("told", [0.0, 1.0])
def test_the_rule_is_told_the_horizon_and_the_loss(told, share):
    family, _, _ = problem()
    clocks = []

    class Spy(SGDM):
        def forward(self, space, params, grads, state, clock):
            clocks.append({"tell_horizon": clock.horizon, "tell_loss": clock.loss})
            return super().forward(space, params, grads, state, clock)

    rule = Spy().to(DOUBLE)
    theta = {k: p.detach() for k, p in rule.named_parameters()}
    estimator = PES(pairs=2, truncation=2, horizon=4, **{share: told})
    estimator.estimate(rule, theta, family, estimator.start(rule, family, SEED), SEED)
    assert len(clocks) == 2 and all((clock[share] is not None) == bool(told) for clock in clocks)
    other = ({"tell_horizon", "tell_loss"} - {share}).pop()
    assert all(clock[other] is not None for clock in clocks), "the other is told as before"


@pytest.mark.parametrize("told", [0.0, 1.0])
def test_the_rule_is_told_the_symmetry_or_the_shapes(told):
    family, _, _ = problem()
    spaces = []

    class Spy(SGDM):
        def forward(self, space, params, grads, state, clock):
            spaces.append(space)
            return super().forward(space, params, grads, state, clock)

    rule = Spy().to(DOUBLE)
    theta = {k: p.detach() for k, p in rule.named_parameters()}
    estimator = PES(pairs=2, truncation=2, horizon=4, tell_symmetry=told)
    particles = estimator.start(rule, family, SEED)
    estimator.estimate(rule, theta, family, particles, SEED)
    known = particles.cohorts[0].tasks[0].weight_space
    assert set(spaces) == {known if told else WeightSpace.from_shapes(known.shapes)}


class Recorder(Objective):
    """Keeps what it is given."""

    name = "recorder"
    validates = True

    def measure(self, losses, validation):
        self.seen = losses, validation
        return losses.mean(0)


def test_objectives_by_hand():
    losses = torch.arange(12.0).reshape(4, 3)
    validation = torch.tensor([5.0, 6.0, 7.0])
    left, length = torch.tensor([1, 2, 3]), torch.tensor([3, 3, 3])
    assert MeanLoss().measure(losses, None).tolist() == [4.5, 5.5, 6.5]
    assert MeanLoss().weight(left, length).tolist() == [1, 1, 1]
    late = MeanLoss(late=2).weight(torch.tensor([3, 2, 1]), torch.tensor([3, 3, 3]))
    assert late.tolist() == pytest.approx([3 / 14, 12 / 14, 27 / 14])  # their mean is 1
    assert ValidationLoss(late=1).weight(torch.tensor([2, 4]), torch.tensor([2, 4])).tolist() == pytest.approx(
        [2 / 3, 0.4]
    )
    assert FinalLoss(last=2).measure(losses, None).tolist() == [7.5, 8.5, 9.5]
    assert FinalLoss().weight(left, length).tolist() == [3, 0, 0]
    assert ValidationLoss().measure(losses, validation).tolist() == [5.0, 6.0, 7.0]


def test_the_validation_loss_is_that_of_the_weights_after_the_truncation():
    family, rule, theta = problem(noise=0.4)
    objective = Recorder()
    estimator = PES(pairs=1, truncation=3, horizon=6, std=1e-9, objective=objective, loss_clip=FORGETFUL)
    estimate = estimator.estimate(rule, theta, family, estimator.start(rule, family, SEED), SEED)
    losses, validation = objective.seen
    assert losses.shape == (3, 2)
    task, params = family.sample(torch.Generator()), estimate.particles.cohorts[0].population.params
    wanted = torch.func.vmap(lambda p: task.loss(p, task.evaluation_batch("validation")))(params)
    torch.testing.assert_close(validation, wanted)  # a quadratic's validation batch is always the same


@pytest.mark.parametrize(
    ("horizon", "iteration", "low", "high"),
    [(LogUniform(10, 1000), 0, 10, 1000), (Growing(10, 160, over=4), 2, 40, 40), (Growing(10, 160, 4), 99, 160, 160)],
)
def test_horizons_are_drawn_in_their_range(horizon, iteration, low, high):
    drawn = torch.tensor([horizon.draw(torch.Generator().manual_seed(seed), iteration) for seed in range(400)])
    assert low - 1e-3 <= drawn.min() and drawn.max() <= high + 1e-3
    if low < high:  # the logarithm is uniform: half of them lie below the geometric mean
        assert abs(float((drawn < (low * high) ** 0.5).float().mean()) - 0.5) < 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"horizon": 20, "truncation": 50}, "horizon: 20 inner steps with a truncation of 50.*Try horizon=50"),
        ({"horizon": 120, "truncation": 50}, "Try horizon=100"),
        ({"horizon": LogUniform(5, 20), "truncation": 50}, "at most 20 inner steps"),
        ({"pairs": 0}, "pairs: 0"),
        ({"populations": 0}, "populations: 0"),
        ({"std": 0.0}, "std"),
        ({"std": float("nan")}, "std"),
        ({"difference_clip": 0.0}, "difference_clip"),
        ({"tell_horizon": 1.5}, "tell_horizon: 1.5"),
        ({"tell_symmetry": -0.5}, "tell_symmetry: -0.5"),
        ({"tell_loss": 2.0}, "tell_loss: 2.0"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(InvalidInput, match=message):
        PES(**arguments)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LogUniform(0, 10), "horizon: 0 to 10"),
        (lambda: LogUniform(20, 10), "horizon: 20 to 10"),
        (lambda: Growing(1, 10, 0), "horizon.over: 0"),
        (lambda: FinalLoss(0), "objective.last: 0"),
        (lambda: MeanLoss(late=-1), "objective.late: -1"),
        (lambda: Share(0, 3).of(4), "4 cannot be shared equally among 3"),
    ],
)
def test_bad_schedules_and_objectives_are_named(make, message):
    with pytest.raises(InvalidInput, match=message):
        make()


def test_what_does_not_fit_is_not_restored():
    family, rule, _ = problem()
    estimator = PES(pairs=2, truncation=2, horizon=4)
    packed = estimator.pack(estimator.start(rule, family, SEED))
    with pytest.raises(InvalidInput, match="populations of .2. pairs, and not 1 of 3"):
        PES(pairs=3, truncation=2, horizon=4).restore(rule, family, packed, SEED)
    with pytest.raises(InvalidInput, match="does not fit"):
        estimator.restore(rule, Quadratic(dimensions=4, dtype=DOUBLE), packed, SEED)
