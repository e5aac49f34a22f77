"""Preparing usernames, realms and passwords, so that two machines derive the same key.

RFC 8489 prepares them with the OpaqueString profile (RFC 8265 section 4.2), RFC 5389 with SASLprep
(RFC 4013).  The two agree on printable ASCII and on most of what people type, and differ where
SASLprep maps: U+00AD is removed by SASLprep and forbidden by OpaqueString; U+00AA and U+2168 become
"a" and "IX" by SASLprep and stay themselves by OpaqueString.  So the same password can give two
keys, and :mod:`stun.credentials` says which is used with whom.  RFC 8489 appendix B.1 claims that
OpaqueString gives "TheMatrIX" for its password; that is the output of SASLprep.
"""

from __future__ import annotations

import stringprep
import unicodedata

from stun.errors import UsageError

_EXTRA_PROHIBITED = (
    # RFC 4013 section 2.3, in its order; C.1.2 is mapped to a space before and cannot occur.
    ("a non-ASCII space", stringprep.in_table_c12),
    ("a control character", stringprep.in_table_c21_c22),
    ("a private-use character", stringprep.in_table_c3),
    ("a non-character", stringprep.in_table_c4),
    ("a surrogate", stringprep.in_table_c5),
    ("inappropriate for plain text", stringprep.in_table_c6),
    ("inappropriate for canonical representation", stringprep.in_table_c7),
    ("a character that changes the display", stringprep.in_table_c8),
    ("a tagging character", stringprep.in_table_c9),
)


class StringError(UsageError):
    """A username, realm or password holds what its profile does not allow."""


def _printable_ascii(text: str) -> bool:
    return text.isascii() and text.isprintable()


def opaque_string(text: str) -> str:
    """Prepare ``text`` with the OpaqueString profile of RFC 8265 section 4.2 (RFC 8489).

    Raises :class:`StringError` for the empty string and for what the profile does not allow.
    """
    if not text:
        raise StringError("an empty string is not an OpaqueString (RFC 8265 section 4.2.2)")
    if _printable_ascii(text):
        # Every rule of the profile is the identity on these, and loading the tables of Unicode
        # takes longer than a STUN transaction.
        return text
    from precis_i18n import get_profile

    try:
        prepared: str = get_profile("OpaqueString").enforce(text)
    except UnicodeEncodeError as error:
        raise StringError(f"not an OpaqueString (RFC 8265): {error.reason}") from None
    return prepared


def saslprep(text: str) -> str:
    """Prepare ``text`` with SASLprep (RFC 4013), as RFC 5389 asks for.

    Unassigned code points are let through, as for a query (RFC 3454 section 7): the tables are of
    Unicode 3.2, and a client must not refuse a password because it is younger than they are.
    Raises :class:`StringError` for what the profile does not allow.
    """
    if _printable_ascii(text):
        return text
    # Section 2.1: non-ASCII spaces become U+0020, "commonly mapped to nothing" disappears.
    mapped = "".join(
        " " if stringprep.in_table_c12(char) else char
        for char in text
        if not stringprep.in_table_b1(char)
    )
    # Section 2.2: form KC, of the Unicode version that the tables belong to.
    prepared = unicodedata.ucd_3_2_0.normalize("NFKC", mapped)
    for char in prepared:
        for what, prohibited in _EXTRA_PROHIBITED:
            if prohibited(char):
                raise StringError(f"SASLprep (RFC 4013) prohibits U+{ord(char):04X}: {what}")
    _check_direction(prepared)
    return prepared


def _check_direction(text: str) -> None:
    """Hold the rule for bidirectional text, RFC 3454 section 6."""
    if not any(map(stringprep.in_table_d1, text)):
        return
    if any(map(stringprep.in_table_d2, text)):
        raise StringError("SASLprep (RFC 4013) does not allow left-to-right with right-to-left")
    if not (stringprep.in_table_d1(text[0]) and stringprep.in_table_d1(text[-1])):
        raise StringError("SASLprep (RFC 4013): right-to-left text must begin and end as such")
