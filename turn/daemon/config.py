"""Reads turnd's configuration: a TOML file, flags that override it, and errors that help.

    settings = load(Path("turnd.toml"), flags)

A wrong key or value is told with the file, the line, the key, what was found and what is allowed;
one that came from a flag with the flag.  All errors are told at once.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel, ValidationError

from stun.errors import UsageError
from stun.sansio import Address
from stun.users import StoredKeys
from turn.daemon import settings_values as values
from turn.daemon.settings import DIRECTORY, Settings, allowed_keys
from turn.daemon.toml_lines import Path as KeyPath
from turn.daemon.toml_lines import key_lines
from turn.users.base import redacted

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

PASSWORD_VARIABLE: Final = "TURND_PASSWORD"  # noqa: S105  (its name)
"""Where the password of ``--user NAME`` comes from."""
LARGEST_FILE: Final = 16 << 20
"""Octets of a configuration."""

_TYPES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "a table",
}
_SECRET_KEYS = {"secrets", "users", "password", "key", "nonce_secret"}


class ConfigError(UsageError):
    """The configuration is wrong: one line for each thing, in :attr:`problems`."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


@dataclass(slots=True)
class Flags:
    """What the command line says, in the shape of the file, and which flag said what."""

    table: dict[str, Any] = field(default_factory=dict)
    origins: dict[KeyPath, str] = field(default_factory=dict)
    users: list[str] = field(default_factory=list)
    """Of ``--user``: ``NAME:PASSWORD``, or ``NAME`` whose password is elsewhere."""

    def set(self, path: tuple[str, ...], value: Any, flag: str) -> None:
        """Say ``value`` at ``path``, as ``flag`` did."""
        table = self.table
        for key in path[:-1]:
            table = table.setdefault(key, {})
        table[path[-1]] = value
        self.origins[path] = flag

    def origin(self, path: KeyPath) -> str | None:
        """Return the flag that what is at ``path`` came from."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.origins:
                return self.origins[path[:length]]
        return None


def load(
    path: Path | None = None,
    flags: Flags | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Settings:
    """Read the file at ``path`` and override it with ``flags``.

    A key that a flag names is the flag's alone: ``--listen`` takes the place of every
    ``[[listen]]`` of the file.  Raises :class:`ConfigError`.
    """
    flags = flags or Flags()
    document: dict[str, Any] = {}
    lines: dict[KeyPath, int] = {}
    if path is not None:
        document, lines = _read(path)
    merged = _merge(document, flags.table)
    if flags.users:
        _add_users(merged, flags.users, environment)
    directory = path.parent if path is not None else Path()
    try:
        return Settings.model_validate(merged, context={DIRECTORY: directory})
    except ValidationError as error:
        where = _Where(path, lines, flags, merged)
        wrong = sorted(_chosen(error), key=where.order)
        raise ConfigError(map(where.tell, wrong)) from None


def _read(path: Path) -> tuple[dict[str, Any], dict[KeyPath, int]]:
    try:
        with path.open("rb") as file:
            octets = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise ConfigError([f"{path} cannot be read: {error.strerror}"]) from None
    if len(octets) > LARGEST_FILE:
        raise ConfigError([f"{path} is larger than a configuration can be"])
    try:
        text = octets.decode()
    except UnicodeDecodeError as error:
        line = octets.count(b"\n", 0, error.start) + 1
        raise ConfigError([f"{path}, line {line}: a TOML file is UTF-8, this is not"]) from None
    try:
        return tomllib.loads(text), key_lines(text)
    except tomllib.TOMLDecodeError as error:
        problem, _, place = str(error).rpartition(" (at ")
        place = place.removesuffix(")") if problem else ""
        raise ConfigError([f"{path}, {place or 'TOML'}: {problem or error}"]) from None


def _merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        both = isinstance(value, Mapping) and isinstance(below, Mapping)
        merged[key] = _merge(below, value) if both and below is not None else value
    return merged


def _add_users(
    merged: dict[str, Any], given: Iterable[str], environment: Mapping[str, str]
) -> None:
    auth = dict(merged.get("auth") or {})
    known = auth.get("users")
    known = known if isinstance(known, Mapping) else {}
    users: dict[str, Any] = {}
    for text in given:
        try:
            name, password = values.user_flag(text)
        except ValueError as error:
            raise ConfigError([f"--user {error}"]) from None
        if password is not None:
            users[name] = password
        elif environment.get(PASSWORD_VARIABLE):
            users[name] = environment[PASSWORD_VARIABLE]
        elif name in known:
            users[name] = known[name]
        else:
            raise ConfigError(
                [
                    f"--user {name}: there is no password: give NAME:PASSWORD, set "
                    f"{PASSWORD_VARIABLE}, or write it into [auth] users of the configuration"
                ]
            )
    merged["auth"] = auth | {"users": users}


# Telling what is wrong. ---------------------------------------------------------------------------


def _chosen(error: ValidationError) -> list[ErrorDetails]:
    """Return one error for each place, the innermost.

    A union complains once for each of its members, and a list without its wrong elements is
    complained about for being empty.
    """
    chosen: dict[KeyPath, ErrorDetails] = {}
    for one in error.errors(include_url=False):
        chosen.setdefault(_place(one["loc"]), one)
    around = {at[:length] for at in chosen for length in range(len(at))}
    return [one for at, one in chosen.items() if at not in around]


def _place(loc: tuple[int | str, ...]) -> KeyPath:
    # pydantic puts the names of a union's members, and of validators, into the path.
    return tuple(
        part
        for part in loc
        if not (isinstance(part, str) and (part.startswith(("function-", "literal[", "tuple["))))
    )


@dataclass(slots=True)
class _Where:
    """Says where a wrong value was written."""

    path: Path | None
    lines: Mapping[KeyPath, int]
    flags: Flags
    merged: Mapping[str, Any]

    def tell(self, error: ErrorDetails) -> str:
        at = _place(error["loc"])
        flag = self.flags.origin(at)
        if flag is None and error["type"] == "missing":
            # What makes something else necessary.
            beside = (where for where in self.flags.origins if where[:-1] == at[:-1] != ())
            flag = next((self.flags.origins[where] for where in beside), None)
        if flag is not None:
            start = flag
        else:
            start = str(self.path) if self.path is not None else "configuration"
            line = self._line(at)
            if line is not None:
                start += f", line {line}"
        return f"{start}: {self._problem(at, error, named=flag is not None)}"

    def order(self, error: ErrorDetails) -> int:
        """Return what errors are told in the order of: flags first, then line by line."""
        at = _place(error["loc"])
        return 0 if self.flags.origin(at) is not None else self._line(at) or 0

    def _line(self, at: KeyPath) -> int | None:
        for length in range(len(at), 0, -1):
            if at[:length] in self.lines:
                return self.lines[at[:length]]
        return None

    def _problem(self, at: KeyPath, error: ErrorDetails, *, named: bool) -> str:
        if error["type"] == "extra_forbidden":
            return _unknown_key(at)
        if error["type"] == "missing":
            return f"{_table(at[:-1])} needs {at[-1]}"
        context = error.get("ctx", {})
        if error["type"] in ("value_error", "assertion_error"):
            problem = str(context.get("error", error["msg"]))
        else:
            problem = f"{self._found(at, error['input'])} is wrong: {_wanted(at, error)}"
        return problem if named or not at else f"{_key(at)}: {problem}"

    def _found(self, at: KeyPath, value: Any) -> str:
        if any(part in _SECRET_KEYS for part in at):
            return "the value"
        # Whole tables and lists may have secrets in them.
        if isinstance(value, dict | list | tuple):
            return "a table" if isinstance(value, dict) else "a list"
        return json.dumps(value, default=str)


def _wanted(at: KeyPath, error: ErrorDetails) -> str:
    context = error.get("ctx", {})
    match error["type"]:
        case "literal_error":
            allowed = str(context["expected"]).replace("'", "")
            listed = allowed.replace(" or ", ", ").split(", ")
            return f"allowed: {allowed}{_meant(str(error['input']), listed)}"
        case "int_type" | "int_from_float":
            return "it must be a whole number"
        case "bool_type":
            return "it must be true or false"
        case "string_type":
            return "it must be a text"
        case "greater_than_equal":
            return f"it must be {context['ge']} or more"
        case "less_than_equal":
            return f"it must be {context['le']} or less"
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"it must be a table, {_table(at)}"
        case "tuple_type":
            if allowed_keys(at):
                return f"it must be a list of tables: write [[{_key(at)}]]"
            return "it must be a list, in square brackets"
        case "string_too_short" | "too_short":
            return "it must not be empty"
        case "string_too_long":
            return f"it must have {context['max_length']} characters at most"
        case _:
            return error["msg"][:1].lower() + error["msg"][1:]


def _unknown_key(at: KeyPath) -> str:
    key = str(at[-1])
    allowed = allowed_keys(at[:-1])
    return (
        f"{_table(at[:-1])} has no key {key!r}{_meant(key, allowed)}; allowed: {', '.join(allowed)}"
    )


def _meant(found: str, allowed: Iterable[str]) -> str:
    close = difflib.get_close_matches(found.lower(), list(allowed), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _table(at: KeyPath) -> str:
    if not at:
        return "the configuration"
    keys = ".".join(str(part) for part in at if isinstance(part, str))
    return f"[[{keys}]]" if isinstance(at[-1], int) else f"[{keys}]"


def _key(at: KeyPath) -> str:
    text = ""
    for part in at:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{part}" if text else part
    return text


# Showing it. --------------------------------------------------------------------------------------


def effective(settings: Settings) -> str:
    """Return the whole configuration, defaults included, as TOML with the secrets hidden."""
    return "\n".join(_toml(_shown(settings), ())).strip() + "\n"


def _toml(table: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    for key, value in table.items():
        if not _is_table(value):
            yield f"{_toml_key(key)} = {json.dumps(value)}"
    for key, value in table.items():
        if _is_table(value):
            name = ".".join(map(_toml_key, (*path, key)))
            for one in value if isinstance(value, list) else [value]:
                yield ""
                yield f"[[{name}]]" if isinstance(value, list) else f"[{name}]"
                yield from _toml(one, (*path, key))


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) or (
        isinstance(value, list) and bool(value) and isinstance(value[0], dict)
    )


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key)


def _shown(model: BaseModel) -> dict[str, Any]:
    """Return what a model says as TOML has it: keys without a value (``None``) are left out."""
    shown = {name: _value(getattr(model, name)) for name in type(model).model_fields}
    return {name: value for name, value in shown.items() if value is not None and value != {}}


def _value(value: Any) -> Any:
    match value:
        case None | bool() | int() | float():
            return value
        case BaseModel():
            return _shown(value)
        case StoredKeys():
            return "(hidden keys)"
        case Mapping():
            return {key: _value(inner) for key, inner in value.items()}
        case Address():
            return str(value)
        case (int(low), int(high)):
            return f"{low}-{high}"
        case tuple():
            return [_value(inner) for inner in value]
        case str():
            return redacted(value) if "://" in value else value
        case _:
            return str(value)
