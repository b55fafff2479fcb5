"""What people have becomes an array: pandas and polars where they are installed, PyTorch's tensors by a stand-in.

PyTorch is not among the tested dependencies: `Tensor` below has the methods of its tensors that are used, and refuses what they
refuse (a gradient, another device and bfloat16 have no `numpy()`).
"""

import datetime
import decimal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genmod.core.arrays import check_varying, column_names, to_array, to_context

REAL = {"a": np.array([1.5, -2.0, 0.25]), "b": np.array([3.0, 4.5, 6.0])}


def pandas():
    return pytest.importorskip("pandas", reason="pandas is not installed; genmod does not need it")


def polars():
    return pytest.importorskip("polars", reason="polars is not installed; genmod does not need it")


LIBRARIES = pytest.mark.parametrize("library", [pandas, polars])


# ---- arrays, lists and tensors


def test_arrays_are_returned_as_they_are():
    for x in (np.ones((2, 3), np.float32), jnp.arange(3), np.array(["a"]), np.ones(2, complex)):
        assert to_array("x", x) is x
    assert jax.jit(lambda x: to_array("x", x) is x)(jnp.ones(2))


def test_lists_and_numbers():
    np.testing.assert_array_equal(to_array("x", [[1.0, 2.0], [3.0, 4.0]]), [[1, 2], [3, 4]])
    assert to_array("x", [1, 2]).dtype == np.int64 and to_array("x", 1.5).shape == ()
    assert to_array("x", np.float32(1)).dtype == np.float32
    np.testing.assert_array_equal(to_array("x", [jnp.ones(2), jnp.zeros(2)]), [[1, 1], [0, 0]])
    np.testing.assert_array_equal(jax.jit(lambda a, b: to_array("x", [a, b]))(1.0, 2.0), [1, 2])


@pytest.mark.parametrize(
    "value, message",
    [
        (None, "x must be an array of numbers, got NoneType"),
        ({"a": 1.0}, "x must be an array of numbers, got dict"),
        ("abc", "x must be an array of numbers, got str"),
        (["a", "b"], "x must be an array of numbers, got list of <U1"),
        ([1.0, None], "x must be an array of numbers, got list of object"),
        ([[1.0], [1.0, 2.0]], "x must be an array of numbers, got a list that is none"),
    ],
)
def test_what_is_no_array(value, message):
    with pytest.raises(TypeError, match=f"^{message}"):
        to_array("x", value)


class Tensor:
    """As a tensor of PyTorch: `numpy` only once it is detached, on the CPU, and of a dtype that NumPy has."""

    def __init__(self, values, attached=True, device="cuda", dtype="float32"):
        self.values, self.attached, self.device, self.dtype = values, attached, device, dtype

    def detach(self):
        return Tensor(self.values, False, self.device, self.dtype)

    def cpu(self):
        return Tensor(self.values, self.attached, "cpu", self.dtype)

    def float(self):
        return Tensor(self.values, self.attached, self.device)

    def numpy(self):
        if self.attached:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad. Use tensor.detach().numpy() instead.")
        if self.device != "cpu":
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")
        if self.dtype == "bfloat16":
            raise TypeError("Got unsupported ScalarType BFloat16")
        return self.values

    def __array__(self, dtype=None, copy=None):
        return self.numpy()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tensors(dtype):
    values = np.array([[1.0, -0.5]], np.float32)
    assert to_array("x", Tensor(values, dtype=dtype)) is values


class Exporter:
    """An array that is known by the given methods of another one alone."""

    def __init__(self, array, **methods):
        self.array = array
        for name, method in methods.items():
            setattr(type(self), name, method)


@pytest.mark.parametrize(
    "methods",
    [
        {"__array__": lambda self, dtype=None, copy=None: self.array},
        {"__jax_array__": lambda self: jnp.asarray(self.array)},
        {
            "__dlpack__": lambda self, **options: self.array.__dlpack__(**options),
            "__dlpack_device__": lambda self: self.array.__dlpack_device__(),
        },
    ],
    ids=lambda methods: next(iter(methods)),
)
@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_protocols(methods, dtype):
    exporter = type("Exporter", (Exporter,), {})
    array = np.array([[1, 2], [3, 4]], dtype)
    x = to_array("x", exporter(array, **methods))
    assert isinstance(x, np.ndarray | jax.Array) and x.dtype == dtype
    np.testing.assert_array_equal(x, array)


def test_dlpack_of_a_dtype_that_numpy_lacks():
    array = jnp.array([1.5, -2.0], jnp.bfloat16)
    exporter = type("Exporter", (Exporter,), {})
    methods = {"__dlpack__": lambda self, **o: array.__dlpack__(**o), "__dlpack_device__": lambda self: array.__dlpack_device__()}
    x = to_array("x", exporter(array, **methods))
    assert x.dtype == jnp.bfloat16
    np.testing.assert_array_equal(x, array)


def test_masked_arrays():
    np.testing.assert_array_equal(to_array("x", np.ma.masked_array([1.0, 2.0])), [1, 2])
    with pytest.raises(ValueError, match="^x has 1 masked values; fill them, or drop the rows"):
        to_array("x", np.ma.masked_array([1.0, 2.0], [True, False]))


