"""All recipes by name: a new one is an entry of `vectors.RECIPES` or of `discrete.RECIPES`."""

from experiments.compare import discrete, vectors
from experiments.compare.recipe import Fitted, Recipe, Task

# The row of the law itself: fresh draws of it in the place of samples.
TRUTH = "truth"


def _not_trained(task: Task) -> Fitted:
    raise NotImplementedError("the law itself is not trained")


RECIPES: dict[str, Recipe] = {TRUTH: Recipe("reference", _not_trained, levels=(2, float("inf")))}
RECIPES |= vectors.RECIPES | discrete.RECIPES


def unknown(name: str) -> str:
    """Why there is no recipe of this name; "" where there is."""
    return "" if name in RECIPES else f"model must be one of {', '.join(RECIPES)}; got {name!r}"


def find(name: str) -> Recipe:
    """A recipe by name. Raises ValueError, which lists the names, for another."""
    if reason := unknown(name):
        raise ValueError(reason)
    return RECIPES[name]
