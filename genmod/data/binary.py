"""Binary data sets as they were published: zeros and ones in uint8, read from the folder named by GENMOD_DATA."""

import hashlib
import pathlib

import jax.numpy as jnp
import numpy as np

from genmod.data.dataset import Dataset
from genmod.data.files import data_folder, read, unzip

# Of the rows, packed eight pixels to a byte.
_MNIST = {
    "train": "727146c35424b019f3e350e1e69faa05644a0abaf787e3f4e1a9632220a13906",
    "valid": "a256ac44ae26be720fad8616a05ed6ecfd1619930d9a208379bb2a4405df5b6d",
    "test": "9fcd8da6f0fdf09b2ba30fe63a0bb784042a0de82563172530229b983e294ff2",
}
_FOLDER = "binarized_mnist"


def binarized_mnist() -> Dataset:
    """MNIST, each pixel drawn once to be 0 or 1: 50,000 / 10,000 / 10,000 images (28, 28, 1), without labels.

    The static set by which likelihoods of VAEs are compared (Salakhutdinov & Murray 2008, 10.1145/1390156.1390266; Larochelle &
    Murray 2011). Read from binarized_mnist/ in the folder GENMOD_DATA: the published text, plain or as .gz, in
    binarized_mnist_{train,valid,test}.amat, or binarized_mnist_static.npz with arrays `train`, `valid` and `test`, (n, 98), of
    packed bits.

    Raises:
        FileNotFoundError: GENMOD_DATA is not set, or lacks the files.
        ValueError: the pixels are not those that were published.
    """
    folder = data_folder(f"the files {_FOLDER}/binarized_mnist_{{train,valid,test}}.amat are") / _FOLDER
    packed = folder / "binarized_mnist_static.npz"
    if packed.is_file():
        arrays, _ = read(packed)
        parts = {name: arrays.get(name, np.zeros((0, 98), np.uint8)) for name in _MNIST}
    else:
        parts = {name: np.packbits(_amat(folder, name), axis=1) for name in _MNIST}
    for name, wanted in _MNIST.items():
        if (got := hashlib.sha256(np.ascontiguousarray(parts[name]).tobytes()).hexdigest()) != wanted:
            raise ValueError(
                f"checksum mismatch: {name} in {folder} has packed pixels of SHA-256 {got}, but that of the publication is "
                f"{wanted}: remove the file and fetch it again."
            )
    train, validation, test = (jnp.asarray(np.unpackbits(part, axis=1).reshape(-1, 28, 28, 1)) for part in parts.values())
    return Dataset("binarized_mnist", train, validation, test, num_levels=2)


def _amat(folder: pathlib.Path, name: str) -> np.ndarray:
    """The pixels in a text file of zeros and ones, a row for each image."""
    paths = [folder / f"binarized_mnist_{name}.amat{suffix}" for suffix in ("", ".gz")]
    found = next((path for path in paths if path.is_file()), None)
    if found is None:
        raise FileNotFoundError(f"the file {_FOLDER}/{paths[0].name} (or .gz) is wanted, but {folder} lacks it: put it there.")
    digits = np.frombuffer(unzip(found), np.uint8)
    digits = digits[(digits == ord("0")) | (digits == ord("1"))] - ord("0")
    if digits.size == 0 or digits.size % 784:
        raise ValueError(f"{found} must hold 784 zeros and ones a row, got {digits.size} in all: fetch it again.")
    return digits.reshape(-1, 784)