# ---- tables


@LIBRARIES
def test_real_tables(library):
    frame = library().DataFrame(REAL)
    x = to_array("x", frame)
    assert type(x) is np.ndarray and x.dtype == np.float64
    np.testing.assert_array_equal(x, np.stack([REAL["a"], REAL["b"]], 1))
    single = library().DataFrame({name: column.astype(np.float32) for name, column in REAL.items()})
    assert to_array("x", single).dtype == np.float32
    mixed = library().DataFrame({"a": REAL["a"].astype(np.float32), "b": REAL["b"]})
    assert to_array("x", mixed).dtype == np.float64
    assert to_array("x", frame[:0]).shape == (0, 2) and to_array("x", frame[:1]).shape == (1, 2)
    assert column_names(frame) == ["'a'", "'b'"] and column_names(x) is None


@LIBRARIES
def test_tables_of_integers_and_of_booleans(library):
    frame = library().DataFrame({"a": [1, 2], "b": np.array([3, 4], np.uint8)})
    x = to_array("x", frame)
    assert x.dtype == np.int64
    np.testing.assert_array_equal(x, [[1, 3], [2, 4]])
    assert to_array("x", library().DataFrame({"a": np.array([1, 2], np.uint64), "b": [3, 4]})).dtype == np.int64
    x = to_array("x", library().DataFrame({"a": [True, False], "b": [True, True]}))
    assert x.dtype == bool
    np.testing.assert_array_equal(x, [[True, True], [False, True]])


@LIBRARIES
def test_series(library):
    series = library().Series
    np.testing.assert_array_equal(to_array("x", series(REAL["a"])), REAL["a"])
    assert to_array("x", series([1, 2])).dtype == np.int64 and to_array("x", series([True, False])).dtype == bool
    with pytest.raises(TypeError, match=r"^x: column 'city' holds text \('Rome' in row 1\); encode it as numbers, or drop it$"):
        to_array("x", series(name="city", data=[None, "Rome"]) if library is pandas else series("city", [None, "Rome"]))


def test_indices_rows_and_repeated_names_of_pandas():
    pd = pandas()
    np.testing.assert_array_equal(to_array("x", pd.Index([1.5, 2.5])), [1.5, 2.5])
    np.testing.assert_array_equal(to_array("x", pd.RangeIndex(3)), [0, 1, 2])
    np.testing.assert_array_equal(to_array("x", pd.DataFrame(REAL).iloc[1]), [-2.0, 4.5])
    np.testing.assert_array_equal(to_array("x", pd.Series({"columns": 1.5, "items": 2.5})), [1.5, 2.5])
    np.testing.assert_array_equal(to_array("x", pd.DataFrame(np.eye(2), columns=["a", "a"])), np.eye(2))
    np.testing.assert_array_equal(to_array("x", pd.DataFrame(REAL, index=[7, 7, 9])), np.stack([REAL["a"], REAL["b"]], 1))
    assert to_array("x", pd.DataFrame({"a": pd.array([1.5, 2.5], "Float64")})).dtype == np.float64
    with pytest.raises(TypeError, match="^x holds dates "):
        to_array("x", pd.date_range("2024-01-01", periods=3))
    with pytest.raises(ValueError, match="^x must have at least one column, got a table without any"):
        to_array("x", pd.DataFrame())


INTEGERS = (
    "^x: column 'k' holds integers; a density of real numbers would grow without bound on them: cast it to float if it is a "
    r"measurement, dequantise it \(add uniform noise\), or drop it$"
)
DAY, SPAN = datetime.datetime(2024, 2, 29), datetime.timedelta(days=1)
ANY_LIBRARY = [
    ([1, 2, 3], TypeError, INTEGERS),
    ([True, False, True], TypeError, r"^x: column 'k' holds booleans; .* dequantise it \(add uniform noise\), or drop it$"),
    (["a", "b", "c"], TypeError, r"^x: column 'k' holds text \('a' in row 0\); encode it as numbers, or drop it$"),
    ([None, "b", "c"], TypeError, r"^x: column 'k' holds text \('b' in row 1\)"),
    ([DAY, None, DAY], TypeError, r"^x: column 'k' holds dates \('2024-02-29.* in row 0\); convert it to numbers, such as days"),
    ([DAY.date()] * 3, TypeError, r"^x: column 'k' holds dates \('2024-02-29' in row 0\)"),
    ([SPAN, SPAN, None], TypeError, r"^x: column 'k' holds time spans \(.* in row 0\); convert it to numbers, such as seconds"),
    ([decimal.Decimal("1.5")] * 3, TypeError, r"^x: column 'k' holds objects \('1.5' in row 0\); convert it to numbers"),
    ([[1.0], [2.0], [3.0]], TypeError, r"^x: column 'k' holds objects \('\[1.0?\]' in row 0\); convert it to numbers"),
    (
        [1.5, None, 2.5],
        ValueError,
        r"^x: column 'k' has missing values \(NaN, None or NA\) in 1 of 3 rows; fill them, or drop",
    ),
    ([float("nan"), 1.5, float("nan")], ValueError, "^x: column 'k' has missing values .* in 2 of 3 rows"),
    ([None, None, None], ValueError, "^x: column 'k' has missing values .* in 3 of 3 rows"),
    ([1, None, 2], ValueError, "^x: column 'k' has missing values .* in 1 of 3 rows"),
]


