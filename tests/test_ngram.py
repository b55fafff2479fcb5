"""n-grams: against counts by hand, closed-form estimates, sums over all states, and a search over weights."""

import collections
import itertools

import jax
import numpy as np
import pytest

import genmod as gm
from genmod.models import NGram, dirichlet_map, dirichlet_predictive, fit_interpolated_ngram, fit_ngram, maximum_likelihood

pytestmark = pytest.mark.usefixtures("quick_compile")
WORDS = gm.Tokens(4, 3, end=1)
TRITS = gm.Levels((4,), 3)
STATES = {
    "tokens": np.array(
        [s for s in itertools.product(range(3), repeat=4) if not any(a == 1 and b != 1 for a, b in itertools.pairwise(s))]
    ),
    "levels": np.array(list(itertools.product(range(3), repeat=4))),
}
EVENTS = {"tokens": WORDS, "levels": TRITS}


def some(name, num=40, seed=0):
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(len(STATES[name]), 0.2))
    return STATES[name][rng.choice(len(p), num, p=p)]


def counted_by_hand(name, rows, order):
    """{history: Counter of the next token}, the history padded with starts."""
    start, found = 1 if name == "tokens" else 3, collections.defaultdict(collections.Counter)
    for row in rows.tolist():
        padded = [start] * (order - 1) + row
        for t, token in enumerate(row):
            found[tuple(padded[t : t + order - 1])][token] += 1
            if name == "tokens" and token == 1:
                break
    return found


@pytest.mark.parametrize("order", [1, 2, 3, 6])
@pytest.mark.parametrize("name", EVENTS)
def test_add_alpha_by_hand(name, order):
    rows, model = some(name), NGram(EVENTS[name], order)
    params = fit_ngram(model, rows, estimate=gm.call(dirichlet_predictive, alpha=0.5))
    counts = counted_by_hand(name, rows, order)
    start, exact = 1 if name == "tokens" else 3, []
    for row in STATES[name].tolist():
        padded, steps = [start] * (order - 1) + row, []
        for t, token in enumerate(row):
            after = counts[tuple(padded[t : t + order - 1])]
            over = name == "tokens" and 1 in row[:t]
            steps.append(0.0 if over else np.log((after[token] + 0.5) / (sum(after.values()) + 1.5)))
        exact.append(steps)
    np.testing.assert_allclose(model.log_prob_steps(params, STATES[name]), exact, atol=1e-5)
    log_p = np.asarray(model.log_prob(params, STATES[name]), np.float64)
    np.testing.assert_allclose(np.exp(log_p).sum(), 1.0, atol=1e-6)


@pytest.mark.parametrize("name", EVENTS)
def test_draws_follow_the_table(name, key):
    model = NGram(EVENTS[name], 3)
    params = fit_ngram(model, some(name), estimate=gm.call(dirichlet_predictive, alpha=0.3))
    x = np.asarray(model.sample(params, key, 20_000))
    EVENTS[name].check("x", x)
    p = np.exp(np.asarray(model.log_prob(params, STATES[name]), np.float64))
    shares = (x[:, None] == STATES[name][None]).all(-1).mean(0)
    assert shares.sum() == pytest.approx(1.0)
    assert (np.abs(shares - p) < 4.5 * np.sqrt(p / 20_000) + 1e-9).all()


def test_estimates_in_closed_form():
    counts = np.array([[3, 1, 0], [0, 0, 0]])
    np.testing.assert_allclose(maximum_likelihood(counts), [[0.75, 0.25, 0.0], [1 / 3] * 3])
    np.testing.assert_allclose(dirichlet_map(counts, 2.0), [[4 / 7, 2 / 7, 1 / 7], [1 / 3] * 3])
    np.testing.assert_allclose(dirichlet_map(counts, 1.0), maximum_likelihood(counts))
    np.testing.assert_allclose(dirichlet_predictive(counts, 2.0), [[5 / 10, 3 / 10, 2 / 10], [1 / 3] * 3])


def test_maximum_likelihood_is_the_maximum():
    """NLL of the training words is the entropy of the counts, and moving from there never helps."""
    rows, model = some("tokens"), NGram(WORDS, 2)
    params = fit_ngram(model, rows)
    counts = counted_by_hand("tokens", rows, 2)
    exact = -sum(n * np.log(n / sum(c.values())) for c in counts.values() for n in c.values())
    np.testing.assert_allclose(-np.asarray(model.log_prob(params, rows)).sum(), exact, rtol=1e-5)
    for seed in range(5):
        near = {"logits": params["logits"] + 0.1 * np.random.default_rng(seed).standard_normal((3, 3)).astype("f4")}
        assert -np.asarray(model.log_prob(near, rows)).sum() > exact
    loss, metrics = model.loss(params, jax.random.key(0), rows)
    np.testing.assert_allclose(loss, exact / len(rows), rtol=1e-5)
    assert set(metrics) == {"nll_nats", "nll_nats_sem"}


def test_weights_count_rows():
    rows = some("tokens", 5)
    weight = np.array([1, 0, 2, 1, 3])
    model = NGram(WORDS, 2)
    np.testing.assert_allclose(
        fit_ngram(model, rows, weight=weight)["logits"], fit_ngram(model, np.repeat(rows, weight, 0))["logits"], rtol=1e-6
    )


