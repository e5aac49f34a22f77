"""What halls say to each other when two clients meet who are not in the same process.

Theory of operation.  A client that has claimed a name under which another one waits *knocks* there;
the hall of the one who waits *answers*, and from then on both *pass* messages, until a *farewell*.
Each letter names the member it is for and the one it is from.  Whatever carries letters may lose
some but reorders none, so those of a pair are numbered: a gap ends the pair, for what is missing
cannot be had again.

Members of one hall use the same letters; then nothing carries them.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from ice.rendezvous.names import Member
from ice.rendezvous.protocol import MAX_DATA, MAX_HELLO, MAX_TEXT, GoneReason

MAX_LETTER: Final = MAX_TEXT + 1024
"""Octets of an encoded letter."""


@dataclass(frozen=True, slots=True)
class Knock:
    """``sender`` has claimed the name under which ``to`` waits."""

    to: Member
    sender: Member
    hello: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Answer:
    """``sender`` has waited for whoever knocks: the two are a pair."""

    to: Member
    sender: Member
    hello: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Pass:
    """Something to hand over; ``number`` counts from 0 in each direction."""

    to: Member
    sender: Member
    number: int
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Farewell:
    """``sender`` is no longer, or never was, who ``to`` is a pair with."""

    to: Member
    sender: Member
    reason: GoneReason


@dataclass(frozen=True, slots=True)
class Nudge:
    """Somebody wants the name of ``to``: find out whether it is still there."""

    to: Member
    sender: Member


Letter: TypeAlias = Knock | Answer | Pass | Farewell | Nudge

_KINDS: Final[dict[type[Letter], str]] = {
    Knock: "knock",
    Answer: "answer",
    Pass: "pass",
    Farewell: "farewell",
    Nudge: "nudge",
}


def encode_letter(letter: Letter) -> bytes:
    """Return a letter as it is carried: JSON."""
    found: dict[str, Any] = {
        "kind": _KINDS[type(letter)],
        "to": str(letter.to),
        "from": str(letter.sender),
    }
    match letter:
        case Knock() | Answer():
            found["octets"] = base64.b64encode(letter.hello).decode()
        case Pass():
            found["number"] = letter.number
            found["octets"] = base64.b64encode(letter.data).decode()
        case Farewell():
            found["reason"] = letter.reason.value
        case Nudge():
            pass
    return json.dumps(found, separators=(",", ":")).encode()


def decode_letter(octets: bytes) -> Letter:
    """Read a letter.  Raises ``ValueError`` for what is none."""
    if len(octets) > MAX_LETTER:
        raise ValueError("longer than a letter may be")
    try:
        found = json.loads(octets)
        kind, to, sender = found["kind"], Member.parse(found["to"]), Member.parse(found["from"])
        match kind:
            case "knock":
                return Knock(to, sender, _octets(found, MAX_HELLO))
            case "answer":
                return Answer(to, sender, _octets(found, MAX_HELLO))
            case "pass":
                number = found["number"]
                if type(number) is not int or number < 0:
                    raise ValueError("no number")
                return Pass(to, sender, number, _octets(found, MAX_DATA))
            case "farewell":
                return Farewell(to, sender, GoneReason(found["reason"]))
            case "nudge":
                return Nudge(to, sender)
    except (KeyError, TypeError, AttributeError, RecursionError, binascii.Error) as error:
        raise ValueError(f"no letter: {error!r}") from None
    raise ValueError(f"no letter: of the kind {str(kind)[:32]!r}")


def _octets(found: dict[str, Any], most: int) -> bytes:
    octets = base64.b64decode(found["octets"], validate=True)
    if len(octets) > most:
        raise ValueError("longer than it may be")
    return octets
