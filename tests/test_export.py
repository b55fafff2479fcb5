"""Models leave Python: `jax.export` with an open batch size, and arrays that keep the devices on which they lie."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import numpy as np
import pytest
from jax import export

import genmod as gm

SMALL = {"num_layers": 2, "hidden_sizes": (8,)}
MODELS = {
    "real_nvp": gm.flows.real_nvp((3,), **SMALL),
    "masked_autoregressive_flow": gm.flows.masked_autoregressive_flow((3,), **SMALL),
    "conditional_spline": gm.flows.neural_spline_flow((3,), num_bins=3, context_shape=(2,), **SMALL),
    "normal": gm.densities.Normal((3,)),
}


def shapes(tree):
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), tree)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in ("normal", "real_nvp") else pytest.mark.slow) for name in MODELS]
)
def test_exported_with_an_open_batch_size(name, key):
    model = MODELS[name]
    x = np.random.default_rng(0).standard_normal((32, 3)).astype(np.float32)
    context = None if model.context_shape is None else np.ones((32, 2), np.float32)
    params = model.init(key, x, context)
    (size,) = export.symbolic_shape("batch")
    rows = jax.ShapeDtypeStruct((size, 3), np.float32)
    contexts = None if context is None else jax.ShapeDtypeStruct((size, 2), np.float32)

    def sample(params, key, like, context):
        return model.sample(params, key, () if context is not None else (like.shape[0],), context)

    log_prob = export.export(jax.jit(model.log_prob))(shapes(params), rows, contexts)
    draws = export.export(jax.jit(sample))(shapes(params), shapes(key), rows, contexts)
    for num in (1, 7, 1_000):
        own = np.tile(x, (32, 1))[:num]
        given = None if context is None else np.ones((num, 2), np.float32)
        np.testing.assert_allclose(log_prob.call(params, own, given), model.log_prob(params, own, given), rtol=1e-5, atol=1e-5)
        wanted = model.sample(params, key, () if given is not None else (num,), given)
        np.testing.assert_allclose(draws.call(params, key, own, given), wanted, rtol=1e-5, atol=1e-5)


SHARDED = """
    import jax, numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec
    import genmod as gm
    mesh = Mesh(np.array(jax.devices()), ("data",))
    flow = gm.flows.real_nvp((2,), 2, hidden_sizes=(8,))
    x = np.random.default_rng(0).standard_normal((4_000, 2)).astype(np.float32)
    params = flow.init(jax.random.key(0), x)
    rows = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    log_prob = flow.log_prob(params, rows)
    assert len(log_prob.sharding.device_set) == 4, log_prob.sharding
    assert log_prob.addressable_shards[0].data.shape == (1_000,)
    np.testing.assert_allclose(log_prob, flow.log_prob(params, x), rtol=1e-5, atol=1e-5)
    print("kept")
"""


def test_the_sharding_of_x_is_kept():
    flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    command = [sys.executable, "-c", textwrap.dedent(SHARDED)]
    root = Path(__file__).parent.parent
    result = subprocess.run(command, cwd=root, env=os.environ | flags, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0 and "kept" in result.stdout, result.stderr[-3000:]
