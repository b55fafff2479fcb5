"""python -m experiments.benchmarks FAMILY [--cells NAMES] [--libraries NAMES] [--quick] [--out DIR]; see `runner`."""

import sys

from experiments.benchmarks.runner import main

if __name__ == "__main__":
    main(sys.argv[1:])
