"""`evaluate`, `health`, `run` and `plot`: what stands between a fitted model and a number in a table."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import genmod as gm
from genmod.bijectors import Chain, DiagonalAffine, Elementwise, Invert, RationalQuadraticSpline, Repeat, TriangularAffine


def gaussian_flow(dim=2):
    flow = gm.models.Flow(TriangularAffine(), gm.densities.Normal((dim,)))
    return flow, flow.init(jax.random.key(0), jnp.zeros((4, dim)))


def test_evaluate_is_the_closed_form_of_a_gaussian(key):
    flow, params = gaussian_flow()
    x = 1.0 + 2.0 * jax.random.normal(key, (2_000, 2))
    found = gm.evaluate(flow, params, x, batch_size=300)
    nll = 0.5 * np.sum(np.asarray(x, np.float64) ** 2, 1) + np.log(2 * np.pi)
    assert found["nll_nats"] == pytest.approx(nll.mean(), rel=1e-6)
    assert found["nll_nats_sem"] == pytest.approx(nll.std(ddof=1) / 2_000**0.5, rel=1e-5)
    assert found["num_params"] == 4 + 2  # one matrix and one shift


def test_gap_is_the_paired_estimate_of_the_kl(key):
    flow, params = gaussian_flow(1)
    x = 1.0 + jax.random.normal(key, (50_000, 1))
    found = gm.evaluate(flow, params, x, true_log_prob=lambda x: jax.scipy.stats.norm.logpdf(x[:, 0], 1.0))
    # KL(N(1, 1) || N(0, 1)) = 1/2; log p - log q = x - 1/2 has variance 1.
    assert found["gap_nats_sem"] == pytest.approx(50_000**-0.5, rel=0.02)
    assert abs(found["gap_nats"] - 0.5) < 4 * found["gap_nats_sem"]


def test_evaluate_refuses_what_is_not_finite():
    flow = gm.models.Flow(TriangularAffine(), gm.densities.Uniform((1,), 0.0, 1.0))
    params = flow.init(jax.random.key(0), jnp.zeros((4, 1)))
    with pytest.raises(ValueError, match="not finite for 1 of 2 events"):
        gm.evaluate(flow, params, jnp.array([[0.5], [1.5]]))


@dataclasses.dataclass(frozen=True)
class SometimesUnsolved(gm.Bijector):
    """The identity, whose inverse does not arrive beyond 1."""

    def _init(self, key, x, context):
        return {}

    def _forward(self, params, z, context):
        return z, 0.0

    def _inverse(self, params, x, context):
        return x, jnp.where(x[0] > 1, jnp.nan, 0.0)


def test_evaluate_leaves_out_and_counts_a_share_of_failures():
    flow = gm.models.Flow(SometimesUnsolved(), gm.densities.Normal((1,)))
    params, x = {"bijector": {}}, jnp.array([[0.0], [2.0], [-1.0], [0.5]])
    for max_failed in (0.0, 0.2):
        with pytest.raises(ValueError, match=r"not finite for 1 of 4 events \(1 of them NaN\).*max_failed"):
            gm.evaluate(flow, params, x, max_failed=max_failed)
    found = gm.evaluate(flow, params, x, max_failed=0.25, true_log_prob=lambda x: jax.scipy.stats.norm.logpdf(x[:, 0]) + x[:, 0])
    solved = np.array([0.0, -1.0, 0.5])
    assert found["num_failed"] == 1
    assert found["nll_nats"] == pytest.approx(np.mean(0.5 * solved**2 + 0.5 * np.log(2 * np.pi)), rel=1e-6)
    assert found["gap_nats"] == pytest.approx(solved.mean(), rel=1e-5)  # paired with the same events
    assert "num_failed" not in gm.evaluate(flow, params, x[2:], max_failed=0.25)
    with pytest.raises(ValueError, match="not finite for 2 of 5"):  # infinite is outside the support, not unsolved
        gm.evaluate(flow, params, jnp.concatenate([x, jnp.array([[-jnp.inf]])]), max_failed=0.9)


# --- what each kind of likelihood reports ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Bell(gm.Model):
    """exp(-x.x / 2), of whatever kind it says it is."""

    kind: gm.Likelihood
    can_sample: bool = True
    context_shape: tuple[int, ...] | None = None

    @property
    def likelihood(self):
        return self.kind

    @property
    def event(self):
        return gm.Real((2,))

    def _init(self, key, x, context):
        return {"shift": jnp.zeros(2)}

    def loss(self, params, key, batch, *, step=None):
        return 0.0, {}

    def log_prob_one(self, params, x, context=None, key=None):
        return -0.5 * jnp.sum((x - params["shift"]) ** 2)

    def sample_one(self, params, key, context=None):
        if not self.can_sample:
            raise NotImplementedError("Bell cannot be sampled")
        noise = params["shift"] + jax.random.normal(key, (2,))
        return noise if context is None else 1e-3 * noise + context


BELL = {"shift": jnp.array([1.0, -2.0])}
ROWS = np.random.default_rng(0).standard_normal((400, 2)).astype(np.float32)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (gm.Likelihood.EXACT, "nll_nats"),
        (gm.Likelihood.ESTIMATE, "nll_estimate_nats"),
        (gm.Likelihood.LOWER_BOUND, "nll_upper_bound_nats"),
        (gm.Likelihood.UNNORMALIZED, "energy_nats"),
    ],
)
def test_the_key_says_what_the_number_is(kind, name):
    found = gm.evaluate(Bell(kind), BELL, ROWS)
    assert set(found) == {"num_params", name, f"{name}_sem"}
    energy = 0.5 * ((ROWS.astype(np.float64) - [1.0, -2.0]) ** 2).sum(1)
    assert found[name] == pytest.approx(energy.mean(), rel=1e-6)
    assert found[f"{name}_sem"] == pytest.approx(energy.std(ddof=1) / 20, rel=1e-5)


def test_weights_of_rows_are_repetitions():
    weight = np.arange(400) % 3
    found = gm.evaluate(Bell(gm.Likelihood.EXACT), BELL, ROWS, weight=weight)
    repeated = gm.evaluate(Bell(gm.Likelihood.EXACT), BELL, np.repeat(ROWS, weight, axis=0))
    assert found["nll_nats"] == pytest.approx(repeated["nll_nats"], rel=1e-6)
    equal = gm.evaluate(Bell(gm.Likelihood.EXACT), BELL, ROWS, weight=np.full(400, 2.5))
    assert equal == pytest.approx(gm.evaluate(Bell(gm.Likelihood.EXACT), BELL, ROWS))


def mean_distance(samples, x):
    assert isinstance(samples, np.ndarray) and isinstance(x, np.ndarray)
    return float(np.linalg.norm(samples.mean(0) - x.mean(0)))


def moments(samples, x):
    return {"num": len(samples), "first": samples[:, 0].mean()}


@pytest.mark.parametrize("kind", [gm.Likelihood.EXACT, gm.Likelihood.NONE])
def test_metrics_are_taken_of_samples(key, kind):
    options = {"key": key, "metrics": (mean_distance, moments), "batch_size": 300}
    found = gm.evaluate(Bell(kind), BELL, ROWS, **options)
    assert found["num"] == 400 and ("nll_nats" in found) == (kind is gm.Likelihood.EXACT)
    distance = np.linalg.norm(np.array([1.0, -2.0]) - ROWS.mean(0))
    assert abs(found["mean_distance"] - distance) < 4.5 / 20 and abs(found["first"] - 1.0) < 4.5 / 20
    assert found == gm.evaluate(Bell(kind), BELL, ROWS, **options)
    assert gm.evaluate(Bell(kind), BELL, ROWS, num_samples=1_000, **options)["num"] == 1_000


def test_samples_of_a_conditional_model_go_with_their_rows(key):
    context = np.arange(800, dtype=np.float32).reshape(400, 2)

    def row_by_row(samples, x):
        return float(np.abs(samples - context[np.arange(len(samples)) % 400]).max())

    model = Bell(gm.Likelihood.NONE, context_shape=(2,))
    for num_samples in (None, 900):
        options = {"key": key, "metrics": (row_by_row,), "num_samples": num_samples, "batch_size": 150}
        assert gm.evaluate(model, BELL, ROWS, context, **options)["row_by_row"] < 0.01
    shared = gm.evaluate(model, BELL, ROWS, context[7], key=key, metrics=(moments,))
    assert shared["first"] == pytest.approx(14.0, abs=0.01)


@pytest.mark.parametrize(
    ("model", "options", "match"),
    [
        (Bell(gm.Likelihood.NONE), {}, r"Bell has no log_prob to report; pass metrics=\(fn, \.\.\.\)"),
        (Bell(gm.Likelihood.EXACT), {"metrics": (moments,)}, r"samples want key=jax\.random\.key\(seed\)"),
        (Bell(gm.Likelihood.NONE, False), {"metrics": (moments,), "key": jax.random.key(0)}, "samples, which Bell does not give"),
        (Bell(gm.Likelihood.UNNORMALIZED), {"true_log_prob": jnp.sum}, "wants a model with a normalised log_prob.*UNNORMALIZED"),
        (Bell(gm.Likelihood.EXACT), {"metrics": (lambda s, x: s,), "key": jax.random.key(0)}, "must give floats.*of shape"),
        (Bell(gm.Likelihood.EXACT), {"metrics": (moments, moments), "key": jax.random.key(0)}, "gives 'num', which is reported"),
        (Bell(gm.Likelihood.EXACT), {"weight": np.ones(3)}, "weight must be 400 finite numbers"),
        (Bell(gm.Likelihood.EXACT), {"context": np.ones((400, 2))}, "takes no context"),
        (
            Bell(gm.Likelihood.EXACT, context_shape=(2,)),
            {"context": np.ones((3, 2))},
            r"must have shape \(400, 2\).*got \(3, 2\)",
        ),
        (Bell(gm.Likelihood.EXACT), {"true_log_prob": lambda x: x}, r"finite values of shape \(400,\), got shape \(400, 2\)"),
        (Bell(gm.Likelihood.EXACT), {"metrics": (moments,), "key": jax.random.key(0), "num_samples": 0}, "num_samples must be"),
    ],
)
def test_evaluate_says_what_it_wants(model, options, match):
    with pytest.raises(ValueError, match=match):
        gm.evaluate(model, BELL, ROWS, **options)


def test_evaluate_reads_tables():
    pandas = pytest.importorskip("pandas")
    found = gm.evaluate(Bell(gm.Likelihood.EXACT), BELL, pandas.DataFrame(ROWS, columns=["a", "b"]))
    assert found == gm.evaluate(Bell(gm.Likelihood.EXACT), BELL, ROWS)


# --- health, runs, tables and figures -----------------------------------------------------------------------------------------


def test_health_measures_slopes_tails_and_round_trips(key):
    spline = Elementwise(RationalQuadraticSpline(4, bound=1.0))
    bijector = Chain((Repeat(Chain((spline,)), 2), DiagonalAffine()))
    x = jax.random.normal(key, (256, 3))
    params = bijector.init(key, x)
    params = (*params[:1], {"scale": jnp.array([0.5, 1.0, -4.0]), "shift": jnp.zeros(3)})
    report = gm.health(bijector, params, x)
    assert [layer.name for layer in report.layers] == [
        "DiagonalAffine",
        "1: Elementwise(RationalQuadraticSpline)",
        "0: Elementwise(RationalQuadraticSpline)",
    ]
    affine, *splines = report.layers
    assert (affine.smallest_slope, affine.largest_slope) == pytest.approx((0.5, 4.0), rel=1e-5)
    share = float(np.mean(np.abs(np.asarray(x) / np.asarray(params[1]["scale"])) > 1.0))
    assert [layer.tail_share for layer in splines] == pytest.approx([share] * 2, abs=1e-6)
    assert report.round_trip < 1e-5
    assert any("outside the spline" in warning for warning in report.warnings)
    assert "DiagonalAffine" in str(report) and "warning" in str(report)


def test_health_warns_where_float32_is_not_enough(key):
    bijector = Invert(DiagonalAffine())
    params = {"scale": jnp.ones(2), "shift": jnp.full(2, -3e6)}  # x + 3e6 keeps no digit of x
    x = jax.random.normal(key, (32, 2))
    assert any("float32 is not enough" in warning for warning in gm.health(bijector, params, x).warnings)
    assert not gm.health(bijector, params | {"shift": jnp.ones(2)}, x).warnings


@dataclasses.dataclass(frozen=True)
class Config:
    number: int = 1
    sizes: tuple[int, ...] = (2, 3)


def experiment(config, run):
    if config.number < 0:
        raise ValueError(f"number must be >= 0, got {config.number}")
    with (run.folder / "calls").open("a") as file:
        file.write("x")
    return {"twice": 2 * config.number}


def test_run_happens_once_and_writes_metrics_last(tmp_path, capsys):
    arguments = ["--number", "4", "--out", str(tmp_path / "a")]
    assert gm.lab.main(experiment, Config, arguments=arguments) == {"twice": 8}
    assert gm.lab.main(experiment, Config, arguments=arguments) == {"twice": 8}
    assert (tmp_path / "a" / "calls").read_text() == "x"
    assert "already done" in capsys.readouterr().out
    assert json.loads((tmp_path / "a" / "config.json").read_text())["number"] == 4
    assert json.loads((tmp_path / "a" / "provenance.json").read_text())["versions"]["jax"] == jax.__version__
    with pytest.raises(SystemExit, match="another config"):
        gm.lab.main(experiment, Config, arguments=["--number", "5", "--out", str(tmp_path / "a")])


def test_quick_changes_the_defaults_only(tmp_path):
    quick = {"number": 7}
    assert gm.lab.main(experiment, Config, quick=quick, arguments=["--quick", f"--out={tmp_path / 'a'}"]) == {"twice": 14}
    arguments = ["--quick", "--number", "3", "--out", str(tmp_path / "b")]
    assert gm.lab.main(experiment, Config, quick=quick, arguments=arguments) == {"twice": 6}


def test_a_users_mistake_is_one_sentence(tmp_path):
    with pytest.raises(SystemExit, match=r"^error: number must be >= 0, got -1$"):
        gm.lab.main(experiment, Config, arguments=["--number", "-1", "--out", str(tmp_path)])
    assert not (tmp_path / "metrics.json").exists()


def test_folder_depends_on_the_config_alone():
    folders = {gm.lab.locate(experiment, config).folder for config in (Config(), Config(1), Config(2), Config(sizes=(2,)))}
    assert len(folders) == 3
    assert all(folder.parts[:2] == ("runs", "test_evaluate") for folder in folders)


def test_table_aligns():
    lines = gm.lab.text_table([{"a": 1, "b": 0.25}, {"a": 10, "c": "x"}]).splitlines()
    assert lines[0].split() == ["a", "b", "c"]
    assert len({len(line) for line in lines}) == 1


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_figures_show_something(tmp_path, dim, key):
    pyplot = pytest.importorskip("matplotlib.pyplot", exc_type=ImportError)
    x = np.asarray(jax.random.normal(key, (500, dim)))
    gm.lab.plot.samples(tmp_path / "samples.png", x, x + 1)
    history = {"step": np.arange(5), "loss": np.arange(5.0)[::-1], "validation_loss": np.arange(5.0)[::-1] + 0.1}
    gm.lab.plot.training(tmp_path / "training.png", history, limit=0.0)
    if dim == 2:
        gm.lab.plot.density(tmp_path / "density.png", lambda x: -0.5 * jnp.sum(x**2, -1), x)
    for path in tmp_path.glob("*.png"):
        assert np.std(pyplot.imread(path)[..., :3]) > 0.02, path
