"""Images: small files in the published formats, damaged in every way; the real ones where GENMOD_DATA has them."""

import functools
import gzip
import hashlib
import http.server
import io
import math
import os
import pathlib
import socket
import struct
import tarfile
import threading
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genmod import data
from genmod.core.event import Levels
from genmod.data import images

RNG = np.random.default_rng(0)
TYPES = {0x08: "u1", 0x09: "i1", 0x0B: "i2", 0x0C: "i4", 0x0D: "f4", 0x0E: "f8"}


def idx(x):
    code = next(code for code, name in TYPES.items() if np.dtype(name) == x.dtype)
    return struct.pack(f">BBBB{x.ndim}I", 0, 0, code, x.ndim, *x.shape) + x.astype(x.dtype.newbyteorder(">")).tobytes()


def tar(files, **attributes):
    """A .tar.gz of files {name: bytes}; `attributes` are set on every member."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            for key, value in attributes.items():
                setattr(member, key, value)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def idx_files(folder):
    x, labels = RNG.integers(0, 256, (30, 28, 28), np.uint8), RNG.integers(0, 10, 30, np.uint8)
    parts = [x[:20], labels[:20], x[20:], labels[20:]]
    names = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    return {f"{folder}/{name}-ubyte": idx(part) for name, part in zip(names, parts, strict=True)}, (x, labels)


def cifar_files():
    x, labels = RNG.integers(0, 256, (24, 32, 32, 3), np.uint8), RNG.integers(0, 10, 24, np.uint8)
    records = [
        bytes([label]) + b"".join(image[..., channel].tobytes() for channel in range(3))
        for image, label in zip(x, labels, strict=True)
    ]
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    return {f"cifar-10-batches-bin/{name}": b"".join(records[4 * i : 4 * i + 4]) for i, name in enumerate(names)}, (x, labels)


@functools.cache
def small(name):
    """A set of 20 training and 10 or 4 test images: its files, its packages, (images, labels)."""
    files, truth = cifar_files() if name == "cifar10" else idx_files(name)
    if name == "cifar10":
        return files, {"cifar-10-binary.tar.gz": tar({"../../outside": b"x", "/etc/absolute": b"x"} | files)}, truth
    return files, {f"{file}.gz": gzip.compress(content, mtime=0) for file, content in files.items()}, truth


def write(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def listing(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty GENMOD_DATA, and checksums of the small sets."""
    for name, packages in images._PACKAGES.items():
        files, _, _ = small(name)
        digest = {file: hashlib.sha256(content).hexdigest() for file, content in files.items()}
        small_packages = {package: {file: digest[file] for file in sha256} for package, sha256 in packages.items()}
        monkeypatch.setitem(images._PACKAGES, name, small_packages)
    monkeypatch.setenv("GENMOD_DATA", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


by_name = pytest.mark.parametrize("name", images._PACKAGES)


# ---- reading the sets


@by_name
@pytest.mark.parametrize("form", ["unpacked", "packages", "mixed"])
def test_sets(folder, name, form):
    files, packages, (x, labels) = small(name)
    first = next(iter(files))
    write(folder, {"unpacked": files, "packages": packages, "mixed": packages | {first: files[first]}}[form])
    before = listing(folder)
    d = images.SETS[name](num_validation=3)
    assert listing(folder) == before and not (folder.parent / "outside").exists(), "nothing is extracted"
    x = x if name == "cifar10" else x[..., None]
    for got, wanted in zip((d.train, d.validation, d.test), (x[:17], x[17:20], x[20:]), strict=True):
        assert isinstance(got, jax.Array) and got.dtype == jnp.uint8
        np.testing.assert_array_equal(got, wanted)
    for got, wanted in zip(d.labels, (labels[:17], labels[17:20], labels[20:]), strict=True):
        assert isinstance(got, jax.Array) and got.dtype == jnp.int32
        np.testing.assert_array_equal(got, wanted)
    assert d.name == name and d.num_levels == 256 and d.event_shape == x.shape[1:] and d.density is None
    assert d.event == Levels(x.shape[1:], 256)
    assert repr(d).endswith("density=None, num_levels=256)")


def test_num_validation(folder):
    write(folder, small("mnist")[0])
    d = images.mnist(num_validation=0)
    assert (len(d.train), d.validation.shape, d.labels.validation.shape) == (20, (0, 28, 28, 1), (0,))
    assert len(images.mnist(num_validation=19).train) == 1
    for num in (-1, 20):
        with pytest.raises(ValueError, match=rf"num_validation must be in 0..19 for mnist, got {num}"):
            images.mnist(num_validation=num)
    with pytest.raises(TypeError, match="num_validation must be an integer, got 0.1"):
        images.mnist(num_validation=0.1)


def test_a_package_that_a_browser_unpacked(folder):
    files, _, (x, _) = small("fashion_mnist")
    write(folder, {f"{file}.gz": content for file, content in files.items()})
    np.testing.assert_array_equal(images.fashion_mnist(0).train[..., 0], x[:20])


@by_name
def test_missing_files(folder, name, monkeypatch):
    files, packages, _ = small(name)
    call = rf"fetch them with genmod.data.images.download\('{name}'\)"
    with pytest.raises(
        FileNotFoundError, match=rf"{next(iter(packages))}.*{list(files)[-1]}\) .*GENMOD_DATA={folder} lacks.*{call}"
    ):
        images.SETS[name]()
    if name != "cifar10":
        write(folder, dict(list(files.items())[:3]))
        with pytest.raises(
            FileNotFoundError, match=rf"the files {name}/t10k-labels-idx1-ubyte.gz \(or unpacked: {name}/t10k-labels"
        ):
            images.SETS[name]()
    monkeypatch.delenv("GENMOD_DATA")
    with pytest.raises(
        FileNotFoundError, match=rf"the files {next(iter(packages))}.*GENMOD_DATA, which is not set.*download\('{name}'\)"
    ):
        images.SETS[name]()


@by_name
@pytest.mark.parametrize("packed", [False, True])
def test_other_bytes(folder, name, packed):
    files, packages, _ = small(name)
    file = list(files)[1]
    other = files | {file: files[file][:-1] + bytes([files[file][-1] ^ 1])}
    if packed:
        other = (
            {"cifar-10-binary.tar.gz": tar(other)}
            if name == "cifar10"
            else {f"{f}.gz": gzip.compress(c, mtime=0) for f, c in other.items()}
        )
    write(folder, other)
    fix = rf"remove it and fetch it again with genmod.data.images.download\('{name}'\)"
    with pytest.raises(ValueError, match=rf"checksum mismatch: {folder}/.*\({file}\) has SHA-256 \w+, .* \w+: {fix}"):
        images.SETS[name]()


def test_archive_that_lies(folder):
    files, packages, _ = small("cifar10")
    ((package, whole),) = packages.items()
    link = {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}
    for content, message in (
        (tar(dict.fromkeys(files, b""), **link), "lacks cifar-10-batches-bin/data_batch_1.bin, "),
        (tar({f"./x/../{name}": content for name, content in files.items()}), "lacks cifar-10-batches-bin/data_batch_1.bin, "),
        (tar(dict(list(files.items())[:5])), "lacks cifar-10-batches-bin/test_batch.bin: remove it and fetch it again"),
        (b"", "is a damaged archive"),
        (b"<html>not found</html>", "is a damaged archive"),
        (whole[: len(whole) // 2], "is a damaged archive"),
        # Where the damage hits the header of a member, the members after it cannot be found.
        (
            whole[: len(whole) // 2] + bytes(99) + whole[len(whole) // 2 + 99 :],
            "(is a damaged archive|lacks cifar|.* has SHA-256)",
        ),
    ):
        write(folder, {package: content})
        with pytest.raises(ValueError, match=rf"{package} {message}"):
            images.cifar10()


def test_digits():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # not ours: the import of scikit-learn itself
        pytest.importorskip("sklearn.datasets", exc_type=ImportError)
    d = images.digits(0)
    assert [x.shape for x in (d.train, d.validation, d.test)] == [(1439, 8, 8, 1), (179, 8, 8, 1), (179, 8, 8, 1)]
    assert [y.shape for y in d.labels] == [(1439,), (179,), (179,)]
    assert d.train.dtype == jnp.uint8 and d.labels.train.dtype == jnp.int32 and d.num_levels == 17
    assert d.train.min() == 0 and d.train.max() == 16
    np.testing.assert_array_equal(d.train, images.digits(0).train)
    assert not np.array_equal(d.train, images.digits(1).train)
    # The same rows, dequantised; 1e-6 covers the rounding of (k + u) / 17 where u is nearly 0.
    table = data.digits(0)
    levels = np.floor(np.asarray(table.test, np.float64) * 17 + 1e-6)
    assert np.mean(levels == np.asarray(d.test).reshape(179, 64)) > 0.9999
    # A label belongs to its image: the nearest class mean is right far more often than chance, 0.1.
    x, y = np.asarray(d.train, float).reshape(-1, 64), np.asarray(d.labels.train)
    means = np.stack([x[y == c].mean(0) for c in range(10)])
    test = np.asarray(d.test, float).reshape(-1, 1, 64)
    assert np.mean(np.square(test - means).sum(-1).argmin(1) == np.asarray(d.labels.test)) > 0.8


# ---- IDX


@pytest.mark.parametrize("name", TYPES.values())
@pytest.mark.parametrize("shape", [(5,), (2, 3, 4), (0, 3)])
def test_idx(tmp_path, name, shape):
    x = (RNG.normal(size=shape) * 50).astype(name)
    write(
        tmp_path,
        {
            "plain": idx(x),
            "packed": gzip.compress(idx(x), mtime=0),
            "split": gzip.compress(idx(x)[:7], mtime=0) + gzip.compress(idx(x)[7:], mtime=0),
        },
    )
    for path in ("plain", "packed", "split"):
        got = images.read_idx(str(tmp_path / path))
        assert got.dtype == np.dtype(name) and got.dtype.isnative
        np.testing.assert_array_equal(got, x)


def test_idx_bytes(tmp_path):
    """Against bytes written by hand: a 2 x 2 matrix of int16."""
    (tmp_path / "x").write_bytes(bytes.fromhex("00000b02 00000002 00000002 0001 0100 ffff 8000"))
    np.testing.assert_array_equal(images.read_idx(tmp_path / "x"), np.array([[1, 256], [-1, -32768]], np.int16))


GOOD = idx(np.arange(12, dtype=np.uint8).reshape(3, 4))


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", r"begins with the bytes \(none\), but an IDX file begins with 00 00, a type in 08, 09, 0b, "),
        (b"\0\0\x08", "begins with the bytes 00 00 08, but"),
        (b"<html>", "begins with the bytes 3c 68 74 6d"),
        (b"\0\0\x0a" + GOOD[3:], "begins with the bytes 00 00 0a 02"),
        (b"\0\0\x08\0", "begins with the bytes 00 00 08 00"),
        (GOOD[:9], r"has 9 bytes, but its header.* wants \d+: fetch it again"),
        (GOOD[:-1], r"has 23 bytes, but its header, of shape \(3, 4\), wants 24"),
        (GOOD + b"\0", "has 25 bytes, but its header"),
        (b"\0\0\x0e\x04" + b"\xff" * 16, r"has 20 bytes, .*wants \d{30}"),
        (gzip.compress(GOOD, mtime=0)[:-9], "is damaged gzip .*: fetch it again"),
        (gzip.compress(GOOD, mtime=0)[:-8] + bytes(8), "is damaged gzip"),
        (gzip.compress(GOOD, mtime=0)[:12] + b"\xff" * 20, "is damaged gzip"),
        (gzip.compress(GOOD, mtime=0) + b"tail", "is damaged gzip"),
        (b"\x1f\x8b", "is damaged gzip"),
    ],
)
def test_bad_idx(tmp_path, content, message):
    (tmp_path / "x-ubyte").write_bytes(content)
    with pytest.raises(ValueError, match=rf"{tmp_path}/x-ubyte {message}"):
        images.read_idx(tmp_path / "x-ubyte")


def test_no_idx(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"there is no file '{tmp_path}'; give the path of an IDX file"):
        images.read_idx(tmp_path)


# ---- download


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A server on the loopback: (its folder, its address, the paths that were asked for)."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    root, asked = tmp_path / "mirror", []
    root.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(root))

        def log_message(self, *args):
            asked.append(self.path)

        def end_headers(self):
            if self.path.endswith("short/train-images-idx3-ubyte.gz"):
                self.send_header("Content-Length", str(10**6))  # the first length is taken: more than will come
            super().end_headers()

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield root, f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


def publish(root, name):
    write(root, {pathlib.PurePath(package).name: content for package, content in small(name)[1].items()})


@by_name
def test_download(folder, mirror, name, monkeypatch):
    root, url, asked = mirror
    publish(root, name)
    _, packages, _ = small(name)
    monkeypatch.setitem(images._URLS, name, f"{url}/")
    assert images.download(name) is None
    assert listing(folder) == set(packages) and len(images.SETS[name](1).train) == 19
    num = len(asked)
    assert num == len(packages)
    images.download(name)
    assert len(asked) == num, "what is there and right is kept"
    last = list(packages)[-1]
    (folder / last).write_bytes(packages[last][: len(packages[last]) // 2])
    images.download(name)
    assert len(asked) == num + 1 and (folder / last).read_bytes() == packages[last], "what is damaged is replaced"
    images.download(name, folder.parent / "new" / "folder", url=root.as_uri())
    assert listing(folder.parent / "new") == {f"folder/{package}" for package in packages} and len(asked) == num + 1


def test_download_keeps_unpacked_files(folder, mirror):
    root, url, asked = mirror
    files, packages, _ = small("mnist")
    publish(root, "mnist")
    first, second, *_ = files
    write(folder, {first: files[first]})
    images.download("mnist", url=url)
    assert listing(folder) == {first} | set(packages) - {f"{first}.gz"}
    write(folder, {second: b"mine"})
    with pytest.raises(ValueError, match=rf"checksum mismatch: {folder}/{second} .*: remove it"):
        images.download("mnist", url=url)
    assert (folder / second).read_bytes() == b"mine"


def test_download_leaves_no_part(folder, mirror):
    root, url, _ = mirror
    publish(root, "mnist")
    package = "train-images-idx3-ubyte.gz"
    whole = (root / package).read_bytes()
    write(
        root,
        {f"short/{package}": whole[:-30], f"wrong/{package}": gzip.compress(b"other", mtime=0), f"page/{package}": b"<html>"},
    )
    for where in ("short", "wrong", "page"):
        with pytest.raises(
            ValueError, match=rf"{url}/{where}/{package} is not what was published, and is not kept: name another"
        ):
            images.download("mnist", url=f"{url}/{where}")
    with pytest.raises(ConnectionError, match=rf"{url}/none/{package} could not be fetched \(HTTP Error 404.*with url="):
        images.download("mnist", url=f"{url}/none/")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ConnectionError, match=rf"{address}/{package} could not be fetched \(.*timed out"):
            images.download("mnist", url=address, timeout=0.1)
    with pytest.raises(ConnectionError, match="could not be fetched"):
        images.download("mnist", url=address, timeout=1.0)  # closed by now
    assert listing(folder) == set()


def test_download_arguments(folder, monkeypatch):
    with pytest.raises(ValueError, match="name must be one of 'mnist', 'fashion_mnist', 'cifar10', got 'digits'"):
        images.download("digits")
    monkeypatch.delenv("GENMOD_DATA")
    with pytest.raises(
        ValueError, match="folder must be given where the environment variable GENMOD_DATA is not set; pass folder"
    ):
        images.download("mnist")


# ---- quantize


@pytest.mark.parametrize("num_bits", range(1, 9))
def test_quantize(num_bits):
    x = np.arange(256, dtype=np.uint8).reshape(2, 8, 16, 1)
    wanted = [math.floor(level * 2**num_bits / 256) for level in range(256)]
    for got in (images.quantize(x, num_bits), jax.jit(images.quantize, static_argnums=1)(x, num_bits)):
        assert got.dtype == jnp.uint8 and got.shape == x.shape
        np.testing.assert_array_equal(np.ravel(got), wanted)
    if num_bits == 1:
        np.testing.assert_array_equal(images.quantize(x, 1), x >= 128)


@pytest.mark.parametrize("dtype", ["float32", "int32", "bool"])
def test_quantize_wants_levels(dtype):
    with pytest.raises(TypeError, match=rf"x must be uint8, levels 0..255, got {dtype}; pass the images"):
        images.quantize(jnp.zeros((2, 3), dtype), 5)


def test_quantize_num_bits():
    for num_bits in (0, 9, -1):
        with pytest.raises(ValueError, match=rf"num_bits must be in 1..8, got {num_bits}"):
            images.quantize(jnp.zeros(3, jnp.uint8), num_bits)
    with pytest.raises(TypeError, match="num_bits must be an integer, got 5.0"):
        images.quantize(jnp.zeros(3, jnp.uint8), 5.0)


# ---- the published files

# Mean and standard deviation of the published training set, in units of 255, and the size of its classes (None: 1/10 each).
MNIST_CLASSES = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
KNOWN = {
    "mnist": ([0.1307], [0.3081], MNIST_CLASSES),
    "fashion_mnist": ([0.2860], [0.3530], None),
    "cifar10": ([0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616], None),
}


@pytest.mark.parametrize("name", KNOWN)
def test_published(name):
    place = pathlib.Path(os.environ.get("GENMOD_DATA", ""))
    if not all(images._locate(place, package, files) for package, files in images._PACKAGES[name].items()):
        pytest.skip(f"GENMOD_DATA is not set, or lacks {name}")
    mean, sd, classes = KNOWN[name]
    d = images.SETS[name]()
    x, labels = np.concatenate([d.train, d.validation]), np.concatenate([d.labels.train, d.labels.validation])
    num = 50_000 if name == "cifar10" else 60_000
    assert len(d.validation) == 5_000 and len(x) == num and len(d.test) == 10_000
    # Moments from the counts of the levels, for want of memory for floats; half a unit of the last digit that is printed.
    for channel, (m, s) in enumerate(zip(mean, sd, strict=True)):
        counts = sum(np.bincount(part[..., channel].ravel(), minlength=256) for part in np.array_split(x, 50))
        counts = counts / counts.sum()
        levels = np.arange(256) / 255
        first = counts @ levels
        assert first == pytest.approx(m, abs=5e-5)
        assert math.sqrt(counts @ np.square(levels - first)) == pytest.approx(s, abs=5e-5)
    np.testing.assert_array_equal(np.bincount(labels), classes or [num // 10] * 10)
    if name != "mnist":
        np.testing.assert_array_equal(np.bincount(d.labels.test), [1_000] * 10)
