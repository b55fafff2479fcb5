"""genmod itself: `gm.metrics.frechet_distance`."""

import genmod as gm
from experiments.benchmarks.frechet.problems import Cell
from experiments.benchmarks.host_peer import HostPeer
from experiments.benchmarks.peer import Arrays


def build(cell: Cell, arrays: Arrays) -> HostPeer:
    """The library's function of both samples."""
    return HostPeer({"run": lambda pair: gm.metrics.frechet_distance(*pair)})