@pytest.mark.parametrize("name", EVENTS)
def test_interpolation_is_the_mixture_of_the_orders(name):
    rows, model = some(name, 12), NGram(EVENTS[name], 3)
    weights = np.array([0.2, 0.5, 0.3])
    found = fit_interpolated_ngram(model, rows, weights=weights)
    counts = {k: counted_by_hand(name, rows, k) for k in (1, 2, 3)}
    unseen = 0
    table = np.exp(np.asarray(found.params["logits"], np.float64))
    base = 3 if name == "tokens" else 4
    for history in itertools.product(range(base), repeat=2):
        each = []
        for k in (1, 2, 3):
            seen = counts[k].get(history[2 - (k - 1) :], {})
            unseen += not seen
            each.append([seen.get(c, 0) / sum(seen.values()) for c in range(3)] if seen else each[-1])
        np.testing.assert_allclose(table[history[0] * base + history[1]], weights @ np.array(each), atol=1e-6)
    assert unseen > 0
    np.testing.assert_allclose(table.sum(1), 1.0, atol=1e-6)


def test_em_finds_the_weights_of_the_largest_likelihood():
    rows, held_out, model = *np.split(some("levels", 60), [15]), NGram(TRITS, 2)
    smooth = gm.call(dirichlet_predictive, alpha=0.1)
    found = fit_interpolated_ngram(model, rows, held_out=held_out, estimate=smooth, num_rounds=500)
    assert found.weights.sum() == pytest.approx(1.0)

    def nll(w):
        params = fit_interpolated_ngram(model, rows, weights=[w, 1 - w], estimate=smooth).params
        return -float(np.asarray(model.log_prob(params, held_out), np.float64).sum())

    grid = np.linspace(0, 1, 21)
    values = [nll(w) for w in grid]
    best = nll(found.weights[0])
    assert best <= min(values) + 1e-3
    assert 0.05 < found.weights[0] < 0.95 and abs(found.weights[0] - grid[int(np.argmin(values))]) <= 0.05


def test_a_stream_is_one_long_row():
    """Its tables are those of any windows."""
    stream = np.random.default_rng(0).integers(0, 3, 50)
    model = NGram(TRITS, 2)
    params = fit_ngram(model, stream[None])
    counts = counted_by_hand("levels", stream[None], 2)
    table = np.exp(np.asarray(params["logits"]))
    for history in range(3):
        np.testing.assert_allclose(table[history], [counts[(history,)][c] / sum(counts[(history,)].values()) for c in range(3)])
    assert model.log_prob(params, stream[:4]).shape == ()
    mixed = fit_interpolated_ngram(model, stream[None], held_out=stream[:40].reshape(8, 5))
    assert mixed.weights.shape == (2,)


def test_gradients_find_the_counts():
    rows, model = some("tokens"), NGram(WORDS, 2)
    fit = gm.fit(model, rows, key=jax.random.key(0), num_steps=300, batch_size=40, progress=False, optimizer=gm.call(_adam))
    best = model.log_prob(fit_ngram(model, rows), rows).mean()
    assert 0 <= float(best - model.log_prob(fit.params, rows).mean()) < 0.02


def _adam():
    import optax

    return optax.adam(0.1)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: fit_ngram(NGram(WORDS), np.array([[0, 3, 1, 1]])), ValueError, r"x must be integers in 0\.\.2"),
        (lambda: fit_ngram(NGram(WORDS), np.zeros((0, 4), int)), ValueError, "x must hold at least one event"),
        (lambda: fit_ngram(NGram(WORDS), some("tokens"), weight=np.ones(3)), ValueError, "weight must be 40 finite numbers"),
        (lambda: fit_ngram(NGram(WORDS), np.zeros(9, int)), ValueError, r"got shape \(9,\); a stream is x\[None\]"),
        (lambda: fit_ngram(NGram(WORDS), some("tokens"), estimate=lambda counts: counts), ValueError, "estimate must give prob"),
        (lambda: NGram(gm.Levels((0,), 3)), ValueError, "a sequence of at least one token"),
        (lambda: NGram(gm.Levels((2, 2), 3)), ValueError, "a sequence of at least one token"),
        (lambda: NGram(gm.Real((3,))), TypeError, "event must be gm.Tokens or gm.Levels"),
        (lambda: NGram(WORDS, 0), ValueError, "order must be an integer >= 1"),
        (lambda: NGram(gm.Tokens(4, 200), 5), ValueError, "too many entries; lower the order"),
        (lambda: dirichlet_map(np.ones(3), 0.5), ValueError, "alpha must be >= 1, got 0.5"),
        (lambda: dirichlet_predictive(np.ones(3), 0.0), ValueError, "alpha must be > 0"),
        (lambda: fit_interpolated_ngram(NGram(WORDS), some("tokens")), ValueError, "give held_out sequences, or weights"),
        (
            lambda: fit_interpolated_ngram(NGram(WORDS), some("tokens"), weights=[0.5, 0.4]),
            ValueError,
            "weights must be 2 numbers >= 0 that add up to 1",
        ),
        (
            lambda: fit_interpolated_ngram(NGram(WORDS), np.array([[0, 0, 0, 0]]), held_out=np.array([[2, 2, 2, 2]])),
            ValueError,
            "held_out holds a token that no order gives a probability",
        ),
    ],
)
def test_bad_input(call, error, match):
    with pytest.raises(error, match=match):
        call()
