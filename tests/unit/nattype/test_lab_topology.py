"""Where everything is in a laboratory, and what it is called."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from itertools import combinations

import pytest

from nattype.lab.kernel.errors import LabError, Unsupported
from nattype.lab.kernel.spec import LabSpec, Site, site
from nattype.lab.kernel.topology import (
    INTERNET,
    MAX_SITES,
    SERVER_A,
    SERVER_A6,
    SERVER_B,
    SERVER_B6,
    Plan,
    needs_wire,
    plan,
)
from nattype.model import NAMED_KINDS, Filtering, Link, Mapping, NatModel, grid, kind

FIREWALL = NatModel(mapping=Mapping.NONE, filtering=Filtering.ADDRESS_AND_PORT_DEPENDENT)
SHARED = ipaddress.ip_network("100.64.0.0/10")


def laid(*sites: Site, **options: object) -> Plan:
    return plan(LabSpec(sites=sites, **options))


def check(found: Plan) -> None:
    """No address twice; both ends of a cable in one network; every route's gateway next door."""
    addresses = [a.partition("/")[0] for i in found.interfaces for a in i.addresses]
    assert len(addresses) == len(set(addresses))
    names = [(i.namespace, i.name) for i in found.interfaces]
    assert len(names) == len(set(names))
    assert all(len(name) <= 15 for _, name in names)
    macs = [i.mac for i in found.interfaces]
    assert len(macs) == len(set(macs))
    near: dict[str, list[ipaddress.IPv4Interface | ipaddress.IPv6Interface]] = {}
    for interface in found.interfaces:
        for address in interface.addresses:
            near.setdefault(interface.namespace, []).append(ipaddress.ip_interface(address))
    for one, other in combinations(
        {i.network for interfaces in near.values() for i in interfaces}, 2
    ):
        assert one.version != other.version or not one.overlaps(other)
    for namespace in found.namespaces.values():
        for prefix, gateway in namespace.routes:
            ipaddress.ip_network(prefix)
            assert any(ipaddress.ip_address(gateway) in i.network for i in near[namespace.name])


@pytest.mark.parametrize("ipv6", ["nat", "routed", "off"])
@pytest.mark.parametrize("name", [k.name for k in (*NAMED_KINDS, *grid()[:2])])
def test_every_kind_is_laid_out_soundly(name: str, ipv6: str) -> None:
    found = laid(site(name), ipv6=ipv6)
    check(found)
    assert ("ipv6" in found.addresses["host"]) == (ipv6 != "off")
    assert found.sites[0].boxes == [f"box{n}" for n in range(1, len(kind(name).boxes) + 1)]


def test_servers_have_the_addresses_that_the_world_expects() -> None:
    for address in (SERVER_A, SERVER_B, SERVER_A6, SERVER_B6):
        assert ipaddress.ip_address(address).is_global
    found = laid(site("open"))
    assert ipaddress.ip_address(found.addresses["host"]["ipv4"]).is_global
    assert ipaddress.ip_address(found.addresses["host"]["ipv6"]).is_global


def test_a_pair_has_different_lans_and_different_names() -> None:
    found = laid(site("full-cone", name="a", hosts=("a",)), site("cgnat", name="b", hosts=("b",)))
    check(found)
    assert found.addresses["a"]["ipv4"].startswith("192.168.1.")
    assert found.addresses["b"]["ipv4"].startswith("192.168.2.")
    assert [s.boxes for s in found.sites] == [["a-box1"], ["b-box1", "b-box2"]]
    assert ipaddress.ip_address(found.addresses["b-box1"]["ipv4"]) in SHARED
    assert ipaddress.ip_address(found.addresses["b-box2"]["ipv4"]).is_global


def test_firewalls_route_and_the_next_gateway_knows_the_way_in() -> None:
    for boxes in (
        (FIREWALL,),
        (FIREWALL, FIREWALL),
        (FIREWALL, NatModel()),
        (NatModel(), FIREWALL),
    ):
        found = laid(site(boxes))
        check(found)
        host = ipaddress.ip_address(found.addresses["host"]["ipv4"])
        translated = any(box.mapping is not Mapping.NONE for box in boxes)
        assert host.is_private == translated
        if not translated:
            routes = found.namespaces[INTERNET].routes
            assert any(host in ipaddress.ip_network(p) for p, _ in routes if ":" not in p)
    with pytest.raises(Unsupported, match="three firewalls"):
        laid(site((FIREWALL,) * 4))


def test_many_sites_fit_and_more_do_not() -> None:
    sites = [Site(kind("cgnat"), name=f"s{n}", hosts=(f"h{n}", f"g{n}")) for n in range(MAX_SITES)]
    check(laid(*sites))
    check(laid(*(replace(s, kind=kind("firewall")) for s in sites)))
    with pytest.raises(LabError, match="9 sites"):
        laid(*sites, Site(kind("open"), name="x", hosts=("x",)))
    with pytest.raises(LabError, match="0 sites"):
        laid()


def test_hosts_of_one_site_share_a_bridge() -> None:
    found = laid(site("full-cone", hosts=("one", "two", "three")))
    check(found)
    assert [len(bridge.ports) for bridge in found.bridges] == [3]
    assert len({found.addresses[h]["ipv4"] for h in ("one", "two", "three")}) == 3


def test_the_link_is_the_access_link_alone() -> None:
    found = laid(site("cgnat", delay=0.1, mtu=1400, loss=0.1))
    wired = [(c.left.namespace, c.right.namespace) for c in found.cables if c.wired]
    assert wired == [("box2", INTERNET)]
    assert {i.mtu for c in found.cables if not c.wired for i in (c.left, c.right)} == {1500}
    assert any("drop" in script for script in found.namespaces[INTERNET].rules)
    assert needs_wire(Link(jitter=0.1))
    assert not needs_wire(Link(loss=0.5, mtu=1280))


@pytest.mark.parametrize("name", ["server", "internet", "wire", "no such", "a/b"])
def test_names_that_cannot_be_are_refused(name: str) -> None:
    with pytest.raises(LabError, match="cannot name a host"):
        laid(site("open", hosts=(name,)))


def test_nonsense_is_refused_with_a_sentence() -> None:
    with pytest.raises(LabError, match="none of nat, routed, off"):
        laid(site("open"), ipv6="maybe")
    with pytest.raises(LabError, match="has no host"):
        laid(site("open", hosts=()))
