"""Which source draw goes to which datum, and along which path: the parts of flow matching."""

from genmod.transport.costs import squared_distances as squared_distances
from genmod.transport.entropic import sinkhorn as sinkhorn
from genmod.transport.exact import assignment as assignment
from genmod.transport.pairings import (
    ExactAssignment as ExactAssignment,
    Independent as Independent,
    Pairing as Pairing,
    Sinkhorn as Sinkhorn,
)
from genmod.transport.paths import (
    BrownianBridge as BrownianBridge,
    CustomGaussian as CustomGaussian,
    CustomInterpolant as CustomInterpolant,
    GaussianPath as GaussianPath,
    Linear as Linear,
    OptimalTransport as OptimalTransport,
    Path as Path,
    Scheduled as Scheduled,
    Trigonometric as Trigonometric,
)
