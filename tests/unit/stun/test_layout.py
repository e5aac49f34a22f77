"""The fixed layouts, and that both codecs really come from them."""

from __future__ import annotations

import construct
import pytest

from stun import layout, spec
from stun.layout import Field, Layout

LAYOUTS = [value for value in vars(layout).values() if isinstance(value, Layout)]


def test_there_are_layouts() -> None:
    assert layout.HEADER in LAYOUTS
    assert layout.HEADER.size == 20
    assert layout.TLV.size == 4


@pytest.mark.parametrize("made", LAYOUTS, ids=lambda made: made.name)
def test_struct_and_construct_agree(made: Layout) -> None:
    declared = construct.Struct(*spec.declare(made))
    assert declared.sizeof() == made.size == made.struct.size
    octets = bytes(range(1, made.size + 1))
    cold = declared.parse(octets)
    named = [field.name for field in made.fields if field.kind != "reserved"]
    assert tuple(cold[name] for name in named) == made.struct.unpack(octets)
    values = {name: cold[name] for name in named}
    assert declared.build(values) == made.struct.pack(*values.values())
    assert made.section


def test_a_refinement_must_be_as_wide_as_the_field() -> None:
    with pytest.raises(ValueError, match="2 octets wide"):
        spec.declare(layout.HEADER, message_type=construct.Int8ub)
    with pytest.raises(ValueError, match="has no colour"):
        spec.declare(layout.HEADER, colour=construct.Int8ub)


def test_kinds_of_fields() -> None:
    assert Field("a", 8).format == "Q"
    assert Field("a", 12, "bytes").format == "12s"
    assert Field("a", 3, "reserved").format == "3x"
    with pytest.raises(ValueError, match="no such kind"):
        _ = Field("a", 1, "float").format
    assert repr(layout.TLV) == "<Layout attribute header: >HH>"
