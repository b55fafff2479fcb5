"""Image data sets as they were published: levels in uint8 arrays (n, height, width, channels), with labels.

data = gm.data.images.mnist()      # .train .validation .test, .labels.train ..., .num_levels

`digits` comes with scikit-learn. The others are read from the folder named by GENMOD_DATA, in the
formats of their publication, below the names that `download` gives them:

    mnist/, fashion_mnist/     {train,t10k}-{images-idx3,labels-idx1}-ubyte, each plain or as .gz   (IDX)
    cifar-10-batches-bin/      {data_batch_1, ..., data_batch_5, test_batch}.bin, or cifar-10-binary.tar.gz
                               (records of a label and 1024 bytes each of red, green and blue)

The SHA-256 of what is read, unpacked, must be that of the published files, so a set has the same rows in
the same order everywhere. Validation is the last `num_validation` rows of the published training set, and
train the rows before; test is the published test set.

Nothing is scaled or dequantised: a model of levels k in {0, ..., num_levels - 1} has probabilities P(k).
"""

import hashlib
import http.client
import math
import operator
import os
import pathlib
import shutil
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from genmod.data.dataset import Dataset, Labels, split
from genmod.data.files import data_folder, sklearn_datasets, untar, unzip

_URLS = {
    "mnist": "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "fashion_mnist": "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    "cifar10": "https://www.cs.toronto.edu/~kriz/",
}


def _idx_packages(folder: str, *sha256: str) -> dict[str, dict[str, str]]:
    names = [
        f"{folder}/{part}-ubyte" for part in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    ]
    return {f"{name}.gz": {name: digest} for name, digest in zip(names, sha256, strict=True)}


