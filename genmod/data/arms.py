"""Pinwheel: arms that are Gaussian before a rotation by an angle that grows along them.

    f ~ N((1, 0), diag(s_r^2, s_t^2)),   x = 2 R(-a) f,   a = 2 pi k / A + rate e^{f_1}

(R(a) turns by a; arm k is uniform on 0..A-1; s_r, s_t the radial and tangential sd).
The turn keeps r = |x| / 2 = |f|. With f = r (cos t, -sin t) and theta = -angle(x),

    h_r(t) = t + rate e^{r cos t} = theta (mod 2 pi / A)
    p(x) = 1 / (4 A) sum over the roots t of N(f) / |h_r'(t)|

Far along an arm the map folds, so a circle has three stretches where h_r is monotone,
cut where h_r' = 1 - rate r sin(t) e^{r cos t} = 0. Every root of each is found by
bisection and polished by two Newton steps, which also carry the first and second derivatives.

Convention: in the exponent r is capped at 1 + 10 s_r, which bounds the number of
roots and touches a part of the distribution of probability e^{-50}.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from genmod.core.checks import check_positive
from genmod.core.event import Real
from genmod.core.types import Array, Context, Key, Params
from genmod.data.base import PLANE, Toy
from genmod.data.dataset import Dataset, from_density

_MAX_ROOTS = 512
_BISECTIONS = 30


@dataclasses.dataclass(frozen=True)
class Pinwheel(Toy):
    """`num_arms` curved arms; FFJORD's pinwheel with its numbers as defaults."""

    num_arms: int = 5
    radial_sd: float = 0.3
    tangential_sd: float = 0.1
    rate: float = 0.25

    def __post_init__(self):
        check_positive(num_arms=self.num_arms, radial_sd=self.radial_sd, tangential_sd=self.tangential_sd, rate=self.rate)
        super().__post_init__()
        if self._num_roots > _MAX_ROOTS:
            raise ValueError(
                f"a pinwheel must have at most {_MAX_ROOTS} roots a stretch for its log_prob, got {self._num_roots}: it winds so "
                "far; take fewer arms, a smaller rate or a smaller radial_sd"
            )

    @property
    def event(self) -> Real:
        return PLANE

    @property
    def _cap(self) -> float:
        return 1 + 10 * self.radial_sd

    @property
    def _num_roots(self) -> int:
        reach = 2 * math.pi + self.rate * math.exp(min(self._cap, 50.0))
        return math.ceil(reach * self.num_arms / (2 * math.pi)) + 1

    def sample_one(self, params: Params, key: Key, context: Context = None) -> Array:
        key_arm, key_noise = jax.random.split(key)
        noise = jax.random.normal(key_noise, (2,))
        arm = jax.random.randint(key_arm, (), 0, self.num_arms)
        return self._turn(1 + self.radial_sd * noise[0], self.tangential_sd * noise[1], arm)

    def _turn(self, along: Array, across: Array, arm: Array | int) -> Array:
        angle = arm * (2 * math.pi / self.num_arms) + self.rate * jnp.exp(along)
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        return 2 * jnp.stack([along * cos + across * sin, across * cos - along * sin], axis=-1)

    def log_prob_one(self, params: Params, x: Array, context: Context = None, key: Key | None = None) -> Array:
        square = jnp.sum(jnp.square(x))
        # The gradient at the origin is 0 by symmetry, where sqrt and arctan2 give nan.
        x = jnp.where(square > 0, x, jnp.asarray([1e-9, 0.0], x.dtype))
        r, theta = jnp.linalg.norm(x) / 2, -jnp.arctan2(x[1], x[0])
        # A gradient keeps the roots alone and does the rest again: else 7 kB a point.
        return jax.checkpoint(self._sum_over_roots)(r, *self._roots(jnp.minimum(r, self._cap), theta))

    def _sum_over_roots(self, r: Array, t: Array, target: Array, valid: Array) -> Array:
        """log p at the radius 2 r, from the roots of bisection, which two Newton steps make exact and differentiable."""
        capped = jnp.minimum(r, self._cap)
        for _ in range(2):
            height, slope = self._wind(capped, t)
            safe = jnp.where(jnp.abs(slope) > 1e-2, slope, jnp.copysign(1e-2, slope))
            t = t - (height - target) / safe
        _, slope = self._wind(capped, t)
        along, across = (r * jnp.cos(t) - 1) / self.radial_sd, r * jnp.sin(t) / self.tangential_sd
        # At a fold the density is infinite; the floor keeps its log finite.
        terms = -0.5 * (along**2 + across**2) - jnp.log(jnp.maximum(jnp.abs(slope), 1e-12))
        scale = 8 * math.pi * self.num_arms * self.radial_sd * self.tangential_sd
        return jax.nn.logsumexp(jnp.where(valid, terms, -jnp.inf)) - math.log(scale)

    def _wind(self, r: Array, t: Array) -> tuple[Array, Array]:
        """h_r(t) and h_r'(t)."""
        turn = self.rate * jnp.exp(r * jnp.cos(t))
        return t + turn, 1 - turn * r * jnp.sin(t)

    def _roots(self, r: Array, theta: Array) -> tuple[Array, Array, Array]:
        """All t in [-pi, pi) with h_r(t) = theta (mod 2 pi / A), (3, k), the values h_r(t), and which roots are real."""
        fixed = lax.stop_gradient(r)
        # -h' peaks where cos t = r sin^2 t; a fold opens there when h' turns negative.
        peak = jnp.arccos(2 * fixed / (1 + jnp.sqrt(1 + 4 * fixed**2)))
        start = jnp.stack([jnp.zeros_like(peak), jnp.full_like(peak, math.pi)])
        folds = _bisect(lambda t: self._wind(fixed, t)[1] < 0, start, jnp.broadcast_to(peak, (2,)))
        edges = jnp.concatenate([jnp.full((1,), -math.pi, r.dtype), folds, jnp.full((1,), math.pi, r.dtype)])
        heights, _ = self._wind(fixed, edges)
        lower = jnp.minimum(heights[:-1], heights[1:])[:, None]
        upper = jnp.maximum(heights[:-1], heights[1:])[:, None]
        step = 2 * math.pi / self.num_arms
        first = jnp.ceil((lower - lax.stop_gradient(theta)) / step)
        target = theta + step * (first + jnp.arange(self._num_roots, dtype=r.dtype)[None])
        goal = lax.stop_gradient(target)
        # On the middle stretch h falls, so its ends change places.
        left = jnp.broadcast_to(jnp.stack([edges[0], edges[2], edges[2]])[:, None], goal.shape)
        right = jnp.broadcast_to(jnp.stack([edges[1], edges[1], edges[3]])[:, None], goal.shape)
        t = _bisect(lambda t: self._wind(fixed, t)[0] > goal, left, right)
        return t, target, goal < upper

    def exact_entropy(self) -> float:
        """E_f[-log p(x(f))] by the trapezoid rule over 7 sd of f, in float64 (error 1e-8)."""
        along = np.arange(-7, 7, 1 / 5)
        across = np.arange(-7, 7, 1 / 4)
        weights = np.exp(-0.5 * (along[:, None] ** 2 + across**2)) / (2 * math.pi * 20)
        # The same code as log_prob: eager even if the caller is being traced.
        with jax.ensure_compile_time_eval(), jax.enable_x64(True):
            f = np.meshgrid(1 + self.radial_sd * along, self.tangential_sd * across, indexing="ij")
            log_p = np.asarray(self.log_prob({}, self._turn(jnp.asarray(f[0]), jnp.asarray(f[1]), 0)))
        return float(-np.sum(weights * log_p))


def _bisect(above, left: Array, right: Array) -> Array:
    """The point between left and right where above(t) turns from False to True."""

    def body(_, ends):
        left, right = ends
        middle = (left + right) / 2
        up = above(middle)
        return jnp.where(up, left, middle), jnp.where(up, middle, right)

    left, right = lax.fori_loop(0, _BISECTIONS, body, (left, right))
    return (left + right) / 2


def pinwheel(
    key: Key, n: int, *, num_arms: int = 5, radial_sd: float = 0.3, tangential_sd: float = 0.1, rate: float = 0.25
) -> Dataset:
    """Curved arms about the origin (Grathwohl et al. 2019, arXiv:1810.01367, its toy_data; Johnson et al. 2016,
    arXiv:1603.06277).

    Args:
      key: one typed key. n: the number of points to train on; a quarter of it each to validate and to test.
      num_arms: how many arms. rate: how fast they wind.
      radial_sd, tangential_sd: standard deviations along an arm and across it, before the turn.
    """
    return from_density("pinwheel", Pinwheel(num_arms, radial_sd, tangential_sd, rate), key, n)
