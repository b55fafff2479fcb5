"""Spectral normalisation against the singular value decomposition of NumPy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genmod import nets
from genmod.core.params import Fixed, num_params
from genmod.nets import spectral_state, spectrally_normalized

pytestmark = pytest.mark.usefixtures("quick_compile")
X = jnp.array([0.3, -1.2, 0.8])


def largest(kernel):
    """The largest singular value, a kernel of a convolution reshaped."""
    return np.linalg.svd(np.asarray(kernel, np.float64).reshape(-1, kernel.shape[-1]), compute_uv=False)[0]


def kernels(params):
    return [leaf for path, leaf in jax.tree.leaves_with_path(params) if path[-1].key == "kernel"]


@pytest.mark.parametrize(
    ("module", "x"), [(nets.MLP((9, 5)), X), (nets.GlowNet(4), jnp.ones((4, 4, 2))), (nets.ResNet(3, 1), jnp.ones((4, 4, 2)))]
)
def test_every_kernel_has_the_bound(module, x, key):
    params = nets.init(module, key, x)
    state = spectral_state(key, params)
    found, state = spectrally_normalized(params, state, bound=0.7, num_iterations=200)
    assert jax.tree.structure(found) == jax.tree.structure(params) and num_params(state) == 0
    for before, after in zip(kernels(params), kernels(found), strict=True):
        np.testing.assert_allclose(largest(after), 0.7, rtol=1e-5)
        np.testing.assert_allclose(after, before * (0.7 / largest(before)), rtol=1e-5, atol=1e-6)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), params, found)
    assert not any(kernels(same)) and all(leaf for path, leaf in jax.tree.leaves_with_path(same) if path[-1].key != "kernel")


def test_kernels_of_heads(key):
    """The layer inputs -> (heads, dim) may be larger than the bound by sqrt(min(heads, dim)): one input, orthonormal heads."""
    heads = nn.DenseGeneral((3, 3), use_bias=False)
    params = {"kernel": 5.0 * jnp.eye(3)[None]}
    found, _ = spectrally_normalized(params, spectral_state(key, params), num_iterations=200)
    np.testing.assert_allclose(largest(found["kernel"]), 1.0, rtol=1e-5)
    np.testing.assert_allclose(jnp.linalg.norm(nets.apply(heads, found, jnp.ones(1))), np.sqrt(3), rtol=1e-5)


def test_the_state_converges_while_training_goes_on(key):
    """One iteration at each step, while the kernel moves as fast as by a learning rate of 1e-3."""
    params = nets.init(nets.MLP((12,)), key, jnp.ones(7))
    state = spectral_state(key, params)

    @jax.jit
    def step(params, state, key):
        normal, state = spectrally_normalized(params, state)
        moves = jax.tree.map(lambda p: 1e-3 * jax.random.normal(key, p.shape), params)
        return jax.tree.map(jnp.add, params, moves), state, normal

    excess = []
    for i in range(60):
        params, state, normal = step(params, state, jax.random.fold_in(key, i))
        excess.append(largest(normal["Dense_0"]["kernel"]) - 1)
    assert excess[0] > 0.02 and max(excess[40:]) < 2e-4
    assert min(excess) > -1e-6  # the estimate is from below


def test_the_gradient_against_finite_differences(key, x64):
    """Of W / s(W), with vectors that have converged: the part of their own motion vanishes."""
    params = {"kernel": jax.random.normal(key, (5, 4))}
    weight = jnp.cos(jnp.arange(20.0)).reshape(5, 4)
    state = spectrally_normalized(params, spectral_state(key, params), num_iterations=500)[1]

    def value(kernel):
        return jnp.sum(weight * spectrally_normalized({"kernel": kernel}, state)[0]["kernel"])

    def exact(kernel):
        return float(np.sum(np.asarray(weight) * kernel / largest(kernel)))

    kernel, step = np.asarray(params["kernel"]), 1e-6
    moves = step * np.eye(20).reshape(20, 5, 4)
    wanted = [(exact(kernel + move) - exact(kernel - move)) / (2 * step) for move in moves]
    np.testing.assert_allclose(np.ravel(jax.grad(value)(params["kernel"])), wanted, rtol=1e-6, atol=1e-8)


def test_the_wrapper_is_a_module_whose_slope_is_bounded(key):
    """|net(x) - net(y)| <= bound^2 |x - y| of two layers; the same module without it exceeds that."""
    body = nets.MLP((16, 16), jnp.tanh)
    module = nets.SpectralNorm(body, 0.9, num_iterations=50)
    params = jax.tree.map(lambda p: 3 * p, nets.init(module, key, X))
    assert num_params(params) == num_params(nets.init(body, key, X))
    x = jax.random.normal(key, (200, 3))

    def slopes(fn):
        jacobians = np.asarray(jax.jit(jax.vmap(jax.jacfwd(fn)))(x), np.float64)
        return np.linalg.svd(jacobians, compute_uv=False)[:, 0]

    bounded = slopes(lambda x: nets.apply(module, params, x))
    assert 0.1 < bounded.max() <= 0.9**2 * (1 + 1e-4)
    assert slopes(lambda x: nets.apply(body, params["unnormalized"], x)).max() > 0.9**2
    assert module == nets.SpectralNorm(body, 0.9, num_iterations=50) and hash(module)


def test_a_kernel_of_zeros_stays_has_a_gradient_and_can_grow(key):
    params = {"kernel": jnp.zeros((3, 2))}
    state = spectral_state(key, params)
    found, after = spectrally_normalized(params, state)
    assert (found["kernel"] == 0).all() and jnp.isfinite(after.tree["['kernel']"]).all()
    slope = jax.grad(lambda p: spectrally_normalized(p, state)[0]["kernel"].sum())(params)
    np.testing.assert_allclose(slope["kernel"], 1.0)
    grown = spectrally_normalized({"kernel": jnp.array([[3.0, 0.0], [0.0, 1.0], [0.0, 0.0]])}, after, num_iterations=50)[0]
    np.testing.assert_allclose(largest(grown["kernel"]), 1.0, rtol=1e-5)


def test_it_stands_in_front_of_a_head_of_convolutions(key):
    x = jnp.ones((4, 4, 2))
    head = nets.ZeroHead(nets.SpectralNorm(nets.GlowNet(4)), 3)
    assert nets.init(head, key, x)["Conv_0"]["kernel"].shape == (3, 3, 4, 3)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda p, s: spectrally_normalized(p, s, bound=0.0), "bound must be > 0"),
        (lambda p, s: spectrally_normalized(p, s, num_iterations=0), "num_iterations must be an integer >= 1, got 0"),
        (lambda p, s: spectrally_normalized({"kernel": jnp.ones((2, 2))}, s), "state must be that of spectral_state"),
        (lambda p, s: spectral_state(jax.random.key(0), {"bias": jnp.ones(2)}), 'two axes or more that is named "kernel"'),
        (lambda p, s: nets.SpectralNorm(nets.MLP((4,)), -1.0), "bound must be > 0"),
        (lambda p, s: nets.SpectralNorm(nets.MLP((4,)), num_iterations=0), "num_iterations must be an integer >= 1"),
    ],
)
def test_mistakes(call, match, key):
    params = nets.init(nets.MLP((4,)), key, X)
    with pytest.raises(ValueError, match=match):
        call(params, spectral_state(key, params))
    with pytest.raises(TypeError, match=r"module must be a Linen module, an instance .*, got <class 'genmod\.nets\..*MLP'>"):
        nets.SpectralNorm(nets.MLP)
    assert isinstance(spectral_state(key, params), Fixed)
