"""The table over all families: its parts against what is known, and the whole from the command line."""

import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import genmod as gm
from experiments.compare import cells, compare, model_on_data, report, sets
from experiments.compare.cells import Cell
from experiments.compare.recipe import Recipe, timed
from experiments.compare.recipes import RECIPES, find
from experiments.compare.summary import Row, Value, advice, averaged, row

ROOT = Path(__file__).parents[1]
TINY: dict[str, Any] = {"num_train": 2_000, "num_test": 500, "num_steps": 20, "batch_size": 64}
TINY |= {"num_samples": 200, "num_compared": 100, "hidden_sizes": (8, 8), "network_sizes": (8, 8)}
TINY |= {"num_chains": 8, "num_annealed_levels": 5}


def test_means_over_seeds_have_the_larger_of_two_errors():
    found = [{"a": 1.0, "a_sem": 0.3, "b": 2, "c": 1.0}, {"a": 1.2, "a_sem": 0.4, "b": 4, "c": None}]
    values = averaged(found, fresh=True)
    assert set(values) == {"a", "b"}
    assert np.allclose(values["a"], (1.1, 0.25)) and np.allclose(values["b"], (3.0, 1.0))
    assert np.isnan(averaged(found[:1], fresh=True)["b"].sem) and np.allclose(averaged(found[:1], fresh=True)["a"], (1.0, 0.3))
    # Seeds that share their test points do not make them more.
    assert np.allclose(averaged([found[0]] * 3, fresh=False)["a"], (1.0, 0.3))
    assert np.allclose(averaged([found[0]] * 3, fresh=True)["a"], (1.0, 0.3 / np.sqrt(3)))


def rows():
    made = {"good": (0.01, 5_000, 30.0, 0.3), "small": (0.02, 50, 60.0, 0.2)}
    made |= {"quick": (0.029, 9_000, 5.0, 0.05), "bad": (1.0, 5, 1.0, 9.0)}
    names = ("gap_nats", "num_params", "train_seconds", "sliced_w2")
    return [
        Row(model, "flow", "EXACT", {name: Value(float(v), 0.001) for name, v in zip(names, values, strict=True)})
        for model, values in made.items()
    ]


def test_advice_names_the_best_of_those_that_are_good_enough():
    said = {one.job: one for one in advice(rows())}
    assert said["the best exact density"].model == "good"
    assert said["a density within 0.02 nats of it, the fewest parameters"].model == "small"
    assert said["a density within 0.02 nats of it, the shortest training"].model == "quick"
    assert said["the samples nearest to the data"].model == "quick" and said["the samples nearest to the data"].level == ""
    assert said["the best exact density"].reason == "gap 0.0100, 5,000 parameters, 30 s of training"
    data = Row("kernel", "classical", "EXACT", {"gap_nats": Value(0.0115, 0.001), "num_params": Value(0.0, 0.0)})
    broken = Row("broken", "flow", "EXACT", {"gap_nats": Value(0.0, 0.001), "num_bad_samples": Value(3.0, 0.0)})
    said = {one.job: one for one in advice([*rows(), data, broken])}
    assert (said["the best exact density"].model, said["the best exact density"].level) == ("good", "kernel")
    assert said["a density within 0.02 nats of it, the fewest parameters"].model == "small"  # one that is all data has none
    assert advice([Row("pixel_cnn", "autoregressive", reason="models levels")]) == []


def test_a_recipe_says_why_it_does_not_apply():
    x = np.zeros((20, 3), np.float32)
    real = gm.data.Dataset("real", x, x, x)
    bits = gm.data.Dataset("bits", *[x.astype(np.uint8)] * 3, num_levels=2)

    def refuses(name, data):
        return find(name).refuses(data)

    assert refuses("nsf", real) is None and refuses("rbm", bits) is None
    assert refuses("nsf", bits) == "models at least 3 levels, and these have 2 levels"
    assert refuses("rbm", real) == "models levels, and these are real numbers"
    assert refuses("vae", bits) == "models real numbers, and these are levels"
    assert "images (H, W, C), and an event here has shape (3,)" in refuses("pixel_cnn", bits)
    assert Recipe("flow", lambda task: None, least_dim=4).refuses(real) == "wants at least 4 dimensions, and here are 3"
    with pytest.raises(ValueError, match="^model must be one of truth, gaussian, .*; got 'nope'$"):
        find("nope")