@LIBRARIES
@pytest.mark.parametrize("column, error, message", ANY_LIBRARY, ids=str)
def test_columns_of_other_kinds(library, column, error, message):
    frame = library().DataFrame({"a": REAL["a"], "k": column, "b": REAL["b"]})
    with pytest.raises(error, match=message):
        to_array("x", frame)


@pytest.mark.parametrize(
    "column, error, message",
    [
        (lambda pd: pd.Series([1.5, 2.5, 2.5], dtype="category"), TypeError, r"holds categories \('1.5' in row 0\); encode it"),
        (lambda pd: pd.Series([1, 2, 3], dtype="Int64"), TypeError, INTEGERS),
        (lambda pd: pd.Series([1, None, 3], dtype="Int64"), ValueError, "missing values .* in 1 of 3 rows"),
        (lambda pd: pd.Series([1.5, None, 3], dtype="Float64"), ValueError, "missing values .* in 1 of 3 rows"),
        (lambda pd: pd.Series([True, None, False], dtype="boolean"), ValueError, "missing values .* in 1 of 3 rows"),
        (lambda pd: pd.Series([True, True, False], dtype="boolean"), TypeError, "holds booleans"),
        (lambda pd: pd.Series([DAY] * 3).dt.tz_localize("UTC"), TypeError, "holds dates"),
        (lambda pd: pd.period_range("2024", periods=3, freq="M"), TypeError, r"holds objects \('2024-01' in row 0\)"),
        (lambda pd: pd.Series([1.5, 2.5, 3.5], dtype=object), TypeError, r"holds objects \('1.5' in row 0\); convert it"),
        (lambda pd: pd.Series([1j, 2.0, 3.0]), TypeError, "holds complex numbers .*; take real and imaginary parts"),
    ],
)
def test_columns_of_pandas(column, error, message):
    pd = pandas()
    with pytest.raises(error, match=message):
        to_array("x", pd.DataFrame({"a": REAL["a"], "k": column(pd)}))


def test_columns_of_polars():
    pl = polars()
    for dtype in (pl.Categorical, pl.Enum(["u", "v"])):
        with pytest.raises(TypeError, match=r"^x: column 'k' holds categories \('u' in row 0\); encode it"):
            to_array("x", pl.DataFrame({"a": [1.5, 2.5], "k": pl.Series(["u", "v"], dtype=dtype)}))
    with pytest.raises(TypeError, match="^x must be an array of numbers, got LazyFrame"):
        to_array("x", pl.DataFrame(REAL).lazy())


@LIBRARIES
def test_several_columns_are_named_at_once(library):
    frame = library().DataFrame({"a": REAL["a"]} | {f"k{i}": [1, 2, 3] for i in range(7)})
    message = "^x: columns 'k0', 'k1', 'k2', 'k3', 'k4' and 2 more hold integers; .* cast them to float if they are measurements"
    with pytest.raises(TypeError, match=message):
        to_array("x", frame)
    frame = library().DataFrame({"a": [1.0, None, 2.0], "b": [None, None, 2.0], "c": [1.0, 2.0, 3.0]})
    with pytest.raises(ValueError, match="^x: columns 'a', 'b' have missing values .* in up to 2 of 3 rows"):
        to_array("x", frame)


@LIBRARIES
def test_contexts_may_hold_integers_among_real_numbers(library):
    frame = library().DataFrame({"a": REAL["a"].astype(np.float32), "k": [1, 2, 3], "on": [True, False, True]})
    x = to_context("context", frame)
    assert x.dtype == np.float32
    np.testing.assert_array_equal(x, [[1.5, 1, 1], [-2, 2, 0], [0.25, 3, 1]])
    with pytest.raises(TypeError, match="^context: column 'k' holds text"):
        to_context("context", library().DataFrame({"a": REAL["a"], "k": ["u", "v", "w"]}))


def test_constant_columns():
    x = np.stack([REAL["a"], np.full(3, 2.0), np.zeros(3)], 1)
    message = "^x: columns {} are constant; a density of real numbers would grow without bound there: drop them$"
    with pytest.raises(ValueError, match=message.format("'k', 'l'")):
        check_varying("x", x, ["'a'", "'k'", "'l'"])
    with pytest.raises(ValueError, match="^x: column 1 is constant; .* drop it$"):
        check_varying("x", jnp.asarray(x[:, :2]))
    # One row varies as much as it can, integers are no density, and images have dark corners.
    for fine in (x[:, :1], x[:1], x.astype(int), np.zeros((3, 2, 2, 1)), np.zeros(3)):
        check_varying("x", fine)


def test_no_package_of_tables_is_imported():
    code = "import sys, genmod.core.arrays; assert not {'pandas', 'polars', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
