"""Binary sets: as text and as packed bits, damaged, missing; the real one where GENMOD_DATA has it."""

import hashlib
import os
import pathlib

import numpy as np
import pytest

import genmod as gm
from genmod.data import binary

PIXELS = {name: np.random.default_rng(i).integers(0, 2, (i + 2, 784)).astype(np.uint8) for i, name in enumerate(binary._MNIST)}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty GENMOD_DATA, and checksums of the small set."""
    monkeypatch.setenv("GENMOD_DATA", str(tmp_path))
    digests = {name: hashlib.sha256(np.packbits(x, axis=1).tobytes()).hexdigest() for name, x in PIXELS.items()}
    monkeypatch.setattr(binary, "_MNIST", digests)
    (tmp_path / "binarized_mnist").mkdir()
    return tmp_path / "binarized_mnist"


def as_text(folder, damaged=None):
    for name, x in PIXELS.items():
        rows = x[:-1] if name == damaged else x
        text = "\n".join(" ".join(map(str, row)) for row in rows.tolist())
        (folder / f"binarized_mnist_{name}.amat").write_text(text + "\n")


def as_bits(folder):
    np.savez(folder / "binarized_mnist_static.npz", **{name: np.packbits(x, axis=1) for name, x in PIXELS.items()})


@pytest.mark.parametrize("write", [as_text, as_bits])
def test_the_pixels_come_back(folder, write):
    write(folder)
    data = gm.data.binarized_mnist()
    for part, x in zip((data.train, data.validation, data.test), PIXELS.values(), strict=True):
        np.testing.assert_array_equal(part, x.reshape(-1, 28, 28, 1))
    assert data.num_levels == 2 and data.train.dtype == np.uint8 and data.event == gm.Levels((28, 28, 1), 2)


def test_other_pixels_are_refused(folder):
    as_text(folder, damaged="valid")
    with pytest.raises(ValueError, match="checksum mismatch: valid in"):
        gm.data.binarized_mnist()
    (folder / "binarized_mnist_valid.amat").write_text("0 1 0\n")
    with pytest.raises(ValueError, match="must hold 784 zeros and ones a row, got 3 in all"):
        gm.data.binarized_mnist()
    (folder / "binarized_mnist_valid.amat").unlink()
    with pytest.raises(FileNotFoundError, match=r"binarized_mnist_valid.amat \(or .gz\) is wanted"):
        gm.data.binarized_mnist()


def test_the_published_set():
    place = pathlib.Path(os.environ.get("GENMOD_DATA", "")) / "binarized_mnist"
    if not os.environ.get("GENMOD_DATA") or not place.is_dir():
        pytest.skip("GENMOD_DATA is not set, or lacks binarized_mnist")
    data = gm.data.binarized_mnist()
    assert data.train.shape == (50_000, 28, 28, 1) and data.test.shape == (10_000, 28, 28, 1)
    np.testing.assert_allclose(
        [x.mean() for x in (data.train, data.validation, data.test)], [0.130562, 0.131127, 0.132512], atol=2e-6
    )
