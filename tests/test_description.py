"""Descriptions are values: equal to their equal in every process, told apart from all others, refused where that is not sure."""

import copy
import dataclasses
import enum
import functools
import itertools
import json
import pathlib
import pickle
import subprocess
import sys
from typing import Any

import distrax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from registry import AUTOENCODERS, BIJECTORS, DIFFUSIONS, FLOWS, IMAGE_FLOWS, LATTICE_FLOWS, ONE_STEP

import genmod as gm
from genmod.core.description import canonical


def text(value):
    return json.dumps(gm.describe(value), sort_keys=True)


# --- the same in every process ---------------------------------------------------------------------------------------------

IN_A_PROCESS = """
import functools, json, jax, distrax, jax.numpy as jnp, optax, warnings
warnings.simplefilter("ignore")
import genmod as gm
base = distrax.MultivariateNormalDiag(jnp.zeros(2), jnp.ones(2))
leaky = functools.partial(jax.nn.leaky_relu, negative_slope=0.2)
flow = gm.flows.real_nvp((2,), 1, activation=leaky, base=base)
optimizer = optax.adamw(optax.cosine_decay_schedule(1e-3, 10))
steps, call = optax.MultiSteps(optax.adam(1e-3), 2), gm.call(optax.adam, 1e-3, b1=0.8)
print(json.dumps([gm.describe(v) for v in (flow, optimizer, steps, call, lambda x: x + 1, {3, "a", 1.5}, jnp.arange(3))]))
"""


def in_a_process(program, seed, *arguments):
    env = {"PYTHONHASHSEED": str(seed), "PYTHONPATH": str(pathlib.Path(gm.__path__[0]).parent), "PATH": ""}
    result = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, env=env, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_describe_is_the_same_in_every_process():
    one, other = (in_a_process(IN_A_PROCESS, seed) for seed in (1, 2))
    assert one == other
    assert "0x" not in one and '"negative_slope": 0.2' in one


UNPICKLE = """
import pickle, sys
value, wanted = pickle.load(open(sys.argv[1], "rb"))
assert value == wanted and hash(value) == hash(wanted) and {wanted: 1}[value] == 1
import genmod as gm
again = gm.flows.real_nvp((2,), 2, hidden_sizes=(8,))
assert value == again and hash(value) == hash(again)
"""


def test_pickles_are_equal_in_another_process(tmp_path):
    """The hash of a string differs between processes; the one that a description remembers must not travel."""
    flow = gm.flows.real_nvp((2,), 2, hidden_sizes=(8,))
    hash(flow)
    (tmp_path / "flow").write_bytes(pickle.dumps((flow, gm.flows.real_nvp((2,), 2, hidden_sizes=(8,)))))
    in_a_process(UNPICKLE, 3, str(tmp_path / "flow"))


@pytest.mark.parametrize("name", ["coupling_conditional", "multi_scale", "probability_flow", "chain", "from_distrax_linear"])
def test_copies_equal_their_original(name):
    bijector = BIJECTORS[name].bijector
    hash(bijector)
    for again in (copy.copy(bijector), copy.deepcopy(bijector), pickle.loads(pickle.dumps(bijector))):
        assert again == bijector and hash(again) == hash(bijector) and text(again) == text(bijector)


# --- told apart ------------------------------------------------------------------------------------------------------------


class Colour(enum.Enum):
    RED = 1


class Sound(enum.Enum):
    RED = 1


@dataclasses.dataclass(frozen=True)
class Config:
    name: str = "a"
    parent: int = 0


@dataclasses.dataclass(frozen=True)
class OtherConfig:
    name: str = "a"
    parent: int = 0


class Schedule:
    """A plain object, as a user's own would be."""

    def __init__(self, rate, inner=None):
        self.rate, self.inner = rate, inner


class Slots:
    __slots__ = ("rate",)

    def __init__(self, rate):
        self.rate = rate


def made(source, **names):
    """The function `f` that `source` defines, in a module of the user's own."""
    scope = {"__name__": "users_own", **names}
    exec(source, scope)
    return scope["f"]


def scaled_by(factor):
    def f(x):
        return factor * x

    return f


