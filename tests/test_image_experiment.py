"""The image experiment, small: what it writes, and that the numbers are those of the model."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import genmod as gm
from experiments import image_flow
from experiments.common import with_labels

SMALL = image_flow.Config(num_layers=1, num_scales=2, hidden_channels=4, num_steps=3, batch_size=16, num_draws=2, num_test=8)
FIGURES = {f"{name}.png" for name in ("samples", "temperatures", "reconstruction", "interpolation", "training")}


@pytest.mark.slow
def test_writes_figures_and_bits_per_dimension(tmp_path, quick_compile):
    config = dataclasses.replace(SMALL, class_conditional=True)
    metrics = gm.lab.execute(image_flow.experiment, config, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= FIGURES | {"metrics.json", "config.json", "checkpoint"}
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    np.testing.assert_allclose(metrics["bits_per_dim"], metrics["nll_upper_bound_nats"] / (64 * np.log(2)))
    assert metrics["num_test"] == 8 and metrics["round_trip"] < 1e-4
    assert 2.0 < metrics["bits_per_dim"] < 12.0  # untrained: above a good model, near the log2(17) of knowing nothing


@pytest.mark.parametrize(
    "field", [{"model": "real_nvp"}, {"attention": True}, {"transformer": "spline"}, {"dequantization": "variational"}]
)
def test_every_option_builds_a_model(field):
    config = dataclasses.replace(SMALL, **field)
    data = image_flow.load(config)
    model = image_flow.build(config, data)
    x, context = with_labels(data, "train", config.class_conditional, 8)
    shapes = jax.eval_shape(lambda key: model.log_prob(model.init(key, x, context), x, context, key=key), jax.random.key(0))
    assert shapes.shape == (8,) and model.likelihood is gm.Likelihood.LOWER_BOUND


def test_fewer_bits_are_the_highest_of_each_pixel():
    config = dataclasses.replace(SMALL, data="mnist", num_bits=1)
    try:
        data = image_flow.load(config)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    assert data.num_levels == 2 and int(data.train.max()) == 1


@pytest.mark.slow
def test_trains_to_recognisable_digits(tmp_path):
    """A minute of training: below the 2.41 bits of independent pixels (their histograms, smoothed by one), and 4.09 of none."""
    config = dataclasses.replace(
        SMALL, num_layers=4, num_scales=3, hidden_channels=32, num_steps=400, batch_size=64, num_test=None
    )
    metrics = gm.lab.execute(image_flow.experiment, config, tmp_path)
    assert metrics["bits_per_dim"] + 4 * metrics["bits_per_dim_sem"] < 2.3
    assert metrics["bits_per_dim_2_draws"] < metrics["bits_per_dim"] + 4 * metrics["bits_per_dim_2_draws_sem"]
    assert metrics["round_trip"] < 1e-4
