"""Specifications: made from what people write, carried to another process unchanged."""

from __future__ import annotations

import json

import pytest

from nattype.lab.kernel.spec import LabSpec, Site, from_json, site, to_json
from nattype.model import NAMED_KINDS, Lifetimes, NatModel, Unsolicited, grid, kind


@pytest.mark.parametrize("named", [*NAMED_KINDS, *grid()], ids=lambda k: k.name)
def test_a_specification_survives_its_journey(named: object) -> None:
    spec = LabSpec(
        (site(named, loss=0.25, delay=0.5, udp_timeout=1.5), Site(kind("open"), "b", ("b", "c"))),
        ipv6="routed",
        server_command=("serve", "{A}"),
        server_wait=2.5,
        seed=7,
    )
    assert from_json(json.loads(json.dumps(to_json(spec)))) == spec
    assert from_json(to_json(LabSpec((site("open"),)))).server_command is None


def test_options_change_every_box_and_nothing_else() -> None:
    plain = kind("cgnat")
    changed = site(
        "cgnat", hairpin=True, tcp_unsolicited="rst", udp_timeout=5, udp_stream_timeout=9
    ).kind
    for before, after in zip(plain.boxes, changed.boxes, strict=True):
        assert (after.mapping, after.filtering) == (before.mapping, before.filtering)
        assert after.hairpin
        assert after.unsolicited_tcp is Unsolicited.RST
        assert after.lifetimes == Lifetimes(udp_one_shot=5, udp_stream=9)
    assert site("cgnat").kind == plain
    assert not site("full-cone-hairpin", hairpin=False).kind.boxes[0].hairpin


def test_a_kind_may_be_given_as_its_boxes() -> None:
    box = NatModel(delta=3)
    assert site(box).kind.boxes == (box,)
    assert site([box, NatModel()]).kind.boxes == (box, NatModel())
    assert site(kind("symmetric")).kind is not None


def test_values_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="probability"):
        site("open", loss=10)
    with pytest.raises(ValueError, match="not negative"):
        site("open", delay=-1)
    with pytest.raises(ValueError, match="unknown kind"):
        site("cone")
    with pytest.raises(ValueError, match="sometimes"):
        site("open", tcp_unsolicited="sometimes")
