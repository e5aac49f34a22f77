"""Codes: what two people tell each other so that their programs meet, and nobody else does.

A code is ``NAME-SECRET``.  The name is where the two meet and is known to the server; the secret
never leaves this program (:mod:`ice.rendezvous.pairing` proves that it is the same one).  There are
two kinds:

* *made* codes, ``7-acorn-violin-harbor``: a name of digits, which only the server gives out and
  which is good once, and words of :data:`ice.rendezvous.words.WORDS`.  Three words are 24 bits:
  with one guess for each code that is made, one in 16.7 million;
* *given* codes, ``printer.upstairs-correct horse battery``: a name with a letter, a dot or an
  underscore in it, and a secret of at least :data:`SHORTEST_SECRET` characters.  It may be used
  again and again, and then gives whoever guesses a guess each time.

Codes are read out, typed and pasted, so how they are written is made one before they are compared:
NFKC and case folding, blanks and every kind of dash are ``-``.  A made code is checked against the
words before anything is sent, because a mistyped one would cost the one attempt that it is good
for.
"""

from __future__ import annotations

import difflib
import unicodedata
from dataclasses import dataclass, field
from typing import Final

from ice.rendezvous.protocol import is_name, is_one_time
from ice.rendezvous.words import WORDS
from stun.errors import UsageError
from stun.sansio import Entropy

MADE_WORDS: Final = 3
MOST_WORDS: Final = 8
SHORTEST_SECRET: Final = 6
"""Characters of a given secret."""
LONGEST_SECRET: Final = 256

_EXAMPLE: Final = "such as 7-acorn-violin-harbor"
_MINUS: Final = "\u2212"
_KNOWN: Final = frozenset(WORDS)


@dataclass(frozen=True, slots=True)
class Code:
    """Where to meet, and what only the two have: ``str()`` has all of it, ``repr()`` the name."""

    name: str
    secret: str = field(repr=False)

    def __str__(self) -> str:
        return f"{self.name}-{self.secret}"


def make_secret(entropy: Entropy, words: int = MADE_WORDS) -> str:
    """Return the secret of a new code, whose name the server is going to give out."""
    if not MADE_WORDS <= words <= MOST_WORDS:
        raise UsageError(f"a code is made of {MADE_WORDS} to {MOST_WORDS} words, not of {words}")
    return "-".join(WORDS[octet] for octet in entropy(words))


def parse(text: str) -> Code:
    """Read a code as a person has typed it.

    Raises :class:`stun.errors.UsageError`, which says what is wrong and never repeats the secret,
    but for a word that no code has.
    """
    name, dash, secret = _one_form(text).partition("-")
    if not dash or not name or not secret:
        raise UsageError(f"a code is a name, a dash and a secret, {_EXAMPLE}")
    if not is_name(name):
        raise UsageError(
            "the name of a code, what stands before its first dash, has 1 to 64 characters, each a "
            "letter a to z, a digit, a dot or an underscore"
        )
    words = [name, *secret.split("-")]
    if len(words) == MADE_WORDS and _KNOWN.issuperset(words):
        raise UsageError(
            f"the number before the words of the code is missing, {_EXAMPLE} (to choose a code "
            "yourself, choose other words)"
        )
    if is_one_time(name):
        _check_words(secret.split("-"))
    elif len(secret) < SHORTEST_SECRET:
        raise UsageError(
            f"the secret of a code, what stands after its first dash, needs {SHORTEST_SECRET} or "
            f"more characters, this one has {len(secret)}: whoever guesses it is taken for the peer"
        )
    elif len(secret) > LONGEST_SECRET:
        raise UsageError(f"the secret of a code has at most {LONGEST_SECRET} characters")
    return Code(name, secret)


def _one_form(text: str) -> str:
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    spaced = "".join(
        " " if one == _MINUS or unicodedata.category(one) == "Pd" else one for one in folded
    )
    parts = spaced.split()
    if not all(part.isprintable() for part in parts):
        raise UsageError("a code has no control characters in it")
    return "-".join(parts)


def _check_words(words: list[str]) -> None:
    for word in words:
        if word not in _KNOWN:
            near = difflib.get_close_matches(word, WORDS, 1)
            raise UsageError(
                f'no code has the word "{word[:32]}" in it'
                + (f': did you mean "{near[0]}"?' if near else "")
                + " (a name of digits alone comes from the server; to choose a code yourself, "
                "choose a name with a letter in it)"
            )
    if not MADE_WORDS <= len(words) <= MOST_WORDS:
        count = "one word" if len(words) == 1 else f"{len(words)} words"
        raise UsageError(f"a code has {MADE_WORDS} words after its number, {_EXAMPLE}, not {count}")
