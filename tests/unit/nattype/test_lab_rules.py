"""The rules of a box, as text: what they hold, what they refuse."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise

import pytest

from nattype.lab.kernel import rules
from nattype.lab.kernel.errors import Unsupported
from nattype.model import (
    NAMED_KINDS,
    Allocation,
    Filtering,
    Lifetimes,
    Mapping,
    NatModel,
    Unsolicited,
    grid,
    kind,
)

MODELS = [box for k in (*grid(), *NAMED_KINDS) for box in k.boxes]


def written(model: NatModel, family: rules.Family = rules.IPV4, seed: int = 0) -> str:
    v4 = family is rules.IPV4
    return rules.ruleset(
        model,
        family,
        external="192.52.193.2" if v4 else "2620:4f:8000:1::2",
        inside=["192.168.1.0/24" if v4 else "fd00:192:168:1::/64"],
        seed=seed,
    )


def ports(script: str) -> list[int]:
    listed = re.search(r"elements = { (.*) };", script)
    assert listed is not None
    pairs = [pair.split(" : ") for pair in listed[1].split(", ")]
    assert [int(index) for index, _ in pairs] == list(range(rules.PORTS))
    return [int(port) for _, port in pairs]


@pytest.mark.parametrize("family", [rules.IPV4, rules.IPV6], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("hairpin", [False, True])
def test_every_name_that_is_used_is_declared_and_used(family: rules.Family, hairpin: bool) -> None:
    for model in MODELS:
        script = written(replace(model, hairpin=hairpin), family)
        declared = set(re.findall(r"^  (?:map|set) (\S+) \{", script, re.MULTILINE))
        assert set(re.findall(r"@(\S+)", script)) == declared
        chains = set(re.findall(r"^  chain (\S+) \{", script, re.MULTILINE))
        assert set(re.findall(r"(?:jump|goto) (\S+)", script)) <= chains
        assert script.count("{") == script.count("}")


def test_an_ordinary_home_router_needs_no_memory() -> None:
    script = written(NatModel())
    assert "map " not in script
    assert "set " not in script


def test_sequential_ports_step_by_delta_and_random_ones_never_repeat(seed: int) -> None:
    for delta in (1, 2, -1, 15):
        model = replace(kind("symmetric-sequential").boxes[0], delta=delta)
        found = ports(written(model, seed=seed))
        assert {after - before for before, after in pairwise(found)} == {delta}
        assert min(found) >= 1024
        assert max(found) <= 65535
    found = ports(written(kind("symmetric").boxes[0], seed=seed))
    assert len(set(found)) == rules.PORTS
    assert min(found) >= 1024
    assert found == ports(written(kind("symmetric").boxes[0], seed=seed))
    assert found != ports(written(kind("symmetric").boxes[0], seed=seed + 1))


def test_a_script_fits_into_an_ordinary_users_netlink_message() -> None:
    # Sixty octets an element on the wire, at the most; net.core.wmem_max is 212992 by default.
    assert rules.PORTS * 60 < 212_992


def test_lifetimes_are_those_of_the_model() -> None:
    model = NatModel(
        filtering=Filtering.ENDPOINT_INDEPENDENT,
        lifetimes=Lifetimes(udp_one_shot=1.5, udp_stream=7, tcp_established=100),
    )
    script = written(model)
    assert "udp ct status & assured == 0" in script
    timeouts = set(re.findall(r"meta l4proto (udp|tcp) ct status (\S+) .*timeout (\d+)ms", script))
    assert timeouts == {
        ("udp", "&", "1500"),
        ("udp", "assured", "7000"),
        # A transitory session does not outlive an established one.
        ("tcp", "&", "100000"),
        ("tcp", "assured", "100000"),
    }


@pytest.mark.parametrize(
    ("unsolicited", "answer"),
    [(Unsolicited.RST, "tcp reset"), (Unsolicited.ICMP, "icmp type port-unreachable")],
)
def test_uninvited_syns_are_answered_as_asked(unsolicited: Unsolicited, answer: str) -> None:
    for mapping in (Mapping.NONE, Mapping.ENDPOINT_INDEPENDENT):
        model = NatModel(mapping=mapping, unsolicited_tcp=unsolicited)
        assert f"reject with {answer}" in written(model)
        assert "reject" not in written(replace(model, unsolicited_tcp=Unsolicited.DROP))


def test_open_to_syns_is_about_tcp_alone() -> None:
    model = NatModel(unsolicited_tcp=Unsolicited.OPEN)
    assert rules.filtering_of(model, "tcp") is Filtering.ENDPOINT_INDEPENDENT
    assert rules.filtering_of(model, "udp") is Filtering.ADDRESS_AND_PORT_DEPENDENT
    # A NAT without a filter lets anybody use a mapping; a router without one lets everything in.
    unfiltered = NatModel(filtering=Filtering.NONE)
    assert rules.filtering_of(unfiltered, "udp") is Filtering.ENDPOINT_INDEPENDENT
    routed = replace(unfiltered, mapping=Mapping.NONE)
    assert rules.filtering_of(routed, "udp") is Filtering.NONE
    assert "tcp accept" in written(routed)


def test_blocked_protocols_are_dropped_before_anything_else() -> None:
    for model in (NatModel(udp_blocked=True), NatModel(mapping=Mapping.NONE, udp_blocked=True)):
        chain = written(model).partition("chain forward {")[2]
        assert chain.index("l4proto udp drop") < chain.index("established,related accept")


def test_a_reboot_empties_all_that_is_remembered() -> None:
    for model in MODELS:
        script = written(model)
        emptied = rules.forget(
            model, rules.IPV4, external="192.52.193.2", inside=["192.168.1.0/24"], seed=0
        )
        dynamic = re.findall(r"^  (map|set) (\S+) \{ .*dynamic", script, re.MULTILINE)
        assert sorted(emptied.splitlines()) == sorted(
            f"flush {what} ip natlab {name}" for what, name in dynamic
        )


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (NatModel(mapping=Mapping.UNKNOWN), "mapping=unknown"),
        (NatModel(filtering=Filtering.UNKNOWN), "filtering=unknown"),
        (NatModel(allocation=Allocation.UNKNOWN), "allocation=unknown"),
        (NatModel(unsolicited_tcp=Unsolicited.UNKNOWN), "unsolicited_tcp=unknown"),
        (NatModel(mapping=Mapping.ADDRESS_DEPENDENT), "contradicts itself"),
        (NatModel(mapping=Mapping.ADDRESS_AND_PORT_DEPENDENT), "contradicts itself"),
        (NatModel(mapping=Mapping.NONE, remaps_after_inbound=True), "no mapping"),
        (NatModel(allocation=Allocation.SEQUENTIAL, delta=0), "step of 0"),
        (NatModel(allocation=Allocation.SEQUENTIAL, delta=16), "step of 16"),
    ],
)
def test_what_cannot_be_expressed_is_refused(model: NatModel, reason: str) -> None:
    with pytest.raises(Unsupported, match=reason):
        written(model)


def test_loss_is_per_interface_and_all_of_it_is_a_cut() -> None:
    script = rules.loss_ruleset({"to-a": 0.25, "to-b": 1.0, "to-c": 0.0})
    for word in ("iifname", "oifname"):
        assert f'{word} "to-a" numgen random mod 1000000 < 250000 drop' in script
        assert f'{word} "to-b" drop' in script
    assert "to-c" not in script
    assert "chain" not in rules.loss_ruleset({"to-a": 0.0})