DIFFERENT = {
    "optimizers": (optax.adam(1e-3), optax.adam(1e-2)),
    "lambdas": (lambda x: jnp.tanh(x), lambda x: jnp.sin(x)),
    "partials": (functools.partial(jnp.clip, min=0), functools.partial(jnp.clip, min=1)),
    "enums": (Colour.RED, Sound.RED),
    "an enum and a string": (Colour.RED, "RED"),
    "bound methods": (gm.flows.real_nvp((2,), 1).loss, gm.flows.real_nvp((2,), 2).loss),
    "arrays": (jnp.zeros(3), jnp.ones(3)),
    "shapes of arrays": (jnp.zeros((2, 3)), jnp.zeros((3, 2))),
    "dtypes of arrays": (np.zeros(2, np.int32), np.zeros(2, np.float32)),
    "bool and int": (True, 1),
    "int and string": (1, "1"),
    "a field called name": (Config("a"), Config("b")),
    "a field called parent": (Config(parent=0), Config(parent=1)),
    "classes of equal fields": (Config(), OtherConfig()),
    "layers called differently": (nn.Dense(3, name="a"), nn.Dense(3, name="b")),
    "attributes of an object": (optax.MultiSteps(optax.adam(1e-3), 2), optax.MultiSteps(optax.adam(1e-3), 4)),
    "what an object holds": (Schedule(1.0, Schedule(2.0)), Schedule(1.0, Schedule(3.0))),
    "slots of an object": (Slots(1.0), Slots(2.0)),
    "an edited function": (made("def f(x): return 2 * x"), made("def f(x): return 3 * x")),
    "an edited inner function": (
        made("def f(x):\n  def g(x): return 2 * x\n  return g(x)"),
        made("def f(x):\n  def g(x): return 3 * x\n  return g(x)"),
    ),
    "defaults": (made("def f(x, a=1): return a * x"), made("def f(x, a=2): return a * x")),
    "keyword defaults": (made("def f(x, *, a=1): return a * x"), made("def f(x, *, a=2): return a * x")),
    "closures": (scaled_by(2.0), scaled_by(3.0)),
    "a jitted function": (jax.jit(made("def f(x): return 2 * x")), jax.jit(made("def f(x): return 3 * x"))),
    "calls": (gm.call(optax.adam, 1e-3), gm.call(optax.adam, 1e-2)),
    "keywords of calls": (gm.call(optax.adam, b1=0.9), gm.call(optax.adam, b2=0.9)),
    "distributions of Distrax": (distrax.Normal(0.0, 1.0), distrax.Normal(0.0, 2.0)),
    "tuples": ((1, (2, 3)), (1, 2, 3)),
    "keys of a dict": ({1: "a"}, {"1": "a"}),
    "a set and a list": ({1, 2}, [1, 2]),
    "keys": (jax.random.key(0), jax.random.key(1)),
    "dtypes": (np.dtype("float32"), np.dtype("float64")),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_describe_tells_different_things_apart(name):
    one, other = DIFFERENT[name]
    assert text(one) != text(other)
    assert text(one) == text(one)


OTHERS = {**IMAGE_FLOWS, **LATTICE_FLOWS, **DIFFUSIONS, **ONE_STEP, **AUTOENCODERS}


@pytest.mark.parametrize("models", [FLOWS, OTHERS], ids=["vectors", "others"])
def test_models_of_the_registry_have_descriptions_of_their_own(models):
    shapes = dict.fromkeys((*FLOWS, *LATTICE_FLOWS, *DIFFUSIONS, *ONE_STEP, *AUTOENCODERS), (4,)) | dict.fromkeys(
        IMAGE_FLOWS, (4, 4, 1)
    )
    one, other = ({name: make(shapes[name]) for name, make in models.items()} for _ in "ab")
    for name in models:
        assert one[name] == other[name] and hash(one[name]) == hash(other[name]) and text(one[name]) == text(other[name])
    assert len({text(model) for model in one.values()}) == len(models)


def test_where_a_function_stands_does_not_matter():
    one, other = made("def f(x): return 2 * x"), made("\n\n# moved\ndef f(x):\n    return 2 * x  # as before")
    assert text(one) == text(other)
    assert text(scaled_by(2.0)) == text(scaled_by(2.0))


def test_functions_of_libraries_stand_by_their_names():
    assert gm.describe(jnp.tanh) != gm.describe(jnp.sin) and "code" not in text(optax.adam)
    assert gm.describe(gm.flows.real_nvp) == "genmod.flows.vector.real_nvp"


def test_a_value_that_holds_itself():
    one, other = Schedule(1.0), Schedule(1.0)
    one.inner, other.inner = one, Schedule(1.0)
    other.inner.inner = Schedule(1.0)
    assert text(one) != text(other) and text(one) == text(one)


# --- refused ---------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Holder:
    schedule: Any


@dataclasses.dataclass
class Hides:
    rate: float = 1.0

    def __post_init__(self):
        self.hidden = 3


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (Holder(Schedule(itertools.count())), r"value\.schedule\.rate is a itertools\.count"),
        ([1, {"a": object()}], r"value\[1\]\['a'\] is a builtins\.object"),
        (scaled_by(iter([1])), r"value closure 'factor' is a builtins\.list_iterator"),
        (functools.partial(jnp.clip, min=np.random.default_rng(0)), r"value\.keywords\['min'\] is a numpy\.random\._generator"),
        (np.array([object()]), r"value is a numpy\.ndarray"),
        (Hides(), r"it has attributes that are no fields, \['hidden'\]"),
    ],
)
def test_what_cannot_be_described_is_refused_by_name(value, match):
    with pytest.raises(TypeError, match=match) as caught:
        gm.describe(value)
    assert "use plain values, frozen dataclasses, named functions or gm.call(fn, ...)" in str(caught.value)


