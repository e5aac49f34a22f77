"""Where each key of a TOML document stands: ``tomllib`` gives values without lines.

:func:`key_lines` walks a document that ``tomllib`` has accepted, so it looks for the ends of keys
and values only and never for errors.  It is used to say, about a value that turned out wrong, on
which line it was written.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

Path: TypeAlias = tuple[str | int, ...]
"""The way to a value: keys of tables, indices of arrays (counted from 0)."""

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_BLANK = re.compile(r"(?:[ \t\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_SCALAR = re.compile(r"[^,\]}#\n]*")
_STRING = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}'
    r"|'''.*?'{3,5}"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*'",
    re.DOTALL,
)
_ESCAPE = re.compile(r"\\(?:u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|(.))")
_ESCAPED = {"b": "\b", "t": "\t", "n": "\n", "f": "\f", "r": "\r"}


def key_lines(text: str) -> dict[Path, int]:
    """Return the line, counted from 1, of every table, key and array element of ``text``.

    A table that is only implied (``a`` in ``[a.b]``) stands where it is implied first.
    """
    return _Scanner(text.replace("\r\n", "\n")).scan()


class _Scanner:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        # Lines are counted as the scanner goes forward, never again from the start.
        self._counted_to = 0
        self._line = 1
        self._lines: dict[Path, int] = {}
        self._tables: dict[Path, int] = {}  # how many elements an array of tables has by now

    def scan(self) -> dict[Path, int]:
        table: Path = ()
        while self._skip(_BLANK) < len(self._text):
            if self._text.startswith("[[", self._at):
                table = self._header(2, is_array=True)
            elif self._text[self._at] == "[":
                table = self._header(1, is_array=False)
            else:
                self._pair(table)
        return self._lines

    def _skip(self, pattern: re.Pattern[str]) -> int:
        match = pattern.match(self._text, self._at)
        if match is not None:
            self._at = match.end()
        return self._at

    def _mark(self, path: Path) -> None:
        self._line += self._text.count("\n", self._counted_to, self._at)
        self._counted_to = self._at
        self._lines.setdefault(path, self._line)

    def _header(self, brackets: int, *, is_array: bool) -> Path:
        self._at += brackets
        path: Path = ()
        keys = self._keys()
        for position, key in enumerate(keys):
            path = (*path, key)
            self._mark(path)
            if is_array and position == len(keys) - 1:
                number = self._tables.get(path, 0)
                self._tables[path] = number + 1
                path = (*path, number)
                self._mark(path)
            elif path in self._tables:
                # "[fruits.physical]" after "[[fruits]]" is of the last element.
                path = (*path, self._tables[path] - 1)
        self._at += brackets
        return path

    def _keys(self) -> list[str]:
        keys: list[str] = []
        while True:
            self._skip(_SPACE)
            match = _BARE_KEY.match(self._text, self._at) or _STRING.match(self._text, self._at)
            if match is None:  # not TOML after all: do not go round for ever
                self._at = len(self._text)
                return keys
            self._at = match.end()
            keys.append(_unquoted(match[0]))
            self._skip(_SPACE)
            if not self._text.startswith(".", self._at):
                return keys
            self._at += 1

    def _pair(self, table: Path) -> None:
        path = table
        start = self._at
        keys = self._keys()
        after, self._at = self._at, start
        for key in keys:
            path = (*path, key)
            self._mark(path)
        self._at = after + 1  # the "="
        self._value(path)

    def _value(self, path: Path) -> None:
        self._skip(_SPACE)
        opening = self._text[self._at : self._at + 1]
        if opening == "[":
            self._at += 1
            index = 0
            while self._peek() not in ("]", ""):
                self._mark((*path, index))
                self._element(partial(self._value, (*path, index)))
                index += 1
            self._at += 1
        elif opening == "{":
            self._at += 1
            while self._peek() not in ("}", ""):
                self._element(partial(self._pair, path))
            self._at += 1
        elif opening and opening in "\"'":
            self._skip(_STRING)
        else:
            self._skip(_SCALAR)

    def _peek(self) -> str:
        at = self._skip(_BLANK)
        return self._text[at : at + 1]

    def _element(self, scan: Callable[[], None]) -> None:
        start = self._at
        scan()
        if self._peek() == ",":
            self._at += 1
        if self._at == start:  # not TOML after all, as above
            self._at = len(self._text)


def _unquoted(key: str) -> str:
    if key.startswith("'"):
        return key[1:-1]
    if not key.startswith('"'):
        return key
    return _ESCAPE.sub(
        lambda m: chr(int(m[1] or m[2], 16)) if m[1] or m[2] else _ESCAPED.get(m[3], m[3]),
        key[1:-1],
    )