@pytest.mark.parametrize("name", ["two_moons", pytest.param("twonorm", marks=pytest.mark.slow)])
def test_a_problem_is_in_units_of_its_own(name):
    problem = sets.load(name, 1_000, 300, seed=0)
    z = problem.data.test
    assert np.allclose(np.asarray(problem.data.train).std(0), 1.0, atol=1e-3) and len(z) == 300
    law = gm.data.TwoMoons() if name == "two_moons" else gm.data.TwoNorm()
    expected = law.log_prob({}, jnp.asarray(problem.back(np.asarray(z)), jnp.float32))
    assert np.allclose(problem.true_log_prob(z) - problem.log_scale, expected, atol=1e-4)
    assert problem.limit == law.entropy() and np.allclose(problem.to(problem.back(np.asarray(z))), z, atol=1e-5)
    with pytest.raises(ValueError, match="^data must be a file, or one of two_moons, .*; got 'nonsense'$"):
        sets.load("nonsense", 1_000, 300, seed=0)


@pytest.mark.parametrize("name", sorted(sets.MODES))
def test_the_modes_of_a_law_have_equal_shares(name):
    num, part = sets.MODES[name]
    x = np.asarray(sets.TOYS[name](jax.random.key(0), 8_000).train)
    shares = np.bincount(part(x), minlength=num) / len(x)
    assert len(shares) == num and (np.abs(shares - 1 / num) < 4.5 * np.sqrt((1 - 1 / num) / num / len(x))).all()


def cell(model, found, error=None):
    return Cell(model_on_data.Config(model=model), found, error, Path())


def test_a_row_says_what_a_likelihood_is():
    def one(model, found, error=None):
        return row(model, [cell(model, found, error)], fresh=True)

    exact = one("nsf", {"likelihood": "EXACT", "gap_nats": 0.01, "gap_nats_sem": 0.001, "num_params": 5})
    bound = one("vae", {"likelihood": "LOWER_BOUND", "gap_nats": 0.3, "gap_nats_sem": 0.01, "num_params": 5})
    ends = {f"gap_{end}_nats{sem}": value for end, sem, value in (("low", "", 0.1), ("high", "", 0.12), ("low", "_sem", 0.02))}
    energy = one("replay", {"likelihood": "UNNORMALIZED", "num_params": 5, **ends, "gap_high_nats_sem": 0.01})
    absent, failed = one("rbm", {"not_applicable": "models levels"}), one("gan", {}, "the loss was NaN | at step 3")
    section = report.Section("two_moons", (exact, bound, energy, absent, failed), 0.2892, None)
    text = gm.lab.markdown(section.table())
    assert "**0.0100 +- 0.0010**" in text and "at most 0.3000 +- 0.0100" in text and "0.1000 to 0.1200 +- 0.0200" in text
    assert "models levels" in text and r"failed: the loss was NaN \| at step 3" in text
    assert section.metrics()["two_moons_nsf_gap_nats"] == 0.01 and section.metrics()["two_moons_limit_nats"] == 0.2892


def test_what_is_wrong_with_a_row_stands_behind_its_name():
    found = {"likelihood": "EXACT", "num_bad_samples": 2, "num_failed": 3, "num_params": 5}
    partly = row("nsf", [cell("nsf", found), cell("nsf", {}, "killed")], fresh=True)
    assert not partly.sound and partly.get("num_params") == 5
    assert report.remarks(partly) == " (without seed 0, which failed; 2 of its draws are no numbers; no density at 3 points)"
    ends = {"nll_low_nats": Value(0.5, 0.01), "nll_high_nats": Value(0.3, 0.02)}
    crossed = Row("replay", "energy", "UNNORMALIZED", ends)
    assert crossed.crossed and "its chains have not mixed" in report.remarks(crossed)
    assert not dataclasses.replace(crossed, values=ends | {"nll_high_nats": Value(0.46, 0.02)}).crossed
    assert all(said.job != "the best energy" for said in advice([crossed]))


def test_a_clock_goes_on_where_a_killed_process_left_it(tmp_path):
    path = tmp_path / "seconds.json"
    path.write_text("100.0")
    with timed(path) as clock:
        assert 100.0 <= clock() < 101.0
    assert json.loads(path.read_text()) == clock() < 101.0


