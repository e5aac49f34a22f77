"""Lines of keys: every path that tomllib sees has the line on which it was written."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from turn.daemon.toml_lines import Path, key_lines

DOCUMENT = '''\
realm = "example.org"   # [not.a.table]
quoted."key with = and ]" = 'x'

[[listen]]
url = "udp://0.0.0.0"
[[listen]]
url = """
a # "quoted" \\""" text
"""
[listen.more]
deep.er = 1

[relay]
addresses = [
  "10.0.0.1", # one
  # two
  "10.0.0.2",
]
[auth]
users = { alice = "a,}]", bob = { md5 = "0", sha256 = "1" } }
secrets = [ { file = "x" }, "y",
  { env = "z" } ]
when = 1979-05-27T07:32:00Z
'''


def paths(value: Any, path: Path = ()) -> Iterator[Path]:
    if path:
        yield path
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield from paths(inner, (*path, key))


def test_every_path_has_its_line() -> None:
    lines = key_lines(DOCUMENT)
    assert set(lines) == set(paths(tomllib.loads(DOCUMENT)))
    assert lines["realm",] == 1
    assert lines["quoted", "key with = and ]"] == 2
    assert lines["listen",] == lines["listen", 0] == 4
    assert lines["listen", 1, "url"] == 7
    assert lines["listen", 1, "more", "deep", "er"] == 11
    assert lines["relay", "addresses"] == 14
    assert lines["relay", "addresses", 0] == 15
    assert lines["relay", "addresses", 1] == 17
    assert lines["auth", "users", "bob", "sha256"] == 20
    assert lines["auth", "secrets", 1] == 21
    assert lines["auth", "secrets", 2, "env"] == 22
    assert lines["auth", "when"] == 23


def test_dos_line_ends_and_escapes_in_keys() -> None:
    text = '"a\\u0042\\n" = 1\r\n\r\n\'a\\b\' = """\r\n"""\r\nlast = 2\r\n'
    assert key_lines(text) == {("aB\n",): 1, ("a\\b",): 3, ("last",): 5}


def test_strings_that_end_in_quotes() -> None:
    text = 'a = """x"""""\nb = \'\'\'y\'\'\'\'\nc = ["]", \'}\']\nd = ""\n'
    assert key_lines(text)["d",] == 4
    assert set(key_lines(text)) == set(paths(tomllib.loads(text)))


@given(st.text(st.sampled_from("[]{}=,.\"'#\\ \nab1")))
def test_anything_comes_to_an_end(text: str) -> None:
    lines = key_lines(text)
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    assert set(lines) == set(paths(document))
