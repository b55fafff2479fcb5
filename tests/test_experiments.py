"""The main job as a user runs it: from the command line, with files of their own, with mistakes, and killed in the middle."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import genmod as gm
from experiments import density as density_experiment
from genmod.core.keys import stream

ROOT = Path(__file__).parents[1]
SMALL = ["--num-train", "2000", "--num-test", "1000", "--num-steps", "300", "--hidden-sizes", "16", "16", "--batch-size", "64"]


def density(*arguments, **kwargs):
    environment = os.environ | {"PYTHONWARNINGS": "default", "JAX_NUMPY_RANK_PROMOTION": "raise"}
    command = [sys.executable, "-m", "experiments.density", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, **kwargs)


@pytest.mark.slow
def test_a_table_of_ones_own(tmp_path):
    rng = np.random.default_rng(0)
    x = np.stack([rng.normal(3.0, 2.0, 400), rng.exponential(1.0, 400), rng.normal(0, 1e-3, 400)], 1)
    np.savetxt(tmp_path / "mine.csv", x, delimiter=",", header="height,wait,noise", comments="")
    out = tmp_path / "run"
    done = density("--data", tmp_path / "mine.csv", "--model", "real_nvp", "--num-layers", 2, *SMALL, "--out", out)
    assert done.returncode == 0, done.stderr
    wanted = {"config.json", "provenance.json", "timing.json", "metrics.json", "log.jsonl", "health.txt", "checkpoint"}
    assert wanted | {"samples.png", "training.png"} <= {path.name for path in out.iterdir()}
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["model"] == "real_nvp" and metrics["num_test"] == 40 and "limit_nats" not in metrics
    assert f"{metrics['nll_nats']:.4f} +- {metrics['nll_nats_sem']:.4f}" in done.stdout
    # Densities are those of the user's units: within a nat of the true entropy of the three columns.
    entropy = 0.5 * np.log(2 * np.pi * np.e * np.array([4.0, 1e-6])).sum() + 1.0
    assert abs(metrics["nll_nats"] - entropy) < 1.0 + 4 * metrics["nll_nats_sem"]


def refused(*arguments):
    """The sentence with which the same command ends, without a process of its own."""
    with pytest.raises(SystemExit) as ended:
        gm.lab.main(density_experiment.experiment, density_experiment.Config, arguments=[str(a) for a in arguments])
    return str(ended.value)


def test_a_bad_table_ends_the_program_with_one_sentence(tmp_path):
    path = tmp_path / "bad.csv"
    path.write_text("a,b\n1.0,red\n" * 20)
    failed = density("--data", path, *SMALL, "--out", tmp_path / "run")
    assert failed.returncode != 0
    assert "Traceback" not in failed.stderr
    error = failed.stderr.strip().splitlines()[-1]
    assert error.startswith("error: ") and "'b'" in error, error


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1.0,red\n" * 20, "column 'b'|'b'"),
        ("", "empty"),
        ("1.0,nan\n" * 20, "NaN|not finite|nan"),
    ],
)
def test_a_bad_table_is_one_sentence(tmp_path, content, message):
    path = tmp_path / "bad.csv"
    path.write_text(content)
    error = refused("--data", path, *SMALL, "--out", tmp_path / "run")
    assert error.startswith("error: ") and "\n" not in error and any(part in error for part in message.split("|")), error


def test_an_unknown_model_or_set_is_refused(tmp_path):
    failed = density("--model", "nonesuch", "--out", tmp_path / "a")
    assert failed.returncode != 0 and "nonesuch" in failed.stderr and "Traceback" not in failed.stderr
    assert "two_moons" in refused("--data", "nonesuch", "--out", tmp_path / "b")


def start_and_kill(arguments, after_step):
    """Starts a run and sends SIGKILL once its log has passed `after_step`; returns the folder of the run."""
    out = Path(arguments[arguments.index("--out") + 1])
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.density", *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    log = out / "log.jsonl"
    for _ in range(6_000):
        rows = log.read_text().splitlines() if log.exists() else []
        if rows and rows[-1].endswith("}") and json.loads(rows[-1])["step"] >= after_step:
            break
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "metrics.json").exists()
    return out


@pytest.mark.slow
def test_killed_and_started_again_gives_the_same_metrics(tmp_path):
    # Many steps, so that the kill falls in the middle; checkpoints are written every 1,000.
    job = ["--model", "affine", "--num-train", 2_000, "--num-test", 1_000, "--num-steps", 20_000, "--batch-size", 64]
    whole = tmp_path / "whole"
    assert density(*job, "--out", whole).returncode == 0
    killed = start_and_kill([*job, "--out", tmp_path / "killed"], after_step=2_500)
    resumed = density(*job, "--out", killed)
    assert resumed.returncode == 0, resumed.stderr
    assert (killed / "metrics.json").read_bytes() == (whole / "metrics.json").read_bytes()
    assert (killed / "log.jsonl").read_bytes() == (whole / "log.jsonl").read_bytes()


@pytest.mark.slow
def test_a_damaged_checkpoint_and_one_of_another_run_are_refused(tmp_path):
    job = ["--model", "affine", *SMALL, "--out", tmp_path / "run"]
    assert density(*job).returncode == 0
    (tmp_path / "run" / "metrics.json").unlink()
    for file in (tmp_path / "run" / "checkpoint").rglob("*"):
        if file.is_file():
            file.write_bytes(b"\x00" * 7)
    failed = density(*job)
    assert failed.returncode != 0 and "Traceback" not in failed.stderr
    error = failed.stderr.strip().splitlines()[-1]
    assert error.startswith("error: ") and "is damaged" in error and "restore it from a copy, or move it away" in error, error
    other = density("--model", "real_nvp", *SMALL, "--out", tmp_path / "run")
    assert other.returncode != 0 and "another config" in other.stderr and "Traceback" not in other.stderr


@pytest.mark.slow
def test_kl_directions_finds_the_known_answers(tmp_path):
    command = [sys.executable, "-m", "experiments.kl_directions", "--out", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert abs(found["gaussian_forward_mean"]) < 4 * 10**0.5 / 100_000**0.5
    assert found["gaussian_forward_sd"] == pytest.approx(10**0.5, abs=0.02)
    assert abs(found["gaussian_reverse_mean"]) == pytest.approx(2.984306, abs=0.01)
    assert found["gaussian_reverse_sd"] == pytest.approx(1.023369, abs=0.01)
    assert found["gaussian_reverse_reverse_kl_nats"] == pytest.approx(0.688769, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["real_nvp", "nsf"])
def test_the_standard_run_inverts_and_comes_close(model):
    config = density_experiment.Config(model=model)
    key = jax.random.key(config.seed)
    data = density_experiment.load(config, stream(key, "data"))
    flow = density_experiment.build(config, (2,))
    fit = gm.fit(
        flow,
        data.train,
        key=stream(key, "fit"),
        optimizer=density_experiment.optimizer(config),
        num_steps=config.num_steps,
        batch_size=config.batch_size,
        validation=data.validation,
        clip_norm=config.clip_norm,
        progress=False,
    )
    x = data.sample(jax.random.key(9), 50_000)
    gap = gm.evaluate(flow, fit.params, x, true_log_prob=data.log_prob)
    assert -3 * gap["gap_nats_sem"] < gap["gap_nats"] < {"real_nvp": 0.12, "nsf": 0.015}[model]
    for dtype, typical, worst in (("float32", 1e-5, 1e-3), ("float64", 1e-10, 1e-10)):
        with jax.enable_x64(dtype == "float64"):
            params = gm.core.params.cast(fit.params["bijector"], dtype)
            points = jnp.asarray(x, dtype)

            def round_trip(x, params=params):
                return flow.bijector.forward(params, flow.bijector.inverse(params, x))

            error = np.abs(np.asarray(jax.jit(jax.vmap(round_trip))(points) - points))
        assert np.quantile(error, 0.999) < typical and error.max() < worst


COUNTED = """
    import collections, runpy, sys
    import jax
    events = collections.Counter()
    jax.monitoring.register_event_listener(lambda event, **_: events.update([event.rsplit("/", 1)[-1]]))
    sys.argv = ["density", "--quick", "--num-steps", "20", "--num-train", "500", "--num-test", "200", "--out", sys.argv[1]]
    runpy.run_module("experiments.density", run_name="__main__", alter_sys=True)
    print("misses", events["cache_misses"], "hits", events["cache_hits"])
"""


@pytest.mark.slow
def test_a_second_run_compiles_nothing(tmp_path):
    env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled")}
    counts = []
    for name in ("one", "two"):
        command = [sys.executable, "-c", textwrap.dedent(COUNTED), str(tmp_path / name)]
        result = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
        counts.append([int(word) for word in result.stdout.split("misses")[-1].replace("hits", "").split()])
    (first, _), (second, hits) = counts
    assert first > 0 and second == 0 and hits == first
