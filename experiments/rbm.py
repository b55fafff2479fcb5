"""A restricted Boltzmann machine of binary images: its test NLL through training, in a bracket by annealing from both sides.

python -m experiments.rbm                                                              scikit-learn's digits, made binary
python -m experiments.rbm --data binarized_mnist --num-hidden 500 --num-steps 100000     files from GENMOD_DATA
"""

import dataclasses
import time
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

import genmod as gm
from experiments import vae_data
from genmod.core.keys import stream
from genmod.core.statistics import mean_and_sem
from genmod.densities import BernoulliUnits
from genmod.training import Chains, ContrastiveStep, DataChains, PersistentChains, TemperedChains


@dataclasses.dataclass(frozen=True)
class Config:
    data: Literal["digits", "binarized_mnist"] = "digits"
    num_hidden: int = 200
    chains: Literal["data", "persistent", "tempered"] = "persistent"
    num_chains: int = 100
    """Of persistent and tempered chains."""
    chain_steps: int = 1
    """Steps of every chain at a step of training."""
    num_tempered_levels: int = 10
    centring: float | None = 0.99
    """Decay of the means about which gradients are centred; None: they are not."""
    num_steps: int = 20_000
    batch_size: int = 100
    learning_rate: float = 0.05
    """Of SGD; it falls linearly to zero."""
    num_stages: int = 4
    """How often log Z is measured in training."""
    num_annealed: int = 100
    """Annealed chains, in either direction."""
    num_annealed_levels: int = 3_000
    num_sweeps: int = 3_000
    """Of the chains whose ends are samples, and from which annealing goes back."""
    num_rows: int = 50
    """Test images whose log-probability is bounded one by one."""
    seed: int = 0


