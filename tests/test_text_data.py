"""Text as tokens and back; windows of a stream; binary tables; the real files where GENMOD_DATA has them."""

import gzip
import hashlib
import json
import os
import pathlib

import jax
import numpy as np
import pytest

import genmod as gm
from genmod.data import binary_tables, text
from genmod.training.position import Positioned

LINES = ["anna", "bob", "eve", "a", "bea", "ada", "ana", "abe", "eva", "nan", "noa", "ben"]
FOLDER = pathlib.Path(os.environ.get("GENMOD_DATA", "missing"))


def test_strings_come_back():
    data = gm.data.strings(LINES, seed=3)
    assert data.alphabet == "abdenov" and data.event == gm.Tokens(5, 8, end=0)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [10, 1, 1]
    parts = np.concatenate([data.train, data.validation, data.test])
    data.event.check("x", parts)
    assert sorted(data.decode(parts)) == sorted(LINES)
    np.testing.assert_array_equal(data.encode(["ab", "noa"]), [[1, 2, 0, 0, 0], [5, 6, 1, 0, 0]])
    assert data.decode([[1, 2, 0, 3, 3]]) == ["ab"]
    assert data.decode(data.encode(["annaa"])) == ["annaa"]  # it fills the row and has no end
    again = gm.data.strings(LINES, seed=3)
    np.testing.assert_array_equal(again.train, data.train)


def test_a_stream_and_its_windows():
    data = gm.data.character_stream("to be, or not to be", validation_fraction=0.4)
    assert data.decode(data.train) + data.decode(data.validation) == "to be, or not to be"
    assert len(data.validation) == 8 and data.event(3) == gm.Levels((3,), len(data.alphabet))
    np.testing.assert_array_equal(data.encode("to"), data.train[:2])
    windows = data.validation_windows(4, overlap=1)
    assert ["".join(data.decode(row)) for row in windows] == [data.decode(data.validation)[i : i + 4] for i in (0, 3)]
    np.testing.assert_array_equal(gm.data.consecutive_windows(np.arange(7), 3), [[0, 1, 2], [3, 4, 5]])


def test_random_windows_are_uniform_and_keep_their_place():
    tokens = np.arange(10)
    source = gm.data.RandomWindows(tokens, 4, 500, seed=1)
    assert isinstance(source, Positioned)
    first = next(source)
    assert (np.diff(first, axis=1) == 1).all()
    counts = np.bincount(np.concatenate([first[:, 0], *(next(source)[:, 0] for _ in range(13))]), minlength=7)
    assert len(counts) == 7 and (np.abs(counts - 1_000) < 4.5 * np.sqrt(1_000)).all()
    state = json.loads(json.dumps(source.get_state()))
    wanted = next(source)
    other = gm.data.RandomWindows(tokens, 4, 500, seed=1)
    other.set_state(state)
    np.testing.assert_array_equal(next(other), wanted)
    assert (next(gm.data.RandomWindows(tokens, 4, 500, seed=2)) != first).any()


def test_fit_takes_windows():
    """A text that says what comes next: a bigram learns it."""
    data = gm.data.character_stream("abcd" * 40)
    model = gm.models.NGram(data.event(9), 2)
    fit = gm.fit(model, data.windows(9, 16), key=jax.random.key(0), num_steps=200, optimizer=gm.call(_adam), progress=False)
    steps = np.asarray(model.log_prob_steps(fit.params, data.validation_windows(9)))
    assert -steps[:, 1:].mean() < 0.01


