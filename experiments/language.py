"""Language models of characters in one table: n-grams, recurrent networks, a Transformer, with samples of each.

python -m experiments.language                              numbers in words, 0 to 9,999; no model can do better than log 10,000
python -m experiments.language --data names                 first names, from GENMOD_DATA
python -m experiments.language --data tiny_shakespeare      one text, from GENMOD_DATA, in the protocol of nanoGPT's small example

Reported: nats per character, of strings the end included. Strings are tested on a tenth that neither trains nor chooses. Of
Shakespeare it is the whole validation part, as it is published, every character but the first given up to `window` before it (at
least one). As there is no third part, nothing is chosen there: networks have the parameters of the last step, not the best by
validation.
"""

import dataclasses
import time
from typing import Any, Literal

import flax.linen as nn
import jax
import numpy as np

import genmod as gm
from experiments.common import adam_with_cosine
from genmod.core.keys import stream

Name = Literal["bigram", "ngram", "rnn", "gru", "lstm", "transformer"]


@dataclasses.dataclass(frozen=True)
class Config:
    data: Literal["numbers", "names", "tiny_shakespeare"] = "numbers"
    models: tuple[Name, ...] = ("bigram", "ngram", "rnn", "gru", "lstm", "transformer")
    order: int = 4
    """Of the n-gram, a mixture of the orders up to it, whose weights are those that held-out text wants."""
    hidden_size: int = 256
    """Of the recurrent networks."""
    num_features: int = 128
    """Of embeddings and of the Transformer."""
    num_layers: int = 4
    """Of the Transformer."""
    num_heads: int = 4
    """Of the Transformer."""
    window: int = 64
    """Characters that a model of Shakespeare sees at most."""
    num_steps: int = 2_000
    batch_size: int | None = None
    """None: 128 strings, 12 windows."""
    learning_rate: float = 1e-3
    """Peak of a cosine schedule that ends at zero; 100 steps of warm-up."""
    weight_decay: float = 0.1
    """Decoupled, of AdamW."""
    num_samples: int = 10
    seed: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """What is trained on and tested on: events, rows of tokens or a stream of windows.

    A stream has no part to choose by: its `validation` is of the rows that are tested, and is only logged.
    """

    event: gm.Event
    train: Any
    validation: np.ndarray
    test: np.ndarray
    text: gm.data.Strings | gm.data.CharacterStream
    skip: int
    """Steps at the beginning of a row that are not counted."""


def experiment(config: Config, run: gm.lab.Run) -> dict[str, Any]:
    key = jax.random.key(config.seed)
    task = load(config)
    metrics: dict[str, Any] = {"model": "language", "data": config.data}
    rows, samples = [], []
    for name in config.models:
        begun = time.perf_counter()
        model, params = make(config, run, name, task, stream(key, name))
        found = measure(model, params, task)
        drawn = draw(config, model, params, task, stream(key, "samples"))
        rows.append(row(name, found, time.perf_counter() - begun))
        samples.append(f"--- {name} ---\n" + "\n".join(drawn))
        metrics |= {f"{name}_{entry}": value for entry, value in found.items()}
    print(gm.lab.text_table(rows))
    (run.folder / "samples.txt").write_text("\n\n".join(samples) + "\n")
    print("\n\n".join(samples))
    return metrics


