"""The classifier two-sample test (Lopez-Paz & Oquab 2017, arXiv:1610.06545): how often a network tells two samples apart.

Held-out accuracy, the mean of those of both samples, so that chance is 1/2 at any sizes. No classifier does better than
1/2 + TV(p, q) / 2, TV the total variation distance of the laws.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import ArrayLike

from genmod.core.checks import check_count, check_positive
from genmod.core.statistics import Measured, mean_and_sem
from genmod.core.types import Array, Key
from genmod.metrics.samples import checked_samples
from genmod.nets import MLP, FlatNet
from genmod.nets.functional import apply, init

# Rows of each sample in a minibatch.
_BATCH = 128


def c2st(
    x: ArrayLike,
    y: ArrayLike,
    *,
    hidden_sizes: Sequence[int] = (64, 64),
    num_folds: int = 5,
    num_steps: int = 500,
    learning_rate: float = 5e-3,
    weight_decay: float = 1e-2,
    seed: int = 0,
) -> Measured:
    """The cross-validated accuracy of a network that tells x from y, and its standard error: 1/2 where it cannot.

    Args:
      x, y: samples or features, (n,) + event shape and (m,) + event shape; each coordinate is standardised.
      hidden_sizes: of a ReLU network; () is logistic regression.
      num_folds: every row is judged by the network that has not seen its fold; all are trained at once.
      num_steps: of AdamW, with 128 rows of each sample, a rate that falls to 0 along a cosine from `learning_rate`, and
        decoupled `weight_decay` in units of the rate.
      seed: of folds, weights and minibatches.

    Equal laws give 1/2 within the error, whatever the network learns; unequal ones too where it learns nothing, so that a value
    near 1/2 says as much as the network can. The error is that of the judged rows. Raises ValueError for fewer rows than folds,
    rows that are not finite, unequal events.
    """
    check_count(num_folds=num_folds, num_steps=num_steps)
    check_positive(learning_rate=learning_rate)
    if num_folds < 2:
        raise ValueError(f"num_folds must be at least 2, got {num_folds}")
    x, y = checked_samples(num_folds, x=x, y=y)
    pooled = np.concatenate([x, y])
    mean, sd = pooled.mean(0), pooled.std(0)
    both = [jnp.asarray((sample - mean) / np.where(sd > 0, sd, 1.0), jnp.float32) for sample in (x, y)]
    rng = np.random.default_rng(seed)
    folds = [rng.permutation(len(sample)) % num_folds for sample in (x, y)]
    tables = [_training_rows(fold, num_folds) for fold in folds]
    net = FlatNet(MLP(tuple(hidden_sizes)), 1)
    keys = jax.random.split(jax.random.key(seed), num_folds)
    settings = (num_steps, float(learning_rate), float(weight_decay))
    logits = _judged(net, settings, keys, *both, *tables)
    right = []
    for values, fold, sign in zip(logits, folds, (1.0, -1.0), strict=True):
        own = np.asarray(values)[fold, np.arange(len(fold))] * sign
        right.append(np.where(own == 0, 0.5, own > 0))
    (of_x, sem_x), (of_y, sem_y) = map(mean_and_sem, right)
    return Measured(float((of_x + of_y) / 2), float(np.hypot(sem_x, sem_y) / 2))


def _training_rows(fold: np.ndarray, num_folds: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows outside each fold, (num_folds, most), filled up at the end; and how many they are."""
    rows = [np.flatnonzero(fold != k) for k in range(num_folds)]
    most = max(map(len, rows))
    table = np.stack([np.pad(each, (0, most - len(each))) for each in rows])
    return table.astype(np.int32), np.array([len(each) for each in rows], np.int32)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _judged(net: FlatNet, settings: tuple, keys: Key, x: Array, y: Array, of_x: tuple, of_y: tuple) -> tuple[Array, Array]:
    """The logit that a row is one of x, by the network of every fold: (num_folds, n) and (num_folds, m)."""

    def logit(params, x):
        return apply(net, params, x)[0]

    def judge(key, of_x, of_y):
        params = _trained(net, logit, settings, key, (x, *of_x), (y, *of_y))
        judge_rows = jax.vmap(logit, (None, 0))
        return judge_rows(params, x), judge_rows(params, y)

    return jax.vmap(judge)(keys, of_x, of_y)


def _trained(net, logit, settings, key, *samples):
    num_steps, learning_rate, weight_decay = settings
    optimizer = optax.adamw(optax.cosine_decay_schedule(learning_rate, num_steps), weight_decay=weight_decay)
    start, steps = jax.random.split(key)
    params = init(net, start, samples[0][0][0])

    def loss(params, key):
        total = jnp.zeros(())
        for own, sign, (rows, table, num) in zip(jax.random.split(key), (-1.0, 1.0), samples, strict=True):
            some = rows[table[jax.random.randint(own, (_BATCH,), 0, num)]]
            total += jax.nn.softplus(sign * jax.vmap(logit, (None, 0))(params, some)).mean()
        return total / 2

    def step(carry, key):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params, key), state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(steps, num_steps))[0][0]
