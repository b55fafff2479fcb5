"""`python -m experiments.compare`: see `experiments.compare.compare`."""

import genmod as gm
from experiments.compare import compare

if __name__ == "__main__":
    gm.lab.main(compare.experiment, compare.Config, quick=compare.QUICK)
