"""Experiments on autoregressive models, small: they end, and their numbers are what they say."""

import json
import math
import types

import jax
import numpy as np
import pytest

import genmod as gm
from experiments import binary_tables, language, pixel

RUNS = {
    "language": (
        language,
        {"models": ["bigram", "ngram", "gru", "transformer"], "num_steps": 400, "hidden_size": 32, "num_features": 16}
        | {"num_layers": 1, "num_heads": 2, "num_samples": 3},
    ),
    "pixel": (
        pixel,
        {"num_steps": 60, "hidden_sizes": [32], "num_orders": 2, "num_features": 8, "num_layers": 2, "num_samples": 10},
    ),
    "binary_tables": (
        binary_tables,
        {"sets": ["digits"], "num_steps": 400, "num_components": [2, 6], "widths": [0, 32], "num_orders": 2},
    ),
}


def arguments(settings):
    for name, value in settings.items():
        yield from (f"--{name.replace('_', '-')}", *(map(str, value) if isinstance(value, list) else [str(value)]))


def test_numbers_in_words():
    words = [language.number_in_words(n) for n in (0, 13, 20, 21, 100, 105, 999, 1_000, 7_042, 9_999)]
    assert words[:6] == ["zero", "thirteen", "twenty", "twenty one", "one hundred", "one hundred five"]
    assert words[6:9] == ["nine hundred ninety nine", "one thousand", "seven thousand forty two"]
    assert words[9] == "nine thousand nine hundred ninety nine"
    assert len({language.number_in_words(n) for n in range(10_000)}) == 10_000


def test_what_is_tested_on_chooses_no_parameters(monkeypatch, tmp_path):
    """Strings have a part to choose by. A stream has none: its parameters are those of the last step."""
    stream = gm.data.character_stream("to be or not to be, that is the question " * 20)
    monkeypatch.setattr(gm.data, "tiny_shakespeare", lambda: stream)
    monkeypatch.setattr(gm, "fit", lambda *_, **__: gm.training.Fit("best", "last", {}, None, 0))
    run = types.SimpleNamespace(folder=tmp_path, log=tmp_path / "log.jsonl")
    for data, wanted in (("tiny_shakespeare", "last"), ("numbers", "best")):
        config = language.Config(data=data, window=8, batch_size=4)
        assert language.make(config, run, "rnn", language.load(config), jax.random.key(0))[1] == wanted


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_it_runs(name, tmp_path):
    module, settings = RUNS[name]
    gm.lab.main(module.experiment, module.Config, arguments=[*arguments(settings), "--out", str(tmp_path)])
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    if name == "language":
        for model in settings["models"]:
            assert metrics[f"{model}_nll_nats"] > math.log(10_000) - 0.1  # all numbers are equally likely
            assert metrics[f"{model}_perplexity"] == pytest.approx(np.exp(metrics[f"{model}_nats_per_token"]))
        assert metrics["gru_nats_per_token"] < metrics["bigram_nats_per_token"]
        assert metrics["ngram_nats_per_token"] < metrics["bigram_nats_per_token"]
        assert len((tmp_path / "samples.txt").read_text().split("---")) == 9
    if name == "pixel":
        assert {path.name for path in tmp_path.glob("*.png")} == {"samples.png"}
        assert all(metrics[f"{model}_nll_nats"] < 64 * math.log(2) for model in ("made", "made_orders", "pixel_cnn"))
    if name == "binary_tables":
        assert metrics["digits_mixture_nll_nats"] < metrics["digits_independent_nll_nats"]
        assert metrics["digits_made_nll_nats"] < metrics["digits_independent_nll_nats"]
