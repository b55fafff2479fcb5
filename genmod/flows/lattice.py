"""Flows of real fields on periodic lattices, trained on an action alone:

    law  = gm.densities.PhiFour((8, 8), mass_squared=-4.0, coupling=8.0)
    flow = gm.flows.lattice_ode((8, 8))                                     # or lattice_coupling_flow((8, 8))
    fit, report = gm.inference.fit_posterior(law, flow, key=key)            # report.log_evidence is log Z

The first commutes with the translations that map each colour of its checkerboard onto itself, and with `nets.SignSymmetric` with
x -> -x; the second with all symmetries of the lattice and with x -> -x. Samples are made exact by `samplers.independence` or by
weights.
"""

from collections.abc import Sequence
from typing import Any

import jax

from genmod import nets
from genmod.bijectors import Affine, Chain, LatticeCoupling, LatticeODE, Repeat, Transformer
from genmod.bijectors.lattice import check_even
from genmod.core.checks import check, check_count, check_shape
from genmod.core.types import Shape
from genmod.densities import as_distribution
from genmod.dynamics import Adaptive, Integrator
from genmod.flows.layers import Activation
from genmod.models.flow import Flow


def lattice_coupling_flow(
    event_shape: Shape,
    num_layers: int = 16,
    *,
    hidden_channels: Sequence[int] = (8, 8),
    kernel_size: int = 3,
    activation: Activation = jax.nn.leaky_relu,
    transformer: Transformer = Affine(),
    network: Any = None,
    base: Any = None,
) -> Flow:
    """Checkerboard couplings with periodic convolutions, whose colours alternate (Albergo et al. 2019, arXiv:1904.12072; the
    default is the architecture of arXiv:2101.08176).

    Args:
      event_shape: of the lattice, an even number of sites in each direction.
      num_layers: couplings, an even number. hidden_channels, kernel_size, activation: of their networks.
      transformer: `Affine()`, a spline, ...
      network: a Linen module lattice + (1,) -> lattice + (transformer.num_params,) in the place of the default, which is a
        `PeriodicNet`; `nets.SignSymmetric` of it makes affine couplings commute with x -> -x.
      base: a `gm.Distribution` of fields; None: independent standard normals.

    Raises ValueError for an odd number of sites or of layers.
    """
    shape = _lattice(event_shape)
    check_even("event_shape", shape)
    check_count(num_layers=num_layers)
    check(num_layers % 2 == 0, f"num_layers must be even, so that both colours change as often, got {num_layers}")
    if network is None:
        network = nets.PeriodicNet(transformer.num_params, hidden_channels, kernel_size, activation)
    pair = Chain((LatticeCoupling(transformer, network, True), LatticeCoupling(transformer, network, False)))
    return Flow(Repeat(pair, num_layers // 2), as_distribution(base, shape))


def lattice_ode(
    event_shape: Shape,
    *,
    num_frequencies: int = 8,
    num_times: int = 6,
    integrator: Integrator = Adaptive(),
    base: Any = None,
) -> Flow:
    """A continuous flow with a field that is equal in all places and directions and odd in x (Gerdes et al. 2022,
    arXiv:2207.00283).

    Args:
      event_shape: of the lattice. num_frequencies, num_times: see `nets.LatticeVelocity`.
      integrator: see `bijectors.LatticeODE`.
      base: a `gm.Distribution` of fields; None: independent standard normals.
    """
    shape = _lattice(event_shape)
    return Flow(LatticeODE(nets.LatticeVelocity(num_frequencies, num_times), integrator), as_distribution(base, shape))


def _lattice(event_shape: Shape) -> Shape:
    shape = check_shape("event_shape", event_shape, least=2)
    check(shape, "event_shape must have at least one direction, got ()")
    return shape
