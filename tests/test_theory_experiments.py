"""Experiments whose numbers theory knows, small: they end, and are what it says."""

import json

import pytest

import genmod as gm
from experiments import networks, rate_distortion

WIDTH, FEATURES = 64, 24
RUNS = {
    "networks": (
        networks,
        {"width": WIDTH, "depth": 10, "num_draws": 100, "num_features": FEATURES, "num_time_steps": 30, "num_time_draws": 40}
        | {"field_layers": [2, 3], "num_field_draws": 100, "side": 24, "shifts": [1, 2, 4], "num_digits": 8},
    ),
    "rate_distortion": (
        rate_distortion,
        {"num_draws": [1, 2], "shares": [0.0, 0.5], "num_sampling_steps": 15, "num_gaussian": 300}
        | {"hidden_sizes": [64, 64], "num_steps": 1_000, "ema_decay": 0.99},
    ),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder and the metrics of an experiment, run once."""
    done = {}

    def find(name):
        if name not in done:
            module, settings = RUNS[name]
            folder = tmp_path_factory.mktemp(name)
            arguments = ["--out", str(folder)]
            for field, value in settings.items():
                arguments += [f"--{field.replace('_', '-')}", *map(str, value if isinstance(value, list) else [value])]
            gm.lab.main(module.experiment, module.Config, arguments=arguments)
            done[name] = folder, json.loads((folder / "metrics.json").read_text())
        return done[name]

    return find


def off(metrics, entry):
    """By how many standard errors a number is off what theory says."""
    return abs(metrics[entry] - metrics[f"{entry}_law"]) / metrics[f"{entry}_sem"]


@pytest.mark.slow
def test_gradients_against_depth_follow_the_law(run):
    folder, metrics = run("networks")
    assert {path.name for path in folder.glob("*.png")} == {f"{name}.png" for name in ("depth", "time", "fields", "shifts")}
    names = [name for name in metrics if name.endswith("_factor") and ("Xavier" in name or "_He_" in name)]
    assert len(names) == 40
    for name in names:
        if name.endswith(("ReLU_Xavier_plain_factor", "ReLU_He_plain_factor")):
            assert off(metrics, name) < 4, name  # exact at any width
        elif name != "GELU_He_plain_factor":  # whose q is unstable, so that the law holds in far wider networks only
            room = 4 * metrics[f"{name}_sem"] + 3 / WIDTH * metrics[f"{name}_law"]
            assert abs(metrics[name] - metrics[f"{name}_law"]) < room, name
    assert metrics["ReLU_He_plain_factor_law"] == pytest.approx(1.0, abs=1e-6)
    assert metrics["ReLU_Xavier_plain_factor_law"] == pytest.approx(0.5, abs=1e-6)
    assert metrics["leaky_ReLU_He_plain_factor_law"] == pytest.approx(1.04, abs=1e-6)
    # The slope of a sigmoid is at most 1/4.
    assert metrics["sigmoid_Xavier_plain_factor"] < 1 / 16 + 4 * metrics["sigmoid_Xavier_plain_factor_sem"]


@pytest.mark.slow
def test_gradients_against_time_follow_the_law_and_gates_keep_them(run):
    _, metrics = run("networks")
    assert off(metrics, "linear_RNN_factor") < 4
    room = 4 * metrics["RNN_factor_sem"] + 3 / FEATURES * metrics["RNN_factor_law"]  # at infinite width
    assert abs(metrics["RNN_factor"] - metrics["RNN_factor_law"]) < room
    for cell in ("LSTM", "LSTM_forget_bias_2", "GRU", "GRU_update_bias_2"):
        assert metrics[f"{cell}_factor"] > metrics[f"{cell}_factor_law"] - 4 * metrics[f"{cell}_factor_sem"]
    assert metrics["LSTM_forget_bias_2_factor"] > metrics["LSTM_factor"] + 0.2


@pytest.mark.slow
def test_receptive_fields_are_those_of_the_formula(run):
    _, metrics = run("networks")
    counted = [name for name in metrics if "_field_" in name and not name.endswith("_law")]
    assert len(counted) == 9 and all(metrics[name] == metrics[f"{name}_law"] for name in counted)
    assert off(metrics, "spread_2") < 4 and off(metrics, "spread_3") < 4


@pytest.mark.slow
def test_convolutions_move_with_the_image(run):
    _, metrics = run("networks")
    for by in (1, 2, 4):
        assert max(metrics[f"shift_{by}_off_the_border"], metrics[f"shift_{by}_circular"]) < 1e-5
        assert metrics[f"shift_{by}_at_the_border"] > 0.05
        assert metrics[f"shift_{by}_change_mean_over_all"] < 1e-5 < 0.05 < metrics[f"shift_{by}_change_convolutions"]
    assert metrics["shift_2_circular_mean_over_2x2"] < 1e-5


@pytest.mark.slow
def test_distortion_and_perception_of_a_gaussian_are_the_closed_forms(run):
    folder, metrics = run("rate_distortion")
    assert {path.name for path in folder.glob("*.png")} == {"curve.png", "images.png"}
    settings = [f"gaussian_{name}" for name in ("draws_1", "draws_2", "draws_inf", "interpolation_0", "interpolation_0.5")]
    for name in settings:
        assert off(metrics, f"{name}_mse") < 4 and off(metrics, f"{name}_frechet") < 4, name
    least = metrics["gaussian_draws_inf_mse_law"]
    assert metrics["gaussian_draws_1_mse_law"] == pytest.approx(2 * least)
    # The probability flow has the law of the images as draws do, and a smaller error.
    assert least < metrics["gaussian_interpolation_0_mse_law"] < 2 * least


@pytest.mark.slow
def test_digits_pay_for_draws(run):
    _, metrics = run("rate_distortion")
    mse = [metrics[f"digits_draws_{k}_mse"] for k in ("1", "2", "inf")]
    assert mse[0] > mse[1] > mse[2]
    assert abs(metrics["digits_frechet_floor"]) < 4 * metrics["digits_frechet_floor_sem"]