def experiment(config: Config, run: gm.lab.Run) -> dict[str, Any]:
    key = jax.random.key(config.seed)
    data = vae_data.load(config.data, config.seed)
    visible, hidden = BernoulliUnits(data.event_shape), BernoulliUnits((config.num_hidden,))
    model = gm.models.RestrictedBoltzmannMachine(visible, hidden, num_sweeps=config.num_sweeps)
    schedule = optax.linear_schedule(config.learning_rate, 0.0, config.num_steps)
    step = ContrastiveStep(model, optax.sgd(schedule), chains_of(config), config.centring)
    fit, rows = None, []
    for stage in range(config.num_stages):
        begun = time.perf_counter()
        fit = gm.fit(
            model,
            data.train,
            key=stream(key, "train", stage),
            step=step,
            num_steps=config.num_steps // config.num_stages,
            batch_size=config.batch_size,
            state=fit,
            checkpoint=run.folder / f"checkpoint_{stage}",
            log=run.log.with_name(f"log_{stage}.jsonl"),
        )
        seconds = time.perf_counter() - begun
        rows.append(measure(config, model, fit.params, data, stream(key, "measure", stage)) | {"seconds": seconds})
        rows[-1]["step"] = (stage + 1) * (config.num_steps // config.num_stages)
    assert fit is not None
    found = gm.inference.annealed_log_prob(
        model,
        fit.params,
        data.test[: config.num_rows],
        data.train,
        key=stream(key, "rows"),
        num_levels=config.num_annealed_levels,
    )
    by_row, by_row_sem = mean_and_sem(np.asarray(found.value, np.float64))
    print(gm.lab.text_table([line(row) for row in rows]))
    print(f"{config.num_rows} test images, annealed one by one: NLL at most {gm.lab.with_error(-by_row, by_row_sem)} nats")
    show(config, run, model, fit.params, data, rows, key)
    last = {name: value for name, value in rows[-1].items() if name != "seconds"}
    return (
        {"model": "rbm", "data": data.name, "num_params": gm.num_params(fit.params)}
        | last
        | {
            "rows_nll_upper_bound_nats": float(-by_row),
            "rows_nll_upper_bound_nats_sem": float(by_row_sem),
        }
    )


def chains_of(config: Config) -> Chains:
    """Where the samples of training come from."""
    if config.chains == "data":
        return DataChains(config.chain_steps)
    if config.chains == "persistent":
        return PersistentChains(config.num_chains, config.chain_steps)
    return TemperedChains(config.num_chains, config.num_tempered_levels, config.chain_steps)


def measure(config: Config, model: Any, params: Any, data: gm.data.Dataset, key: jax.Array) -> dict[str, float]:
    """The test NLL, by log Z from above, an upper bound as far as draws are exact, and from below."""
    bracket = gm.inference.normalizer_bracket(
        model, params, data.train, key=key, num_chains=config.num_annealed, num_levels=config.num_annealed_levels
    )
    energy = gm.evaluate(model, params, data.test)
    found = {}
    for name, side in (("nll_upper_bound_nats", bracket.upper), ("nll_lower_bound_nats", bracket.lower)):
        found[name] = energy["energy_nats"] + float(side.value)
        found[f"{name}_sem"] = float(np.hypot(energy["energy_nats_sem"], side.sem))
    chains = {"effective_chains": float(bracket.lower.extras["effective_size"])}
    return found | chains | {"log_normalizer_width_nats": float(bracket.upper.value - bracket.lower.value)}


def line(row: dict[str, float]) -> dict[str, str]:
    """One line of a table."""
    shown = {
        name: gm.lab.with_error(row[f"nll_{name}_nats"], row[f"nll_{name}_nats_sem"]) for name in ("lower_bound", "upper_bound")
    }
    return {
        "step": f"{row['step']:,}",
        "NLL at least (AIS)": shown["lower_bound"],
        "NLL at most (reverse AIS)": shown["upper_bound"],
        "effective chains": f"{row['effective_chains']:.0f}",
        "seconds": f"{row['seconds']:.0f}",
    }


def show(config: Config, run: gm.lab.Run, model: Any, params: Any, data: gm.data.Dataset, rows: list, key: jax.Array) -> None:
    """Filters, chains from noise, imputed halves, and the bracket through training."""
    shape, title = data.event_shape, f"{data.name}, {config.num_hidden} hidden units"
    weights = np.asarray(params["weights"]).T[:40]
    largest = np.abs(weights).max(1, keepdims=True)
    filters = (0.5 + 0.5 * weights / largest).reshape(-1, *shape)
    gm.lab.plot.images(
        run.figure("filters"), [("", filters[i : i + 10]) for i in range(0, len(filters), 10)], title=f"{title}: filters"
    )
    at = model.random_configurations(params, stream(key, "noise"), 10)
    kernel, shown, done = model.kernel(params), [("start", at.x)], 0
    for num in (1, 10, 100, config.num_sweeps):
        at, _ = jax.jit(lambda key, at, n=num - done: gm.samplers.moved(key, kernel, at, num_steps=n))(
            stream(key, "move", num), at
        )
        shown.append(("1 step" if num == 1 else f"{num:,} steps", at.x))
        done = num
    gm.lab.plot.images(run.figure("chains"), [(name, jnp.asarray(x, float)) for name, x in shown], title=f"{title}: chains")
    x = data.test[:10]
    missing = np.broadcast_to(np.arange(shape[0])[:, None, None] >= shape[0] // 2, x.shape)
    filled = model.impute(params, stream(key, "impute"), x, missing)
    pairs = [("images", x), ("seen", np.where(missing, 0.5, x)), ("imputed", filled)]
    gm.lab.plot.images(
        run.figure("imputed"), [(name, jnp.asarray(x, float)) for name, x in pairs], title=f"{title}: lower halves"
    )
    steps = [row["step"] for row in rows]
    sides = {"at most (reverse AIS)": "nll_upper_bound_nats", "at least (AIS)": "nll_lower_bound_nats"}
    curves = {label: [row[name] for row in rows] for label, name in sides.items()}
    gm.lab.plot.lines(run.figure("bracket"), steps, curves, xlabel="step", ylabel="test NLL (nats)", title=title)


if __name__ == "__main__":
    quick = {"num_steps": 2_000, "num_hidden": 50, "num_stages": 2, "num_annealed_levels": 300, "num_sweeps": 300, "num_rows": 10}
    gm.lab.main(experiment, Config, quick=quick)
