"""Text files by line or by chunk, in UTF-8 or in what a byte order mark tells."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path

from matta_cli.errors import MattaError
from matta_cli.files.reading import refuse_pointer

# the mark of UTF-32 begins with that of UTF-16
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def encoding(path: Path) -> str:
    """The encoding that a file's byte order mark tells; without one, UTF-8."""
    refuse_pointer(path)
    with path.open("rb") as file:
        start = file.read(4)
    return next((name for mark, name in _MARKS if start.startswith(mark)), "utf-8")


def lines(path: Path, newline: str | None = None) -> Iterator[str]:
    """The lines of a text file, with their ends, which are ``\\n`` unless ``newline`` is empty.

    Raises ``MattaError`` where the file cannot be read, is no text, or holds NUL bytes.
    """
    number = 0
    try:
        with path.open(encoding=encoding(path), newline=newline) as file:
            for number, line in enumerate(file, 1):
                if "\0" in line:
                    raise _nul(path, number)
                yield line
    except UnicodeError:
        raise not_text(path, number + 1) from None
    except OSError as error:
        raise MattaError(f"{str(path)!r} cannot be read: {error.strerror or error}.") from None


def chunks(path: Path, size: int) -> Iterator[str]:
    """A text file in chunks of ``size`` characters. Raises ``MattaError`` as ``lines`` does."""
    number = 1
    try:
        with path.open(encoding=encoding(path)) as file:
            while chunk := file.read(size):
                if "\0" in chunk:
                    raise _nul(path, number + chunk[: chunk.index("\0")].count("\n"))
                number += chunk.count("\n")
                yield chunk
    except UnicodeError:
        raise not_text(path, number) from None
    except OSError as error:
        raise MattaError(f"{str(path)!r} cannot be read: {error.strerror or error}.") from None


def plain(text: str) -> str:
    """A text without its case and the kind of its blanks, by which copies are known."""
    return " ".join(text.split()).casefold()


def not_text(path: Path, number: int) -> MattaError:
    """The error for a file with bytes that are no text, in a line of this number or after it."""
    wrong = f"{str(path)!r} is not a text file in UTF-8 (in line {number:,} or after it)"
    return MattaError(f"{wrong}: save it as UTF-8.")


def _nul(path: Path, number: int) -> MattaError:
    kind = "it is binary, or UTF-16 without a byte order mark"
    return MattaError(
        f"{str(path)!r} holds a NUL byte in line {number:,}: {kind}; save it as UTF-8."
    )
