"""Data sets: toys whose density and entropy are known exactly, real tables, and images.

data = gm.data.two_moons(key, 20_000)      # .train .validation .test .log_prob .entropy
data = gm.data.table("my.csv", seed=0)     # .train .validation .test; or a table of pandas or polars, or an array
data = gm.data.images.mnist()              # .train .validation .test .labels .num_levels
data = gm.data.strings(my_lines)           # .train .validation .test .event, tokens; .encode .decode
data = gm.data.character_stream(my_text)   # .train .validation, tokens of one long text; .windows(length, batch_size)
units = gm.data.Units.of(x)                # .to(x) .back(z) .log_scale: for columns that float32 does not resolve
"""

from genmod.data import images as images
from genmod.data.arms import Pinwheel as Pinwheel, pinwheel as pinwheel
from genmod.data.base import Toy as Toy
from genmod.data.binary import binarized_mnist as binarized_mnist
from genmod.data.binary_tables import (
    accidents as accidents,
    dna as dna,
    mushrooms as mushrooms,
    nltcs as nltcs,
    plants as plants,
)
from genmod.data.circles import Rings as Rings, rings as rings
from genmod.data.curves import (
    SwissRoll as SwissRoll,
    TwoMoons as TwoMoons,
    TwoSpirals as TwoSpirals,
    swiss_roll as swiss_roll,
    two_moons as two_moons,
    two_spirals as two_spirals,
)
from genmod.data.dataset import Dataset as Dataset, Labels as Labels, from_density as from_density, split as split
from genmod.data.mixtures import (
    EightGaussians as EightGaussians,
    Funnel as Funnel,
    GaussianGrid as GaussianGrid,
    TwoBumps as TwoBumps,
    TwoNorm as TwoNorm,
    eight_gaussians as eight_gaussians,
    funnel as funnel,
    gaussian_grid as gaussian_grid,
    two_bumps as two_bumps,
    twonorm as twonorm,
)
from genmod.data.squares import CheckerboardDensity as CheckerboardDensity, checkerboard as checkerboard
from genmod.data.tables import (
    breast_cancer as breast_cancer,
    digits as digits,
    miniboone as miniboone,
    table as table,
    wine as wine,
)
from genmod.data.text import (
    CharacterStream as CharacterStream,
    RandomWindows as RandomWindows,
    Strings as Strings,
    character_stream as character_stream,
    consecutive_windows as consecutive_windows,
    names as names,
    strings as strings,
    tiny_shakespeare as tiny_shakespeare,
)
from genmod.data.units import Units as Units
