"""log Z by annealing against sums over all states."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import genmod as gm
from genmod.densities import BernoulliUnits, GaussianUnits
from genmod.inference import annealed_draws, annealed_log_prob, normalizer_bracket
from genmod.models import BoltzmannMachine, Normalized, RestrictedBoltzmannMachine

pytestmark = pytest.mark.usefixtures("quick_compile")
MACHINES = {
    "bernoulli": RestrictedBoltzmannMachine(BernoulliUnits((10,)), BernoulliUnits((6,)), num_sweeps=50),
    "gaussian": RestrictedBoltzmannMachine(GaussianUnits((4,)), BernoulliUnits((3,)), num_sweeps=50),
    "labelled": RestrictedBoltzmannMachine(BernoulliUnits((4,)), BernoulliUnits((3,)), num_labels=3, num_sweeps=50),
    "general": BoltzmannMachine((5,), 3, num_sweeps=50),
}


def case(name):
    """A machine, strong parameters, and data with other marginals."""
    model, rng = MACHINES[name], np.random.default_rng(0)
    x = rng.random((50, *model.event_shape)).astype(np.float32)
    x = x if name == "gaussian" else (x < 0.3).astype(np.uint8)
    context = np.arange(50) % 3 if name == "labelled" else None
    params = model.init(jax.random.key(0), x, context)
    scale = 0.3 if name == "gaussian" else 1.0
    params = jax.tree.map(lambda a: a + jnp.asarray(scale * rng.standard_normal(a.shape), a.dtype), params)
    return model, params, x if context is None else (x, context)


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("labelled", "general")]


@pytest.mark.parametrize("name", ["bernoulli", "gaussian", *SLOW])
def test_the_truth_lies_in_the_bracket(name, key):
    model, params, data = case(name)
    truth = float(model.log_normalizer(params))
    draws = None if name == "labelled" else Normalized(model).sample(params, jax.random.key(1), (1_000,))
    found = normalizer_bracket(model, params, data, key=key, draws=draws, num_chains=1_000, num_levels=30)
    assert (found.lower.side, found.upper.side) == (-1, 1)
    for side in found:
        # The weights have the right mean, so that the log is right but for its error; few levels leave a wide one.
        assert 0.005 < side.sem < 0.2 and abs(side.value - truth) < 4.5 * side.sem
        assert side.extras["k_hat"] < 0.7 and side.extras["effective_size"] > 50


def test_bounds_in_expectation(key):
    """Of brackets of one chain each."""
    model, params, data = case("bernoulli")
    truth, num = float(model.log_normalizer(params)), 64
    draws = Normalized(model).sample(params, jax.random.key(1), (num,))

    def one_chain(key, x):
        found = normalizer_bracket(model, params, data, key=key, draws=x[None], num_chains=1, num_levels=4)
        return found.lower.value, found.upper.value

    lower, upper = jax.jit(jax.vmap(one_chain))(jax.random.split(key, num), draws)
    for values, sign in ((lower, -1), (upper, 1)):
        mean, sem = sign * (values.mean() - truth), values.std() / np.sqrt(num)
        assert mean > 2 * sem


def test_the_log_probability_of_a_datum(key):
    model, params, data = case("bernoulli")
    truth = np.asarray(Normalized(model).log_prob(params, data[:10]))
    found = annealed_log_prob(model, params, data[:10], data, key=key, num_chains=200, num_levels=60)
    assert found.side == -1 and found.value.shape == (10,)
    # Forward chains of 60 levels end nearly in the machine's law.
    assert (np.abs(found.value - truth) < 4.5 * found.sem + 0.1).all()
    assert np.mean(found.value - truth) < 4.5 * np.sqrt(np.sum(np.square(found.sem))) / 10


class Quadratic(nn.Module):
    """3 |x|^2 / 2."""

    @nn.compact
    def __call__(self, x):
        return 0.5 * self.param("curvature", nn.initializers.constant(3.0), ()) * jnp.sum(x**2)


def tilted(**options):
    """N(0, I / 4) in the plane as a tilted N(0, I), whose Z is 1 / 4, and its parameters."""
    model = gm.models.EnergyModel((2,), Quadratic(), gm.densities.Normal((2,)), **options)
    return model, model.init(jax.random.key(0), np.random.default_rng(0).standard_normal((50, 2)))


def test_an_energy_is_annealed_from_its_base(key):
    model, params = tilted(step_size=0.2)
    x = np.ones((50, 2), np.float32)
    draws = annealed_draws(
        dataclasses.replace(model, num_sweeps=20), params, x, key=jax.random.key(1), num_draws=500, num_levels=20
    )
    square = (draws**2).mean(1)
    assert draws.shape == (500, 2) and abs(square.mean() - 0.25) < 4.5 * square.std() / np.sqrt(500)
    found = normalizer_bracket(model, params, x, key=key, draws=draws, num_chains=500, num_levels=20)
    for side in found:
        assert 0.005 < side.sem < 0.1 and abs(side.value + np.log(4.0)) < 4.5 * side.sem


@pytest.mark.slow
def test_an_energy_is_tempered_from_its_base(key):
    model, params = tilted(step_size=0.2)
    chains, x = gm.training.TemperedChains(400, 4, 5), jnp.zeros((1, 2))
    state = chains.init(model, params, key, gm.Batch(x))
    draw = jax.jit(lambda key, state: chains.draw(model, params, key, state, gm.Batch(x)))
    for i in range(20):
        state, samples, info = draw(jax.random.fold_in(key, i), state)
    square = (samples.x**2).mean(1)
    assert abs(square.mean() - 0.25) < 4.5 * square.std() / 20 and info["swap_rate"] > 0.3


def test_refused(key):
    no_base = gm.models.EnergyModel((2,), Quadratic())
    params = no_base.init(key, np.ones((3, 2)))
    with pytest.raises(ValueError, match="goes from the base of an EnergyModel to the model, and this one has none"):
        normalizer_bracket(no_base, params, np.ones((3, 2)), key=key)
    model, params, data = case("bernoulli")
    with pytest.raises(TypeError, match="^model must be an UnnormalizedModel"):
        normalizer_bracket(gm.flows.affine((2,)), {}, data, key=key)
    with pytest.raises(ValueError, match="^num_levels must be an integer >= 1, got 0"):
        normalizer_bracket(model, params, data, key=key, num_levels=0)
    with pytest.raises(TypeError, match=r"^batch must be integers in 0\.\.1, got float32"):
        normalizer_bracket(model, params, np.zeros((4, 10), np.float32), key=key)
    wanted = r"^params must be those of this RestrictedBoltzmannMachine, made by its init: params.* is missing"
    for call in (normalizer_bracket, lambda model, params, data, key: annealed_log_prob(model, params, data, data, key=key)):
        with pytest.raises(ValueError, match=wanted):
            call(model, {}, data, key=key)
    model, params, data = case("gaussian")
    with pytest.raises(ValueError, match="^data must be finite, got NaN or inf"):
        normalizer_bracket(model, params, np.asarray(data) * np.nan, key=key)