# --- gm.call, canonical ------------------------------------------------------------------------------------------------------


def test_call_is_a_partial_that_equals_its_equal():
    leaky = gm.call(jax.nn.leaky_relu, negative_slope=0.2)
    assert leaky == gm.call(jax.nn.leaky_relu, negative_slope=0.2) != gm.call(jax.nn.leaky_relu, negative_slope=0.1)
    assert hash(leaky) == hash(gm.call(jax.nn.leaky_relu, negative_slope=0.2))
    np.testing.assert_allclose(leaky(jnp.array([-1.0, 2.0])), [-0.2, 2.0])
    assert gm.call(divmod, 7)(2) == (3, 1) and gm.call(int, base=2)("11") == 3 and gm.call(int, base=2)("11", base=3) == 4
    one, other = (gm.flows.real_nvp((2,), activation=gm.call(jax.nn.leaky_relu, negative_slope=0.2)) for _ in "ab")
    assert one == other and text(one) == text(other)
    assert gm.call(gm.call(jnp.clip, min=0), max=1) == gm.call(gm.call(jnp.clip, min=0), max=1)


def test_call_refuses_what_cannot_be_called_or_compared():
    with pytest.raises(TypeError, match="fn must be a function, got 3"):
        gm.call(3)
    for bad in (lambda: gm.call(jnp.add, jnp.ones(2)), lambda: gm.call(jnp.add, x=[1])):
        with pytest.raises(TypeError, match=r"Call\.(args|kwargs) must be hashable"):
            bad()


def test_equal_closures_are_one_object():
    one, other = scaled_by(7.0), scaled_by(7.0)
    assert one is not other and canonical(one) is canonical(other) is not canonical(scaled_by(8.0))
    count = itertools.count()
    assert canonical(count) is count


# --- descriptions ------------------------------------------------------------------------------------------------------------


class Plain(gm.Bijector):
    """No dataclass: two of different state would be equal."""

    def __init__(self, scale):
        self.scale = scale

    def _init(self, key, x, context):
        return {}

    def _forward(self, params, z, context):
        return self.scale * z, 0.0

    def _inverse(self, params, x, context):
        return x / self.scale, 0.0


@dataclasses.dataclass(frozen=True, eq=False)
class WithoutEquality(gm.bijectors.ScalarAffine):
    scale: float = 1.0


class Derived(gm.bijectors.Rescale):
    """Inherits the dataclass of its base, and with it an equality that knows nothing of `extra`."""

    extra = 1


class NoModel(gm.Model):
    event = gm.Real((2,))

    def _init(self, key, x, context):
        return {}

    def loss(self, params, key, batch, *, step=None):
        return 0.0, {}


@pytest.mark.parametrize("make", [lambda: Plain(2.0), WithoutEquality, Derived, NoModel], ids=["plain", "eq", "derived", "model"])
def test_a_plain_class_is_refused_at_construction(make):
    with pytest.raises(
        TypeError, match=r"must be a frozen dataclass, .* put @dataclasses.dataclass\(frozen=True\) above the class"
    ):
        make()


@pytest.mark.parametrize("value", [[1, 0], {"a": 1}, np.zeros(2)], ids=["list", "dict", "array"])
def test_a_field_that_cannot_be_hashed_is_refused(value):
    with pytest.raises(TypeError, match=r"Permutation\.order must be hashable \(a tuple instead of a list or an array\), got"):
        gm.bijectors.Permutation(value)


def test_equal_descriptions_share_one_program():
    traces = []

    @functools.partial(jax.jit, static_argnums=0)
    def double(flow, x):
        traces.append(flow)
        return 2 * x

    for _ in range(3):
        double(gm.flows.real_nvp((2,), 1), jnp.ones(2))
        double(copy.deepcopy(gm.flows.real_nvp((2,), 2)), jnp.ones(2))
    assert len(traces) == 2
