"""A document as a value: a title and parts. `markdown` writes it here, `page` (web.py) as one page of HTML that stands alone.

Every string is plain text; what would mean something to Markdown or HTML is escaped. Equal documents, with equal figures, give
equal bytes. What a part cannot be is refused when it is made, so that a document that exists can be written.

    gm.lab.Document("Two moons", (
        gm.lab.Text("Negative log-likelihood of 10,000 test points."),
        gm.lab.Table(("model", "NLL (nats)"), (
            ("nsf", gm.lab.number(0.2948, 0.0031, best=True)),
            ("rbm", gm.lab.Reason("wants bits")),
        )),
    ))
"""

import dataclasses
import math
import numbers
import os
import re
import urllib.parse
from pathlib import Path
from typing import Any

from genmod.lab.tables import with_error

PNG = b"\x89PNG\r\n\x1a\n"


@dataclasses.dataclass(frozen=True)
class Text:
    """Paragraphs; a blank line parts them, and other line breaks are spaces."""

    text: str

    def __post_init__(self):
        _check_text("text", self.text)

    @property
    def paragraphs(self) -> list[str]:
        """Each on one line."""
        return [line for paragraph in re.split(r"\n\s*\n", self.text) if (line := one_line(paragraph))]


@dataclasses.dataclass(frozen=True)
class Heading:
    """The heading of what follows; its level is 2 for a section, 3 for a part of a section, to 6. The title is level 1."""

    text: str
    level: int = 2

    def __post_init__(self):
        _check_text("text", self.text, empty=False)
        if self.level not in range(2, 7):
            raise ValueError(f"level must be an integer from 2 to 6, got {self.level!r}; the title of the document is level 1")


@dataclasses.dataclass(frozen=True)
class Cell:
    """An entry of a table, as text. `value`, finite, is the number that it states, by which a page sorts; `best` is bold."""

    text: str
    value: float | None = None
    best: bool = False

    def __post_init__(self):
        _check_text("text", self.text)
        if not isinstance(self.value, numbers.Real | None):
            raise TypeError(f"value must be a number or None, got {type(self.value).__name__}; float(...) makes one of an array")
        if self.value is not None and not math.isfinite(self.value):
            raise ValueError(f"value must be finite or None, got {self.value}; gm.lab.number makes a cell of it")


@dataclasses.dataclass(frozen=True)
class Reason:
    """Why the rest of a row has no values, in their place: the last entry of the row."""

    text: str

    def __post_init__(self):
        _check_text("text", self.text, empty=False)


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of text and numbers. A column is one of numbers, and aligned right, if a cell of it has a value, or all are empty.

    Attributes:
      columns: their names; the first column names the rows.
      rows: an entry for each column, a string or a Cell; or fewer, the last of them a Reason, which fills the row.
      caption: what stands above; may be empty.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str | Cell | Reason, ...], ...]
    caption: str = ""

    def __post_init__(self):
        _check_text("caption", self.caption)
        if not self.columns:
            raise ValueError("columns must name at least one column, got none")
        for i, name in enumerate(self.columns):
            _check_text(f"columns[{i}]", name)
        for i, row in enumerate(self.rows):
            for j, entry in enumerate(row):
                if not isinstance(entry, str | Cell | Reason):
                    raise TypeError(f"rows[{i}][{j}] must be a str, a Cell or a Reason, got {type(entry).__name__}")
                if isinstance(entry, Reason) and j + 1 < len(row):
                    raise ValueError(f"rows[{i}] must end with its Reason, got {len(row) - j - 1} entries after it")
            short = bool(row) and isinstance(row[-1], Reason) and len(row) < len(self.columns)
            if len(row) != len(self.columns) and not short:
                raise ValueError(
                    f"rows[{i}] must have {len(self.columns)} entries, one for each column, or end with a Reason; got {len(row)}"
                )

    @property
    def numeric(self) -> tuple[bool, ...]:
        """Whether each column is one of numbers."""
        found = []
        for j in range(len(self.columns)):
            entries = [row[j] for row in self.rows if j < len(row)]
            cells = [cell(entry) for entry in entries if not isinstance(entry, Reason)]
            found.append(any(c.value is not None for c in cells) or (bool(cells) and not any(c.text for c in cells)))
        return tuple(found)


