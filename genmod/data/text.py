"""Text by characters: strings of any length, each an event, and one long stream, cut into windows.

    data = gm.data.names()                    # .train .validation .test, (n, 16) tokens; .event; .encode(["emma"]) .decode(rows)
    data = gm.data.strings(my_lines)          # the same of your own
    data = gm.data.tiny_shakespeare()         # .train .validation, (N,) tokens of one text
    data = gm.data.character_stream(my_text)  # the same of your own
    fit(model, data.windows(65, 12), ...)     # random windows of 65 characters, 12 at a time

In strings token 0 is the end, and character i of the alphabet is token i + 1; in a stream, which has no end, it is token i.
"""

import dataclasses
import hashlib
import os
from collections.abc import Iterable, Sequence
from typing import Any, Self

import numpy as np

from genmod.core.checks import check_count
from genmod.core.event import Levels, Tokens
from genmod.data.dataset import split
from genmod.data.files import data_file, unzip

_SHA256 = {
    "text/names.txt.gz": "0a30b5557f192f32ab962680889aac5f6fda0f4cecf40a6d0b5694f58ea8cc4d",
    "text/tinyshakespeare.txt.gz": "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Strings:
    """Strings as rows of tokens, (n, max_length) integers.

    Attributes:
      name: of the set. alphabet: its characters; the first is token 1.
      event: `Tokens`, whose end is 0.
      train, validation, test: the rows.
    """

    name: str
    alphabet: str
    event: Tokens
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray

    def encode(self, strings: Sequence[str]) -> np.ndarray:
        """Rows of tokens, (n, max_length); raises as `strings`, and ValueError for strings that are too long."""
        if isinstance(strings, str):
            raise TypeError(f"strings must be a sequence of them, got one string: write [{strings!r}]")
        return _rows(strings, self.alphabet, self.event.max_length)

    def decode(self, tokens: Any) -> list[str]:
        """The strings of rows of tokens, (n, T), up to their end; raises ValueError for other shapes and tokens."""
        rows = _checked(tokens, 2, len(self.alphabet) + 1)
        symbols = "\0" + self.alphabet
        return ["".join(symbols[t] for t in row[np.cumsum(row == self.event.end) == 0]) for row in rows]

    def __repr__(self) -> str:
        sizes = ", ".join(f"{part}={getattr(self, part).shape}" for part in ("train", "validation", "test"))
        return f"Strings({self.name!r}, alphabet={self.alphabet!r}, {sizes})"


def strings(lines: Iterable[str], *, name: str = "strings", alphabet: str | None = None, seed: int = 0) -> Strings:
    """A data set of strings, shuffled with `seed` and cut 80/10/10.

        data = gm.data.strings(pathlib.Path("my.txt").read_text().splitlines())

    Args:
      lines: the strings. name: of the set. alphabet: all characters; None: those that occur, sorted. seed: of the shuffle.

    Raises TypeError for what is no text, ValueError for empty strings, fewer than three, and characters outside of the alphabet.
    """
    lines = [lines] if isinstance(lines, str) else list(lines)
    for i, line in enumerate(lines):
        if not isinstance(line, str):
            raise TypeError(f"lines must be strings, got {type(line).__name__} at {i}")
    alphabet = "".join(sorted(set("".join(lines)))) if alphabet is None else alphabet
    length = max((len(line) for line in lines), default=0) + 1
    rows = _rows(lines, alphabet, length)
    return Strings(name, alphabet, Tokens(length, len(alphabet) + 1), *split(rows, seed=seed))


def names(seed: int = 0) -> Strings:
    """32,033 lower-case first names of US social security, of at most 15 letters (Karpathy's makemore); shuffled, 80/10/10.

    Some names occur more than once, also in two parts. Read from text/names.txt.gz, or names.txt, in the folder GENMOD_DATA.

    Raises:
        FileNotFoundError: GENMOD_DATA is not set, or lacks the file.
        ValueError: the text is not the published one.
    """
    return strings(_published("text/names.txt.gz").split(), name="names", seed=seed)


@dataclasses.dataclass(frozen=True, eq=False)
class CharacterStream:
    """One long text as tokens; its first part is for training, its last for validation.

    Attributes:
      name: of the text. alphabet: its characters; the first is token 0.
      train, validation: the tokens, (N,) and (M,).
    """

    name: str
    alphabet: str
    train: np.ndarray
    validation: np.ndarray

    def event(self, length: int) -> Levels:
        """What a window of `length` characters is."""
        return Levels((length,), len(self.alphabet))

    def windows(self, length: int, batch_size: int, seed: int = 0) -> "RandomWindows":
        """Batches (batch_size, length) without end, of windows that begin anywhere in `train`, for `fit`."""
        return RandomWindows(self.train, length, batch_size, seed)

    def validation_windows(self, length: int, overlap: int = 0) -> np.ndarray:
        """`validation` in windows, (n, length), each beginning with the last `overlap` characters of the one before.

        With an overlap of 1, the steps from the second on are every character after the first, once.
        """
        return consecutive_windows(self.validation, length, overlap)

    def encode(self, text: str) -> np.ndarray:
        """The tokens of a text, (n,); raises ValueError for characters outside of the alphabet."""
        return _tokens(text, self.alphabet)

    def decode(self, tokens: Any) -> str:
        """The text of tokens, (n,); raises ValueError for other shapes and tokens."""
        return "".join(self.alphabet[t] for t in _checked(tokens, 1, len(self.alphabet)))

    def __repr__(self) -> str:
        sizes = f"train={self.train.shape}, validation={self.validation.shape}"
        return f"CharacterStream({self.name!r}, {len(self.alphabet)} characters, {sizes})"


def character_stream(
    text: str, *, name: str = "text", alphabet: str | None = None, validation_fraction: float = 0.1
) -> CharacterStream:
    """A text as one stream of characters, whose last part is for validation.

    Args:
      text: at least two characters. name: of it. alphabet: all characters; None: those that occur, sorted.
      validation_fraction: how much of the text is for validation.

    Raises TypeError for what is no text, ValueError for one that is too short, for characters outside of the alphabet, and for a
    fraction that is not between 0 and 1.
    """
    if not isinstance(text, str):
        raise TypeError(f"text must be a string, got {type(text).__name__}")
    if not 0 < validation_fraction < 1:
        raise ValueError(f"validation_fraction must be between 0 and 1, got {validation_fraction}")
    alphabet = "".join(sorted(set(text))) if alphabet is None else alphabet
    tokens, num_train = _tokens(text, alphabet), int(len(text) * (1 - validation_fraction) + 1e-9)
    if not 0 < num_train < len(text):
        raise ValueError(f"text must be long enough for two parts, got {len(text)} characters")
    return CharacterStream(name, alphabet, tokens[:num_train], tokens[num_train:])


def tiny_shakespeare() -> CharacterStream:
    """1,115,394 characters of Shakespeare, 65 of them different: the first 90 % to train, the last 10 % for validation.

    The text of Karpathy's char-rnn and the split of his nanoGPT. Read from text/tinyshakespeare.txt.gz, or tinyshakespeare.txt,
    in the folder GENMOD_DATA.

    Raises:
        FileNotFoundError: GENMOD_DATA is not set, or lacks the file.
        ValueError: the text is not the published one.
    """
    return character_stream(_published("text/tinyshakespeare.txt.gz"), name="tiny_shakespeare")


class RandomWindows:
    """An iterator of batches (batch_size, length) of windows of a stream. Batch i is a function of the seed and i alone."""

    def __init__(self, tokens: Any, length: int, batch_size: int, seed: int = 0):
        check_count(length=length, batch_size=batch_size)
        self._tokens, self._shape, self._seed, self._num = np.asarray(tokens), (batch_size, length), seed, 0
        if self._tokens.ndim != 1 or len(self._tokens) < length:
            raise ValueError(f"a window of {length} wants a stream of at least as many tokens, got shape {self._tokens.shape}")

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> np.ndarray:
        size, length = self._shape
        starts = np.random.default_rng([self._seed, self._num]).integers(0, len(self._tokens) - length + 1, size)
        self._num += 1
        return self._tokens[starts[:, None] + np.arange(length)[None]]

    def get_state(self) -> dict[str, int]:
        """How many batches it has given."""
        return {"num_batches": self._num}

    def set_state(self, state: dict[str, int]) -> None:
        """Goes to where `get_state` was called."""
        self._num = state["num_batches"]


def consecutive_windows(tokens: Any, length: int, overlap: int = 0) -> np.ndarray:
    """A stream, (N,), in windows, (n, length), each beginning with the last `overlap` of the one before; the rest is left out.

    Raises ValueError for an overlap that is not in 0 .. length - 1, and for a stream shorter than a window.
    """
    tokens = np.asarray(tokens)
    check_count(length=length)
    if not 0 <= overlap < length:
        raise ValueError(f"overlap must be in 0..{length - 1}, got {overlap}")
    if tokens.ndim != 1 or len(tokens) < length:
        raise ValueError(f"a window of {length} wants a stream of at least as many tokens, got shape {tokens.shape}")
    starts = np.arange(0, len(tokens) - length + 1, length - overlap)
    return tokens[starts[:, None] + np.arange(length)[None]]


def _published(name: str) -> str:
    """The text of a file of GENMOD_DATA, packed or plain, if it is the published one."""
    plain, folder = name.removesuffix(".gz"), os.environ.get("GENMOD_DATA", "")
    path = data_file(plain if folder and os.path.isfile(os.path.join(folder, plain)) else name)
    content = unzip(path)
    if (got := hashlib.sha256(content).hexdigest()) != _SHA256[name]:
        raise ValueError(
            f"checksum mismatch: the text in {path} has SHA-256 {got}, but the published one has {_SHA256[name]}: "
            "remove the file and fetch it again."
        )
    return content.decode()


def _rows(lines: Sequence[str], alphabet: str, length: int) -> np.ndarray:
    """Rows of tokens that end with, and are padded by, 0."""
    rows = np.zeros((len(lines), length), np.int32)
    for i, line in enumerate(lines):
        if not line:
            raise ValueError(f"string {i} is empty; leave empty strings out")
        if len(line) > length:
            raise ValueError(f"string {i} must have at most {length} characters, got {len(line)}")
        rows[i, : len(line)] = _tokens(line, alphabet) + 1
    return rows


def _checked(tokens: Any, rank: int, num: int) -> np.ndarray:
    """Tokens 0 .. num - 1 in an array of `rank` axes."""
    tokens = np.asarray(tokens)
    if tokens.ndim != rank:
        raise ValueError(f"tokens must have {rank} ax{'i' if rank == 1 else 'e'}s, got shape {tokens.shape}")
    if tokens.size and not (np.issubdtype(tokens.dtype, np.integer) and tokens.min() >= 0 and tokens.max() < num):
        raise ValueError(f"tokens must be integers in 0..{num - 1}, got {tokens.dtype} from {tokens.min()} to {tokens.max()}")
    return tokens


def _tokens(text: str, alphabet: str) -> np.ndarray:
    numbers = {character: i for i, character in enumerate(alphabet)}
    if len(numbers) != len(alphabet):
        raise ValueError(f"alphabet must hold each character once, got {alphabet!r}")
    if missing := sorted(set(text) - set(numbers)):
        raise ValueError(f"the text holds {missing[0]!r}, which is not in the alphabet {alphabet!r}")
    return np.fromiter((numbers[character] for character in text), np.int32, len(text))