def load(config: Config) -> Task:
    if config.data == "tiny_shakespeare":
        text = gm.data.tiny_shakespeare()
        length = config.window + 1  # the first character stands for all that came before
        windows = text.validation_windows(length, overlap=1)
        train = text.windows(length, config.batch_size or 12, config.seed)
        return Task(text.event(length), train, windows[:: max(1, len(windows) // 200)], windows, text, skip=1)
    words = (number_in_words(n) for n in range(10_000))
    data = gm.data.names(config.seed) if config.data == "names" else gm.data.strings(words, name="numbers", seed=config.seed)
    return Task(data.event, data.train, data.validation, data.test, data, skip=0)


def make(config: Config, run: gm.lab.Run, name: Name, task: Task, key: jax.Array) -> tuple[gm.Model, Any]:
    """A model by name, with parameters fitted."""
    if name in ("bigram", "ngram"):
        return count(config, name, task)
    bodies = {
        "rnn": lambda: gm.nets.Recurrent(nn.SimpleCell(config.hidden_size)),
        "gru": lambda: gm.nets.Recurrent(nn.GRUCell(config.hidden_size)),
        "lstm": lambda: gm.nets.Recurrent(nn.LSTMCell(config.hidden_size)),
        "transformer": lambda: gm.nets.CausalTransformer(
            task.event.shape[0], config.num_features, config.num_layers, config.num_heads
        ),
    }
    model = gm.models.language_model(task.event, bodies[name](), num_features=config.num_features)  # type: ignore[arg-type]
    train = dataclasses.replace(task, train=load(config).train).train  # each begins with the first window
    fit = gm.fit(
        model,
        train,
        key=key,
        optimizer=adam_with_cosine(config.learning_rate, config.num_steps, 100, config.weight_decay),
        clip_norm=1.0,
        num_steps=config.num_steps,
        batch_size=config.batch_size or 128,
        validation=task.validation,
        validate_every=min(200, config.num_steps),
        checkpoint=run.folder / f"checkpoint_{name}",
        log=run.log.with_name(f"log_{name}.jsonl"),
    )
    return model, fit.last_params if isinstance(task.text, gm.data.CharacterStream) else fit.params


def count(config: Config, name: Name, task: Task) -> tuple[gm.Model, Any]:
    """A bigram with add-one, or a mixture of n-grams."""
    model = gm.models.NGram(task.event, 2 if name == "bigram" else config.order)  # type: ignore[arg-type]
    train, held_out = task.train, task.validation
    if isinstance(task.text, gm.data.CharacterStream):
        train = task.text.train[None]
    if name == "bigram":
        return model, gm.models.fit_ngram(model, train, estimate=gm.models.dirichlet_predictive)
    if isinstance(task.text, gm.data.CharacterStream):  # no third part: the last tenth of what trains weighs the orders
        train, held_out = np.split(train, [train.shape[1] * 9 // 10], axis=1)
    smooth = gm.call(gm.models.dirichlet_predictive, alpha=0.1)
    return model, gm.models.fit_interpolated_ngram(model, train, held_out=held_out, estimate=smooth).params


def measure(model: Any, params: Any, task: Task) -> dict[str, Any]:
    """Nats per character with their standard error over rows, bits, perplexity."""
    steps = -np.concatenate(
        [np.asarray(model.log_prob_steps(params, task.test[i : i + 500]), np.float64) for i in range(0, len(task.test), 500)]
    )
    tokens = np.asarray(model.event.num_units(task.test)) - task.skip
    nll = steps[:, task.skip :].sum(1)
    nats, sem = gm.metrics.ratio_and_sem(nll, tokens)
    return {
        "nats_per_token": float(nats),
        "nats_per_token_sem": float(sem),
        "bits_per_token": gm.metrics.bits_per_token(nll, tokens),
        "perplexity": gm.metrics.perplexity(nll, tokens),
        "nll_nats": float(nll.mean()),
        "num_params": gm.num_params(params),
    }


def draw(config: Config, model: Any, params: Any, task: Task, key: jax.Array) -> list[str]:
    tokens = model.sample(params, key, config.num_samples)
    if isinstance(task.text, gm.data.Strings):
        return task.text.decode(tokens)
    return [task.text.decode(window) + "\n" for window in tokens]


def row(name: str, found: dict[str, Any], seconds: float) -> dict[str, Any]:
    """One line of a table."""
    return {
        "model": name,
        "parameters": f"{found['num_params']:,}",
        "nats per character": gm.lab.with_error(found["nats_per_token"], found["nats_per_token_sem"]),
        "bits per character": f"{found['bits_per_token']:.3f}",
        "perplexity": f"{found['perplexity']:.2f}",
        "NLL of a row (nats)": f"{found['nll_nats']:.2f}",
        "seconds": f"{seconds:.0f}",
    }


_SMALL = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen"),
    *("fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def number_in_words(n: int) -> str:
    """0 to 9,999 in English."""
    if n < 20:
        return _SMALL[n]
    if n < 100:
        return _TENS[n // 10] + (f" {_SMALL[n % 10]}" if n % 10 else "")
    unit, word = (1_000, "thousand") if n >= 1_000 else (100, "hundred")
    return f"{_SMALL[n // unit]} {word}" + (f" {number_in_words(n % unit)}" if n % unit else "")


if __name__ == "__main__":
    gm.lab.main(experiment, Config, quick={"num_steps": 200, "hidden_size": 64, "num_features": 32, "num_layers": 2, "order": 3})