def _adam():
    import optax

    return optax.adam(0.3)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: gm.data.strings(["a", "", "b"]), ValueError, "string 1 is empty"),
        (lambda: gm.data.strings([]), ValueError, "at least 3 rows"),
        (lambda: gm.data.strings(["a", 3]), TypeError, "lines must be strings, got int at 1"),
        (lambda: gm.data.strings(["ab", "b", "ac"], alphabet="ab"), ValueError, "holds 'c', which is not in the alphabet 'ab'"),
        (lambda: gm.data.strings(LINES).encode(["annabea"]), ValueError, "string 0 must have at most 5 characters, got 7"),
        (lambda: gm.data.strings(LINES, alphabet="aabdenov"), ValueError, "alphabet must hold each character once"),
        (lambda: gm.data.strings(LINES).encode("anna"), TypeError, r"write \['anna'\]"),
        (
            lambda: gm.data.strings(LINES).decode([[1, -1, 0]]),
            ValueError,
            "tokens must be integers in 0",
        ),
        (lambda: gm.data.strings(LINES).decode([1, 0]), ValueError, r"tokens must have 2 axes, got shape \(2,\)"),
        (lambda: gm.data.character_stream("abc").decode([2, 3]), ValueError, r"tokens must be integers in 0\.\.2"),
        (lambda: gm.data.character_stream(""), ValueError, "text must be long enough for two parts"),
        (lambda: gm.data.character_stream(3), TypeError, "text must be a string, got int"),
        (lambda: gm.data.character_stream("abc", validation_fraction=1.0), ValueError, "validation_fraction must be between"),
        (lambda: gm.data.character_stream("abcdef").windows(9, 1), ValueError, "a window of 9 wants a stream"),
        (lambda: gm.data.consecutive_windows(np.arange(3), 4), ValueError, "a window of 4 wants a stream"),
        (lambda: gm.data.consecutive_windows(np.arange(9), 4, 4), ValueError, r"overlap must be in 0\.\.3, got 4"),
    ],
)
def test_bad_text(call, error, match):
    with pytest.raises(error, match=match):
        call()


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_published_text_is_checked(suffix, tmp_path, monkeypatch):
    monkeypatch.setenv("GENMOD_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"text/names.txt.gz is wanted"):
        gm.data.names()
    content = "\n".join(LINES).encode()
    monkeypatch.setitem(text._SHA256, "text/names.txt.gz", hashlib.sha256(content).hexdigest())
    (tmp_path / "text").mkdir()
    path = tmp_path / f"text/names.txt{suffix}"
    path.write_bytes(gzip.compress(content) if suffix else content)
    assert len(gm.data.names().train) == 10
    path.write_bytes(content[:-1])
    with pytest.raises(ValueError, match="checksum mismatch: the text in"):
        gm.data.names()


def test_binary_tables_are_checked(tmp_path, monkeypatch):
    monkeypatch.setenv("GENMOD_DATA", str(tmp_path))
    parts = [np.random.default_rng(i).integers(0, 2, (i + 3, 11)).astype(np.uint8) for i in range(3)]
    packed = [np.packbits(part, axis=1) for part in parts]
    digests = [hashlib.sha256(part.tobytes()).hexdigest() for part in packed]
    monkeypatch.setitem(binary_tables._TABLES, "nltcs", (11, *digests))
    (tmp_path / "debd").mkdir()
    arrays = dict(zip(("nltcs_train", "nltcs_valid", "nltcs_test"), packed, strict=True))
    np.savez(tmp_path / "debd/debd_packed.npz", **arrays)
    data = gm.data.nltcs()
    for part, x in zip((data.train, data.validation, data.test), parts, strict=True):
        np.testing.assert_array_equal(part, x)
    assert data.event == gm.Levels((11,), 2)
    with pytest.raises(ValueError, match="checksum mismatch: plants_train"):
        gm.data.plants()


@pytest.mark.skipif(not (FOLDER / "text").is_dir(), reason="GENMOD_DATA is not set, or lacks text")
def test_the_published_texts():
    """Bigrams of names by counting, whole file: 2.454014 nats a character, 2.454577 with add-one (exact counts)."""
    data = gm.data.names()
    assert data.event == gm.Tokens(16, 27, end=0) and data.alphabet == "abcdefghijklmnopqrstuvwxyz"
    rows = np.concatenate([data.train, data.validation, data.test])
    model, tokens = gm.models.NGram(data.event, 2), np.asarray(data.event.num_units(rows))
    assert len(rows) == 32_033 and tokens.sum() == 228_146
    for estimate, wanted in ((gm.models.maximum_likelihood, 2.454014), (gm.models.dirichlet_predictive, 2.454577)):
        params = gm.models.fit_ngram(model, rows, estimate=estimate)
        nll = -np.asarray(model.log_prob(params, rows), np.float64)
        assert gm.metrics.nats_per_token(nll, tokens) == pytest.approx(wanted, abs=2e-6)
    shakespeare = gm.data.tiny_shakespeare()
    assert shakespeare.train.shape == (1_003_854,) and shakespeare.validation.shape == (111_540,)
    assert len(shakespeare.alphabet) == 65


@pytest.mark.skipif(not (FOLDER / "debd").is_dir(), reason="GENMOD_DATA is not set, or lacks debd")
@pytest.mark.parametrize(
    ("name", "dim", "sizes"),
    [
        ("nltcs", 16, (16181, 2157, 3236)),
        ("plants", 69, (17412, 2321, 3482)),
        ("accidents", 111, (12758, 1700, 2551)),
        ("mushrooms", 112, (2000, 500, 5624)),
        ("dna", 180, (1600, 400, 1186)),
    ],
)
def test_the_published_tables(name, dim, sizes):
    data = getattr(gm.data, name)()
    assert data.event == gm.Levels((dim,), 2) and data.name == name
    assert (len(data.train), len(data.validation), len(data.test)) == sizes
