"""Where data come from: the folder named by GENMOD_DATA, scikit-learn, compressed files, and tables in .npy, .npz and .csv.

Nothing is ever unpickled, and nothing extracted to disk.
"""

import csv
import datetime
import gzip
import os
import pathlib
import tarfile
import zipfile
import zlib
from typing import Any

import numpy as np

from genmod.core.arrays import Column, ColumnKind, join_real, refusal

_WANTED = "a .npy, .npz or .csv table"
_MISSING = frozenset(("", "na", "n/a", "<na>", "nan", "nat", "null", "none"))


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
    """The arrays of a file by name ('' in a .npy or .csv), and the names of the columns of a .csv.

    Raises:
        TypeError: an array of Python objects, or a column of a .csv that does not hold real numbers.
        ValueError: unknown suffix, a damaged file, or missing values in a .csv.
    """
    suffix = path.suffix.lower()
    if suffix == ".csv":
        return _read_csv(path)
    if suffix not in (".npy", ".npz"):
        raise ValueError(f"{path.name} must be {_WANTED}, got the suffix {suffix!r}; save it as one of these")
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"": loaded}, None
        with loaded:
            arrays = {name: loaded[name] for name in loaded.files}
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        if "Object arrays" in str(error):
            raise refusal(path.name, ColumnKind.OBJECTS) from None
        raise ValueError(f"{path.name} cannot be read as {_WANTED} ({error}); save it again") from None
    if not arrays:
        raise ValueError(f"{path.name} must hold an array, got an empty file; save it again")
    return arrays, None


def _read_csv(path: pathlib.Path) -> tuple[dict[str, np.ndarray], list[str] | None]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [[cell.strip() for cell in row] for row in csv.reader(file) if any(map(str.strip, row))]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path.name} cannot be read as a .csv table ({error}); save it as UTF-8 text") from None
    if not rows:
        raise ValueError(f"{path.name} must hold a table of numbers, got an empty file")
    header = rows.pop(0) if _is_header(rows) else None
    width = len(rows[0]) if header is None and rows else len(header or ())
    for i, row in enumerate(rows):
        if len(row) != width:
            raise ValueError(
                f"{path.name} must have {width} cells in every row, as in its first, got {len(row)} in row {i} (from 0); "
                "check its commas"
            )
    names = [str(j) if header is None else repr(header[j]) for j in range(width)]
    if not rows:
        return {"": np.empty((0, width))}, names
    return {"": join_real(path.name, [_column(name, [row[j] for row in rows]) for j, name in enumerate(names)])}, names


def _column(name: str, cells: list[str]) -> Column:
    """What the cells of a column are, and their values where they are numbers."""
    present = [i for i, cell in enumerate(cells) if cell.lower() not in _MISSING]
    kind = next((kind for kind, fits in _FORMS if all(fits(cells[i]) for i in present)), ColumnKind.TEXT)
    values = np.array([_number(cell) for cell in cells], float)
    odd = next((i for i in present if _number(cells[i]) is None), None)
    return Column(name, kind, values, len(cells) - len(present), "" if odd is None else f"{cells[odd]!r} in row {odd}")


def _is_header(rows: list[list[str]]) -> bool:
    """Some cell of the first row is text and none is a number: a row with some is data with a bad cell, not to be dropped.

    An empty cell is no number: pandas leaves the name of its index out.
    """
    return any(rows[0]) and all(not cell or _number(cell) is None for cell in rows[0])


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


def _is_date(cell: str) -> bool:
    try:
        datetime.datetime.fromisoformat(cell)
    except ValueError:
        return False
    return True


# What a column holds is the first of these that all its cells are, else text.
_FORMS = (
    (ColumnKind.INTEGERS, _is_integer),
    (ColumnKind.REAL, lambda cell: _number(cell) is not None),
    (ColumnKind.BOOLEANS, lambda cell: cell.lower() in ("true", "false")),
    (ColumnKind.DATES, _is_date),
)