@dataclasses.dataclass(frozen=True)
class Figure:
    """A PNG file; `alt` says what it shows to who cannot see it, `caption` stands below and may be empty."""

    path: Path | str
    alt: str
    caption: str = ""

    def __post_init__(self):
        _check_text("alt", self.alt, empty=False)
        _check_text("caption", self.caption)
        if not Path(self.path).is_file():
            raise ValueError(f"path must name a PNG file, got {str(self.path)!r}, which is none; draw the figure first")
        with Path(self.path).open("rb") as file:
            start = file.read(24)
        if len(start) < 24 or not start.startswith(PNG):
            raise ValueError(f"path must name a PNG file, got {str(self.path)!r}, which does not begin as one")


Part = Text | Heading | Table | Figure


@dataclasses.dataclass(frozen=True)
class Document:
    """A title and, in order, the parts below it."""

    title: str
    parts: tuple[Part, ...]

    def __post_init__(self):
        _check_text("title", self.title, empty=False)
        for i, part in enumerate(self.parts):
            if not isinstance(part, Part):
                raise TypeError(f"parts[{i}] must be a Text, a Heading, a Table or a Figure, got {type(part).__name__}")


def markdown(what: Document | Part, folder: Path | str = ".") -> str:
    """A document, or one part, as GitHub-flavoured Markdown without a line break at the end.

    `folder` is where the file will lie: figures are links relative to it.
    """
    match what:
        case Document():
            return "\n\n".join([f"# {_escaped(what.title)}", *(markdown(part, folder) for part in what.parts)])
        case Text():
            return "\n\n".join(map(_paragraph, what.paragraphs))
        case Heading():
            return f"{'#' * what.level} {_escaped(what.text)}"
        case Table():
            return "\n\n".join(filter(None, [_paragraph(what.caption), _table(what)]))
        case Figure():
            link = urllib.parse.quote(Path(os.path.relpath(what.path, folder)).as_posix())
            return "\n\n".join(filter(None, [f"![{_escaped(what.alt)}]({link})", _paragraph(what.caption)]))


def number(value: float, error: float | None = None, form: str = ".4f", *, best: bool = False) -> Cell:
    """The cell of a number, with its standard error where there is one; what is not finite is shown and has no value."""
    text = f"{value:{form}}" if error is None else with_error(value, error, form=form)
    return Cell(text, value if math.isfinite(value) else None, best)


def cell(entry: str | Cell) -> Cell:
    """A string as the cell that it stands for."""
    return Cell(entry) if isinstance(entry, str) else entry


def one_line(text: str) -> str:
    """All white space as single spaces."""
    return " ".join(text.split())


def _check_text(name: str, text: Any, *, empty: bool = True) -> None:
    if not isinstance(text, str):
        raise TypeError(f"{name} must be a str, got {type(text).__name__}")
    if not empty and not text.strip():
        raise ValueError(f"{name} must say something, got {text!r}")


def _table(table: Table) -> str:
    lines = [[_escaped(name) for name in table.columns], ["---:" if right else "---" for right in table.numeric]]
    for row in table.rows:
        lines.append([_entry(entry) for entry in row] + [""] * (len(table.columns) - len(row)))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _entry(entry: str | Cell | Reason) -> str:
    if isinstance(entry, Reason):
        return f"*{_escaped(entry.text)}*"
    text = _escaped(cell(entry).text)
    return f"**{text}**" if text and cell(entry).best else text


# What Markdown would read as more than itself, anywhere in a line: an underscore only at the edge of a word, an ampersand only at
# the head of an entity, a hash only where it could open or close a heading.
_MARKS = re.compile(r"[\\`*\[\]<|~$]|(?<![^\W_])_|_(?![^\W_])|&(?=#?\w+;)|(?<!\S)#")
# And only at the head of a paragraph: a list, a rule or a quotation.
_HEAD = re.compile(r"^(?=[-+](?:[\s-]|$)|>)|^(\d+)(?=[.)](?:\s|$))")


def _escaped(text: str) -> str:
    return _MARKS.sub(r"\\\g<0>", one_line(text))


def _paragraph(text: str) -> str:
    return _HEAD.sub(r"\g<0>\\", _escaped(text))