def test_a_run_of_another_version_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = model_on_data.Config(data="two_moons", model="rbm", **TINY)  # it does not apply, and costs nothing
    assert "not_applicable" in gm.lab.execute(model_on_data.experiment, config)
    path = gm.lab.locate(model_on_data.experiment, config).folder / "provenance.json"
    provenance = json.loads(path.read_text())
    provenance["versions"]["genmod-jax"] = "0.0.1"
    path.write_text(json.dumps(provenance))
    with pytest.raises(ValueError, match="holds a run of genmod 0.0.1, and this is genmod"):
        gm.lab.execute(model_on_data.experiment, config)


# Every recipe trains and is measured; data without files, on which it applies.
PLANE = [name for name, recipe in RECIPES.items() if recipe.real]
DIGITS = [name for name, recipe in RECIPES.items() if recipe.levels is not None]
QUICK = {("two_moons", "gaussian")}
CASES = [("two_moons", name) for name in PLANE] + [("digits", name) for name in DIGITS]


@pytest.mark.parametrize(
    ("data", "model"), [pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow) for case in CASES]
)
def test_every_recipe_runs(tmp_path, data, model):
    config = model_on_data.Config(data=data, model=model, **TINY)
    found = model_on_data.experiment(config, gm.lab.Run(tmp_path))
    assert "not_applicable" not in found and found["num_bad_samples"] == 0 and 0.0 <= found["coverage"] <= 1.0
    kind = found.get("likelihood")
    if kind in ("EXACT", "LOWER_BOUND") and "gap_nats" in found:
        assert found["gap_nats"] > -4.5 * found["gap_nats_sem"]  # no law is better than the truth, and bounds are below
    elif kind == "UNNORMALIZED":
        assert np.isfinite([found["nll_low_nats"], found["nll_high_nats"]]).all()
    samples = np.load(tmp_path / "samples.npy")
    assert len(samples) == 100 and samples.dtype.kind == ("f" if data == "two_moons" else "u")


def run(folder, *arguments):
    command = [sys.executable, "-m", "experiments.compare", *arguments, "--workers", "1", "--seeds", "1"]
    for name, value in TINY.items():
        command += [f"--fit.{name.replace('_', '-')}", *map(str, value if isinstance(value, tuple) else (value,))]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    return subprocess.Popen(command, cwd=folder, env=environment, **options)


def without_times(text):
    """A report without its seconds: the two columns of a table, and what advice says of them."""
    text = re.sub(r"^((?:\|[^|]*){3})\|[^|]*\|[^|]*\|", r"\1|", text, flags=re.MULTILINE)
    text = re.sub(r"[\d,]+ (?:s of training|ms for the draws)", "", text)
    return "\n".join(line for line in text.splitlines() if "the shortest" not in line and "the fastest" not in line)


@pytest.mark.slow
def test_killed_and_started_again_the_report_is_the_same(tmp_path):
    arguments = ["--data", "two_moons", "--models", "truth", "gaussian", "planar", "rbm"]
    texts = []
    for name, kills in (("whole", ()), ("killed", (6.0, 10.0))):
        folder = tmp_path / name
        folder.mkdir()
        for seconds in kills:
            process = run(folder, *arguments)
            time.sleep(seconds)
            process.kill()  # the parent alone: its processes must end with it
            process.communicate()
        done = run(folder, *arguments)
        output, error = done.communicate()
        assert done.returncode == 0, error
        assert "models levels, and these are real numbers" in output
        (path,) = folder.glob("runs/compare/*/report.md")
        texts.append(without_times(path.read_text()))
        page = path.with_suffix(".html").read_text()
        assert "data:image/png;base64," in page and "http://" not in page and "https://" not in page
    assert texts[0] == texts[1]


@pytest.mark.slow
def test_what_is_unknown_is_said_and_the_rest_is_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit = model_on_data.Config(**TINY)
    config = compare.Config(data=("two_moons", "nonsense"), models=("gaussian", "nope"), seeds=1, fit=fit, workers=1)
    with pytest.raises(ValueError, match="^the report holds what was made; not all was. data must be a file.*got 'nope'$"):
        gm.lab.execute(compare.experiment, config)
    (path,) = tmp_path.glob("runs/compare/*/report.md")
    text = path.read_text()
    assert "| gaussian | classical | 6 |" in text and "Not made: data must be a file" in text and "got 'nope'" in text


def test_no_worker_is_refused():
    with pytest.raises(ValueError, match="^workers must be at least 1, got 0"):
        cells.run_all([model_on_data.Config()], 0)
    with pytest.raises(ValueError, match="^--data and --models must each name at least one"):
        compare.experiment(dataclasses.replace(compare.Config(), seeds=0), gm.lab.Run(Path()))
