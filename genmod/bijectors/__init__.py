"""Bijectors: invertible maps of one event with explicit parameters. `base.Bijector` is the protocol."""

from genmod.bijectors.actnorm import ActNorm as ActNorm, Standardize as Standardize, Whiten as Whiten
from genmod.bijectors.autoregressive import Autoregressive as Autoregressive
from genmod.bijectors.base import Bijector as Bijector
from genmod.bijectors.chain import Chain as Chain
from genmod.bijectors.columns import Columns as Columns, PerCoordinate as PerCoordinate
from genmod.bijectors.context import Conditioned as Conditioned, conditioned as conditioned
from genmod.bijectors.continuous import CNF as CNF, ContinuousFlow as ContinuousFlow, ProbabilityFlow as ProbabilityFlow
from genmod.bijectors.coupling import Checkerboard as Checkerboard, Coupling as Coupling
from genmod.bijectors.distrax import as_bijector as as_bijector, as_distrax as as_distrax, from_distrax as from_distrax
from genmod.bijectors.elementwise import (
    AlphaLogit as AlphaLogit,
    Angle as Angle,
    Exp as Exp,
    Logit as Logit,
    Power as Power,
    Rescale as Rescale,
    Sigmoid as Sigmoid,
    Softplus as Softplus,
    Tanh as Tanh,
)
from genmod.bijectors.image import Conv1x1 as Conv1x1, MultiScale as MultiScale, Split as Split, Squeeze as Squeeze
from genmod.bijectors.lattice import LatticeCoupling as LatticeCoupling, LatticeODE as LatticeODE
from genmod.bijectors.linear import (
    DiagonalAffine as DiagonalAffine,
    Householder as Householder,
    LowRankAffine as LowRankAffine,
    LULinear as LULinear,
    MatrixAffine as MatrixAffine,
    ScalarAffine as ScalarAffine,
    TriangularAffine as TriangularAffine,
)
from genmod.bijectors.loft import LOFT as LOFT
from genmod.bijectors.numerical import DeepSigmoidal as DeepSigmoidal, ScalarFunction as ScalarFunction
from genmod.bijectors.permutation import (
    Permutation as Permutation,
    Reverse as Reverse,
    random_order as random_order,
)
from genmod.bijectors.planar import Planar as Planar, Radial as Radial, Sylvester as Sylvester
from genmod.bijectors.repeat import Invert as Invert, Repeat as Repeat
from genmod.bijectors.soft_clip import SoftClippedAffine as SoftClippedAffine
from genmod.bijectors.spline import CircularSpline as CircularSpline, RationalQuadraticSpline as RationalQuadraticSpline
from genmod.bijectors.transformers import (
    Additive as Additive,
    Affine as Affine,
    Elementwise as Elementwise,
    Transformer as Transformer,
)