# Set -> package that is downloaded -> file in it -> SHA-256. Of the files and not of the packages, which some packed again.
_PACKAGES = {
    "mnist": _idx_packages(
        "mnist",
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
    "fashion_mnist": _idx_packages(
        "fashion_mnist",
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
    "cifar10": {
        "cifar-10-binary.tar.gz": {
            "cifar-10-batches-bin/data_batch_1.bin": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
            "cifar-10-batches-bin/data_batch_2.bin": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
            "cifar-10-batches-bin/data_batch_3.bin": "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
            "cifar-10-batches-bin/data_batch_4.bin": "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
            "cifar-10-batches-bin/data_batch_5.bin": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
            "cifar-10-batches-bin/test_batch.bin": "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
        }
    },
}

_IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def digits(seed: int = 0) -> Dataset:
    """scikit-learn's 1797 digits, (8, 8, 1), levels 0..16, split 80/10/10 with `seed`: the rows of `gm.data.digits`.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    published = sklearn_datasets().load_digits()
    x = published.images[..., None].astype(np.uint8)
    parts = split(np.arange(len(x)), seed=seed)
    return _dataset("digits", [x[rows] for rows in parts], [published.target[rows] for rows in parts], 17)


def mnist(num_validation: int = 5_000) -> Dataset:
    """MNIST (LeCun et al. 1998): handwritten digits, (28, 28, 1), 60,000 to train and validate, 10,000 to test.

    `num_validation` may be 0: then the validation arrays are empty.

    Raises:
        FileNotFoundError: GENMOD_DATA is not set, or lacks the files.
        TypeError, ValueError: num_validation is no integer, or does not leave a row to train on.
        ValueError: a file is damaged, or is not the published one.
    """
    return _idx_dataset("mnist", num_validation)


def fashion_mnist(num_validation: int = 5_000) -> Dataset:
    """Fashion-MNIST (Xiao et al. 2017, arXiv:1708.07747): articles of clothing, in sizes and arguments as `mnist`.

    Raises:
        FileNotFoundError, TypeError, ValueError: as `mnist`.
    """
    return _idx_dataset("fashion_mnist", num_validation)


def cifar10(num_validation: int = 5_000) -> Dataset:
    """CIFAR-10 (Krizhevsky 2009): photographs, (32, 32, 3), 50,000 to train and validate, 10,000 to test.

    Raises:
        FileNotFoundError, TypeError, ValueError: as `mnist`.
    """
    records = [np.frombuffer(content, np.uint8).reshape(-1, 3073) for content in _published("cifar10")]
    x = [r[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1) for r in records]
    labels = [r[:, 0] for r in records]
    return _cut("cifar10", np.concatenate(x[:-1]), np.concatenate(labels[:-1]), x[-1], labels[-1], num_validation)


SETS: dict[str, Callable[..., Dataset]] = {"digits": digits, "mnist": mnist, "fashion_mnist": fashion_mnist, "cifar10": cifar10}


def quantize(x: Any, num_bits: int) -> Array:
    """Keeps the leading `num_bits` of 8: x >> (8 - num_bits), uint8 in 0..2^num_bits - 1; 1 bit is x >= 128.

    Raises:
        TypeError: x is not uint8, or num_bits is no integer.
        ValueError: num_bits is not in 1..8.
    """
    x = jnp.asarray(x)
    if x.dtype != jnp.uint8:
        raise TypeError(f"x must be uint8, levels 0..255, got {x.dtype}; pass the images as they were read")
    num_bits = _integer("num_bits", num_bits)
    if not 1 <= num_bits <= 8:
        raise ValueError(f"num_bits must be in 1..8, got {num_bits}")
    return x >> (8 - num_bits)


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads an array from an IDX file, plain or gzip, into this machine's byte order; the array may be read-only.

    IDX is big-endian: two zero bytes, a byte for the type, one for the rank, the sizes as uint32, then the entries in C order.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no IDX file, is damaged, or is longer or shorter than its header says.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}; give the path of an IDX file")
    return _parse_idx(unzip(path), str(path))


def download(name: str, folder: str | os.PathLike[str] | None = None, *, url: str | None = None, timeout: float = 60.0) -> None:
    """Fetches the published files of a set. A file that is there and right is kept; another is put there whole or not at all.

    Args:
      name: "mnist" (12 MB), "fashion_mnist" (31 MB) or "cifar10" (170 MB).
      folder: where they go; GENMOD_DATA if None; it is made if it is not there.
      url: that of a mirror's folder. timeout: seconds without an answer.

    Raises:
        ConnectionError: a file could not be fetched.
        ValueError: unknown name, no folder, what was fetched is not what was published, or an unpacked file in the
            folder, which is not touched, is not.
    """
    if name not in _PACKAGES:
        raise ValueError(f"name must be one of {', '.join(map(repr, _PACKAGES))}, got {name!r}")
    if not (folder := folder or os.environ.get("GENMOD_DATA")):
        raise ValueError("folder must be given where the environment variable GENMOD_DATA is not set; pass folder=...")
    for package, sha256 in _PACKAGES[name].items():
        path = pathlib.Path(folder) / package
        there = _locate(pathlib.Path(folder), package, sha256)
        try:
            if there and _contents(there, sha256, name):
                continue
        except ValueError:
            if there != [path]:
                raise
        _fetch(f"{(url or _URLS[name]).rstrip('/')}/{path.name}", path, sha256, name, timeout)


def _fetch(url: str, path: pathlib.Path, sha256: dict[str, str], name: str, timeout: float) -> None:
    """Puts the package at `url` at `path`, if its files are as published."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{uuid.uuid4().hex}.{path.name}")
    try:
        try:
            with urllib.request.urlopen(url, timeout=timeout) as response, partial.open("xb") as file:
                shutil.copyfileobj(response, file)
        except ValueError as error:
            raise ValueError(f"url must name a web page or folder, such as {_URLS[name]}, got {url}") from error
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            raise ConnectionError(f"{url} could not be fetched ({error}): try again, or name a mirror with url=...") from error
        try:
            _contents([partial], sha256, name)
        except ValueError as error:
            raise ValueError(f"{url} is not what was published, and is not kept: name another mirror with url=...") from error
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _idx_dataset(name: str, num_validation: int) -> Dataset:
    train, labels, test, test_labels = (_parse_idx(content, name) for content in _published(name))
    return _cut(name, train[..., None], labels, test[..., None], test_labels, num_validation)


def _cut(name: str, x: np.ndarray, labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray, num_validation: int) -> Dataset:
    """Cuts validation off the end of the published training set (x, labels)."""
    n = len(x) - _integer("num_validation", num_validation)
    if not 0 < n <= len(x):
        raise ValueError(f"num_validation must be in 0..{len(x) - 1} for {name}, got {num_validation}")
    return _dataset(name, (x[:n], x[n:], test), (labels[:n], labels[n:], test_labels), 256)


def _dataset(name: str, images: Sequence[np.ndarray], labels: Sequence[np.ndarray], num_levels: int) -> Dataset:
    train, validation, test = map(jnp.asarray, images)
    classes = (jnp.asarray(y, jnp.int32) for y in labels)
    return Dataset(name, train, validation, test, labels=Labels(*classes), num_levels=num_levels)


def _published(name: str) -> list[bytes]:
    """The files of a set, in the order of the table, as they were published."""
    packages, fetch = _PACKAGES[name], f"with genmod.data.images.download({name!r})"
    folder = data_folder(f"the files {', '.join(packages)} are", f"fill it {fetch}")
    found = {package: _locate(folder, package, sha256) for package, sha256 in packages.items()}
    if missing := [package for package, paths in found.items() if not paths]:
        raise FileNotFoundError(
            f"the files {', '.join(missing)} (or unpacked: {', '.join(file for p in missing for file in packages[p])}) are "
            f"wanted, but GENMOD_DATA={folder} lacks them: put them there, or fetch them {fetch}."
        )
    return [content for package, sha256 in packages.items() for content in _contents(found[package], sha256, name)]


def _locate(folder: pathlib.Path, package: str, sha256: dict[str, str]) -> list[pathlib.Path]:
    """The unpacked files where all are there, else the package, else nothing."""
    unpacked = [folder / file for file in sha256]
    if all(path.is_file() for path in unpacked):
        return unpacked
    return [folder / package] if (folder / package).is_file() else []


def _contents(paths: list[pathlib.Path], sha256: dict[str, str], name: str) -> list[bytes]:
    """The bytes of the files named in `sha256`, from what `_locate` found; ValueError unless they are as published."""
    fix = f"remove it and fetch it again with genmod.data.images.download({name!r})"
    if paths[0].name.endswith(".tar.gz"):
        contents, paths = untar(paths[0], list(sha256), fix), paths * len(sha256)
    else:
        contents = [unzip(path, fix) for path in paths]
    for path, content, (file, wanted) in zip(paths, contents, sha256.items(), strict=True):
        if (got := hashlib.sha256(content).hexdigest()) != wanted:
            raise ValueError(
                f"checksum mismatch: {path} ({file}) has SHA-256 {got}, but that of the publication is {wanted}: {fix}."
            )
    return contents


def _parse_idx(content: bytes, where: str) -> np.ndarray:
    """The array in the bytes of an IDX file."""
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _IDX_TYPES or not content[3]:
        raise ValueError(
            f"{where} begins with the bytes {content[:4].hex(' ') or '(none)'}, but an IDX file begins with 00 00, a type in "
            f"{', '.join(f'{t:02x}' for t in _IDX_TYPES)} and a rank from 01: give the path of an IDX file."
        )
    dtype, rank = np.dtype(_IDX_TYPES[content[2]]), content[3]
    start = 4 + 4 * rank
    shape = tuple(int.from_bytes(content[i : i + 4], "big") for i in range(4, start, 4))
    wanted = start + math.prod(shape) * dtype.itemsize
    if len(content) != wanted:
        raise ValueError(f"{where} has {len(content)} bytes, but its header, of shape {shape}, wants {wanted}: fetch it again.")
    return np.frombuffer(content, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="), copy=False)


def _integer(name: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
