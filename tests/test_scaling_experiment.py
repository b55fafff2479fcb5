"""The experiment on scaling: its fits find laws that are known, and it runs, small."""

import json

import numpy as np
import pytest

import genmod as gm
from experiments import scaling

N, D = (a.ravel() for a in np.meshgrid(10.0 ** np.linspace(3.8, 5.6, 6), 10.0 ** np.linspace(4.8, 6.0, 5)))
LAW = scaling.PowerLaw(np.array(1.1), np.array([12.0, 150.0]), np.array([0.35, 0.45]))


def test_a_law_without_noise_is_found():
    found = scaling.fit_power_law(LAW(N, D), N, D)
    for value, true in zip(found, LAW, strict=True):
        np.testing.assert_allclose(value, true, rtol=1e-4)
    found = scaling.fit_power_law(0.8 + 9.0 * N**-0.3, N)
    np.testing.assert_allclose([found.floor, found.factors[0], found.exponents[0]], [0.8, 9.0, 0.3], rtol=1e-4)


def test_a_law_without_a_floor_is_found():
    found = scaling.fit_power_law(12.0 * N**-0.35 + 150.0 * D**-0.45, N, D)
    assert found.floor < 1e-6
    np.testing.assert_allclose(found.exponents, LAW.exponents, rtol=1e-4)


def test_one_wild_run_does_not_move_the_law():
    loss = LAW(N, D)
    loss[7] *= 2
    np.testing.assert_allclose(scaling.fit_power_law(loss, N, D).exponents, LAW.exponents, rtol=0.01)


def interval(law, loss, num):
    """The numbers of a law, and the ends of their 90 % intervals."""
    draws = scaling.bootstrap(law, loss, N, D, num=num, seed=1)
    low, high = np.quantile(np.column_stack([draws.floor, draws.exponents]), [0.05, 0.95], axis=0)
    return np.array([law.floor, *law.exponents]), low, high


def test_the_law_is_found_within_its_error():
    noise, true = np.random.default_rng(0).normal(size=len(N)), [LAW.floor, *LAW.exponents]
    widths = []
    for sigma in (0.004, 0.001):
        loss = LAW(N, D) * np.exp(sigma * noise)
        found, low, high = interval(scaling.fit_power_law(loss, N, D), loss, 40)
        assert (np.abs(found - true) < high - low).all()  # the width is 3.3 standard errors
        widths.append(high - low)
    assert (widths[1] < 0.5 * widths[0]).all()


@pytest.mark.slow
def test_intervals_cover_the_law():
    covered = np.zeros(3)
    for seed in range(40):
        loss = LAW(N, D) * np.exp(0.004 * np.random.default_rng(seed).normal(size=len(N)))
        _, low, high = interval(scaling.fit_power_law(loss, N, D, starts=(LAW,)), loss, 60)
        covered += (low < [LAW.floor, *LAW.exponents]) & ([LAW.floor, *LAW.exponents] < high)
    assert (covered >= 36 - 3 * np.sqrt(40 * 0.9 * 0.1)).all()


def test_a_line_and_its_error():
    x = 10.0 ** np.linspace(3, 5, 8)
    factor, exponent = scaling.fit_line(3.0 * x**-0.08, x)
    assert factor == pytest.approx(3.0) and exponent.value == pytest.approx(0.08) and exponent.sem < 1e-12
    noise = np.random.default_rng(0).normal(size=(400, 8))
    slopes, sems = zip(*(scaling.fit_line(3.0 * x**-0.08 * np.exp(0.01 * row), x)[1] for row in noise), strict=True)
    # The variance of a slope is sigma^2 / sum (log x - mean)^2; 400 of them know its root to 3.5 %.
    theory = 0.01 / np.sqrt(((np.log(x) - np.log(x).mean()) ** 2).sum())
    assert np.std(slopes) == pytest.approx(theory, rel=0.14)
    assert np.sqrt(np.mean(np.square(sems))) == pytest.approx(theory, rel=0.14)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        (["--budgets", "16000", "32000"], "sizes and budgets must be three different ones each at least"),
        (["--budgets", "60", "16000", "32000"], "budgets must be of a batch at least and of one pass, .* at most, got 60"),
    ],
)
def test_bad_settings_are_refused(settings, match, tmp_path):
    with pytest.raises(SystemExit, match=match):
        gm.lab.main(scaling.experiment, scaling.Config, arguments=["--data", "numbers", *settings, "--out", str(tmp_path)])


@pytest.mark.slow
def test_it_runs(tmp_path):
    settings = {"sizes": [8, 1, 1, 16, 1, 1, 24, 1, 2], "budgets": [16_000, 32_000, 64_000], "num_bootstrap": [50]}
    arguments = [f"{a}" for name, values in settings.items() for a in (f"--{name.replace('_', '-')}", *values)]
    gm.lab.main(scaling.experiment, scaling.Config, arguments=["--data", "numbers", *arguments, "--out", str(tmp_path)])
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    # A block of width C has 12 C^2 + 13 C parameters (4 C^2 + 4 C of attention, 8 C^2 + 5 C of the layer after it, 4 C of norms),
    # the layer before it C^2 + C, the last norm 2 C.
    sizes = [13 * c**2 + 16 * c for c in (8, 16, 24)]
    losses = np.array([[metrics[f"nats_{n}_{d // 64 * 64}"] for d in settings["budgets"]] for n in sizes])
    assert (losses > metrics["limit_nats"]).all() and (losses < np.log(20)).all()
    assert (np.diff(losses.mean(0)) < 0).all()  # more text helps
    assert metrics["line_D"] > 3 * metrics["line_D_sem"]
    assert {path.name for path in tmp_path.iterdir()} >= {"scaling.png", "scaling.txt"}
