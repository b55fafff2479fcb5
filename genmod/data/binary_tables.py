"""Binary tables by which density estimators are compared: zeros and ones in uint8, rows as published, no labels.

data = gm.data.nltcs()      # .train .validation .test, .num_levels = 2

| set | columns | train | validation | test |
|---|---|---|---|---|
| nltcs | 16 | 16181 | 2157 | 3236 |
| plants | 69 | 17412 | 2321 | 3482 |
| accidents | 111 | 12758 | 1700 | 2551 |
| mushrooms | 112 | 2000 | 500 | 5624 |
| dna | 180 | 1600 | 400 | 1186 |

(Lowd & Davis 2010, 10.1109/ICDM.2010.128; Larochelle & Murray 2011; Van Haaren & Davis 2012.) They are read from
debd/debd_packed.npz in the folder GENMOD_DATA: arrays NAME_train, NAME_valid, NAME_test of packed bits.

All raise FileNotFoundError where GENMOD_DATA is not set, or lacks the file, and ValueError for bits that are not those published.
"""

import hashlib

import jax.numpy as jnp
import numpy as np

from genmod.data.dataset import Dataset
from genmod.data.files import data_file, read

# Columns, and the SHA-256 of the packed bits of train, valid and test.
_TABLES = {
    "nltcs": (
        16,
        "443230cccd53650e3465d88ecc71c165a03b8ea93e0d5efc8a0adee9a8c3261b",
        "aa893aea35fc267dcd8c5ade1082667c9de65606aa1636a7bda7e10e9107542c",
        "2e7f41a762856c5358655546177ed76633343496f93dd9519d14c8dd7a8290af",
    ),
    "plants": (
        69,
        "82b30416496b49b2b56e1f9762863de4068c16f509ae9b37019d03a04eff567e",
        "17543413286463289f89499e16081dc8851f5587c5a4f13428d85ed16343de8d",
        "392a88032d7db8fba12cffb2cc9142af63cbf5e4af70967b84f419356ba5e771",
    ),
    "accidents": (
        111,
        "e712521d239beba5f4d9d50899963e7920099bbe3a987c9f1e58bb626261db0d",
        "638ff3fde8b552109d21d0546cd83535361fc3be51173708c4b70f21162bfae3",
        "ca5ca78bdac983743a31f57335fcdc614a6a89d79da6ed0a343f381b8951b891",
    ),
    "mushrooms": (
        112,
        "b9b5e3b85f7fc3a6a7b15951f2974a0bafa2b9528001bcb8740f7187f2d7ff2b",
        "c820fb1db5cc0918a66cac28324508eb29e73edabd540313c39bcf476757f5c4",
        "de4f74441a3f07d6acc13aaa572e67e6e101551d99bee7d668c340e5ce720256",
    ),
    "dna": (
        180,
        "a79dc4e3cecb9b28cdaaa562146e0d1240b7a44e3a7a172cef1f7d1741b17987",
        "538d89e0bd167d6538d7ae17e30a26a3dd1540e3c7b950f14a55768a5ed21f00",
        "1cf7544018e47407cf867662bf0d55f0de17b37d23cda5a74f445a97eecad8ce",
    ),
}
_FILE = "debd/debd_packed.npz"


def nltcs() -> Dataset:
    """16 disabilities of 21,574 old people, from the National Long Term Care Survey: 2^16 states, which can be summed."""
    return _load("nltcs")


def plants() -> Dataset:
    """In which of 69 regions each of 23,215 plants grows."""
    return _load("plants")


def accidents() -> Dataset:
    """111 circumstances of 17,009 traffic accidents."""
    return _load("accidents")


def mushrooms() -> Dataset:
    """112 features of 8,124 mushrooms, of which 2,000 are to train: a small training set beside a large test set."""
    return _load("mushrooms")


def dna() -> Dataset:
    """3,186 stretches of 60 bases at splice junctions, in 180 bits; 1,600 / 400 / 1,186, the split of Van Haaren & Davis."""
    return _load("dna")


def _load(name: str) -> Dataset:
    path = data_file(_FILE)
    arrays, _ = read(path)
    dim, *digests = _TABLES[name]
    parts = []
    for part, wanted in zip(("train", "valid", "test"), digests, strict=True):
        packed = arrays.get(f"{name}_{part}", np.zeros((0, 1), np.uint8))
        if (got := hashlib.sha256(np.ascontiguousarray(packed).tobytes()).hexdigest()) != wanted:
            raise ValueError(
                f"checksum mismatch: {name}_{part} in {path} has packed bits of SHA-256 {got}, but those published have "
                f"{wanted}: remove the file and fetch it again."
            )
        parts.append(jnp.asarray(np.unpackbits(packed, axis=1)[:, :dim]))
    return Dataset(name, *parts, num_levels=2)
