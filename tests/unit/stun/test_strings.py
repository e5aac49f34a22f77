"""String preparation where the vectors have nothing to say."""

import subprocess
import sys

import pytest

from stun.errors import UsageError
from stun.strings import StringError, opaque_string, saslprep


def test_printable_ascii_is_left_alone():
    text = "".join(map(chr, range(0x20, 0x7F)))
    assert opaque_string(text) == saslprep(text) == text


@pytest.mark.parametrize("control", [*map(chr, range(0x20)), "\x7f"])
def test_controls_are_refused(control):
    with pytest.raises(StringError):
        opaque_string(f"a{control}b")
    with pytest.raises(StringError):
        saslprep(f"a{control}b")


def test_non_ascii_spaces_become_spaces():
    assert opaque_string("a\u00a0b") == saslprep("a\u00a0b") == "a b"


def test_what_saslprep_maps_to_nothing():
    assert saslprep("\u00ad\u200b\ufeff") == ""


def test_where_the_two_profiles_differ():
    assert (saslprep("\u2168"), opaque_string("\u2168")) == ("IX", "\u2168")
    assert saslprep("a\u00adb") == "ab"
    with pytest.raises(StringError):
        opaque_string("a\u00adb")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("\ue000", "private"),
        ("\U0010fffe", "non-character"),
        ("\ufffd", "plain text"),
        ("\u2ff0", "canonical"),
        ("\u200e", "display"),
        ("\U000e0001", "tagging"),
        ("\u0627a\u0627", "left-to-right"),
        ("\u06271", "begin and end"),
    ],
)
def test_what_saslprep_prohibits(text, word):
    with pytest.raises(StringError, match=word):
        saslprep(text)


def test_lone_surrogates_are_refused():
    for prepare in (saslprep, opaque_string):
        with pytest.raises(StringError):
            prepare("\ud800")


def test_younger_characters_than_unicode_3_2():
    # A client asks, it does not store: RFC 3454 section 7 lets unassigned code points through.
    assert saslprep("\U0001f600") == "\U0001f600"


def test_it_is_the_callers_fault():
    assert issubclass(StringError, UsageError)


def test_ascii_does_not_load_the_tables_of_unicode():
    program = (
        "import sys; from stun.strings import opaque_string; opaque_string('plain');"
        "sys.exit('precis_i18n' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
