"""Where data come from: the folder named by GENMOD_DATA, scikit-learn, compressed files, and tables in .npy, .npz and .csv.

Nothing is ever unpickled, and nothing extracted to disk.
"""

import csv
import gzip
import os
import pathlib
import tarfile
import zipfile
import zlib
from typing import Any

import numpy as np

_WANTED = "a .npy, .npz or .csv table"


def data_folder(wanted: str, fill: str = "") -> pathlib.Path:
    """The folder named by GENMOD_DATA; `wanted` ("the file a.npz is") and `fill` ("fill it with ...") are for the error.

    Raises:
        FileNotFoundError: GENMOD_DATA is not set.
    """
    folder = os.environ.get("GENMOD_DATA")
    if not folder:
        raise FileNotFoundError(
            f"{wanted} wanted from the folder named by the environment variable GENMOD_DATA, which is not set: "
            f"set it to the folder that holds your data{fill and ', and ' + fill}."
        )
    return pathlib.Path(folder)


def data_file(name: str) -> pathlib.Path:
    """The path of a file in the folder named by GENMOD_DATA.

    Raises:
        FileNotFoundError: GENMOD_DATA is not set, or lacks the file.
    """
    folder = data_folder(f"the file {name} is")
    if not (folder / name).is_file():
        raise FileNotFoundError(f"the file {name} is wanted, but GENMOD_DATA={folder} lacks it: put it there.")
    return folder / name


def sklearn_datasets() -> Any:
    """The module sklearn.datasets.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    try:
        import sklearn.datasets  # an optional extra
    except ImportError as error:
        raise ImportError(
            'this data set comes with scikit-learn, which is not installed: pip install "genmod-jax[experiments]".'
        ) from error
    return sklearn.datasets


def unzip(path: pathlib.Path, fix: str = "fetch it again") -> bytes:
    """The bytes of a file, decompressed if it is gzip by its first bytes: some browsers unpack and keep the name.

    Raises:
        ValueError: damaged gzip; the message ends with `fix`.
    """
    content = path.read_bytes()
    if not content.startswith(b"\x1f\x8b"):
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged gzip ({error}): {fix}.") from None


def untar(path: pathlib.Path, files: list[str], fix: str = "fetch it again") -> list[bytes]:
    """The bytes of the regular files of exactly these names in a .tar.gz; nothing is written, whatever else it holds.

    Raises:
        ValueError: a damaged archive, or one without these files; the message ends with `fix`.
    """
    contents: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r|gz") as archive:
            for member in archive:
                if member.name in files and member.isreg() and (file := archive.extractfile(member)):
                    contents[member.name] = file.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path} is a damaged archive ({error}): {fix}.") from None
    if missing := [file for file in files if file not in contents]:
        raise ValueError(f"{path} lacks {', '.join(missing)}: {fix}.")
    return [contents[file] for file in files]


def read(path: pathlib.Path) -> tuple[dict[str, np.ndarray], list[str] | None]:
    """The arrays of a file by name ('' in a .npy or .csv), and the columns of a .csv header.

    Raises:
        TypeError: an array of Python objects.
        ValueError: unknown suffix, a damaged file, or a .csv that is not a number table.
    """
    suffix = path.suffix.lower()
    if suffix == ".csv":
        return _read_csv(path)
    if suffix not in (".npy", ".npz"):
        raise ValueError(f"{path.name} ends in {suffix!r}, but {_WANTED} is wanted: save it as one of these.")
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"": loaded}, None
        with loaded:
            arrays = {name: loaded[name] for name in loaded.files}
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        if "Object arrays" in str(error):
            raise TypeError(
                f"{path.name} holds Python objects, but real floats are wanted: convert it with x.astype(float)."
            ) from None
        raise ValueError(f"{path.name} cannot be read as {_WANTED} ({error}): save it again.") from None
    if not arrays:
        raise ValueError(f"{path.name} is empty, but an array is wanted: save it again.")
    return arrays, None


def _read_csv(path: pathlib.Path) -> tuple[dict[str, np.ndarray], list[str] | None]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [[cell.strip() for cell in row] for row in csv.reader(file) if any(map(str.strip, row))]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path.name} cannot be read as a .csv table ({error}): save it as UTF-8 text.") from None
    if not rows:
        raise ValueError(f"{path.name} is empty, but a table of numbers is wanted: check the file.")
    header = rows.pop(0) if _is_header(rows) else None
    width = len(rows[0]) if header is None and rows else len(header or ())
    for i, row in enumerate(rows):
        if len(row) != width:
            raise ValueError(
                f"{path.name} has {len(row)} cells in row {i} (from 0), but {width} are wanted as in its first row: "
                "check its commas."
            )
    values = np.empty((len(rows), width))
    for i, row in enumerate(rows):
        for j, cell in enumerate(row):
            if (value := _number(cell)) is None:
                name = j if header is None else repr(header[j])
                raise ValueError(
                    f"column {name} of {path.name} is not numeric (row {i} has {cell!r}): drop the column or encode "
                    "it as numbers."
                )
            values[i, j] = value
    if rows and all(_is_integer(cell) for row in rows for cell in row):
        values = values.astype(np.int64)
    return {"": values}, header


def _is_header(rows: list[list[str]]) -> bool:
    """No cell of the first row is a number: a row with some is data with a bad cell, and must not be dropped."""
    return all(_number(cell) is None for cell in rows[0])


def _number(cell: str) -> float | None:
    """The value of a cell, nan where it is empty, None where it is text."""
    if not cell:
        return float("nan")
    try:
        return float(cell)
    except ValueError:
        return None


def _is_integer(cell: str) -> bool:
    return cell.lstrip("+-").isdigit()
