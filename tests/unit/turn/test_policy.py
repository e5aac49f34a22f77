"""Peer policy: what is closed, in which encodings, what opens it, and what it says of itself."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stun.errors import UsageError
from turn.server import special
from turn.server.policy import NOT_AN_ADDRESS, REMEMBERED, PeerPolicy, Verdict, parse_network

IANA = Path(__file__).resolve().parents[3] / "rfc-vectors" / "iana"
PUBLIC = ("8.8.8.8", "198.41.0.4", "1.1.1.1", "223.255.255.255", "2606:4700::1111", "2a00::1")
PUBLIC4, PUBLIC6 = "198.41.0.4", "2a00:1450:4001::5"


def entries(family: str) -> list[dict[str, Any]]:
    document = json.loads((IANA / f"{family}-special-addresses.json").read_text())
    rows: list[dict[str, Any]] = document["entries"]
    return rows


def ours(family: str) -> dict[str, special.Block]:
    blocks = special.IPV4 if family == "ipv4" else special.IPV6 + special.IPV4_IN_IPV6
    return {block.network: block for block in blocks}


def edges(text: str) -> Iterator[str]:
    """The first, the last and the middle address of a block."""
    network = ip_network(text)
    first, last = int(network.network_address), int(network.broadcast_address)
    kind = type(network.network_address)
    for value in {first, last, (first + last) // 2}:
        yield str(kind(value))


def nat64(host: str, prefix: str = "64:ff9b::") -> str:
    return str(IPv6Address(int(IPv6Address(prefix)) | int(IPv4Address(host))))


def mapped(host: str) -> str:
    return nat64(host, "::ffff:0:0")


def compatible(host: str) -> str:
    return nat64(host, "::")


def translated(host: str) -> str:
    return nat64(host, "::ffff:0:0:0")


def six_to_four(host: str) -> str:
    return str(IPv6Address(0x2002 << 112 | int(IPv4Address(host)) << 80 | 1))


def teredo_client(host: str, server: str = PUBLIC4) -> str:
    hidden = int(IPv4Address(host)) ^ 0xFFFFFFFF
    return str(IPv6Address(0x20010000 << 96 | int(IPv4Address(server)) << 64 | hidden))


def teredo_server(host: str) -> str:
    return teredo_client(PUBLIC4, host)


def isatap(host: str, identifier: int = 0x5EFE) -> str:
    prefix = int(IPv6Address("2a00:1450:4001:7::"))
    return str(IPv6Address(prefix | identifier << 32 | int(IPv4Address(host))))


def isatap_universal(host: str) -> str:
    return isatap(host, 0x02005EFE)


def local_nat64(host: str) -> str:
    return nat64(host, "64:ff9b:1:8:8:8:8:0")


OPENABLE = (nat64, six_to_four, teredo_client, teredo_server, isatap, isatap_universal, translated)
NEVER = (mapped, compatible)
# What lets the outer address of each encoding pass, so that the inner one decides.
OUTER = ("2002::/16", "2001::/32", "::ffff:0:0:0/96")


# The registry. ------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_every_row_of_iana_is_here_with_its_answer(family: str) -> None:
    blocks = ours(family)
    for row in entries(family):
        block = blocks[row["block"]]
        assert block.reachable is (row["globally_reachable"] == "True"), row
        assert block.rfc.split(" section")[0].replace(" ", "") == row["rfc"], row


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_what_is_here_beside_iana_s_rows_is_closed(family: str) -> None:
    known = {row["block"] for row in entries(family)}
    assert not [b for name, b in ours(family).items() if name not in known and b.reachable]


@pytest.mark.parametrize(
    "block", [*special.IPV4, *special.IPV6, *special.IPV4_IN_IPV6], ids=lambda b: b.network
)
def test_a_block_is_what_its_row_says(block: special.Block) -> None:
    policy = PeerPolicy()
    finer = [
        ip_network(other.network)
        for other in special.IPV4 + special.IPV6 + special.IPV4_IN_IPV6
        if other != block and _inside(other.network, block.network)
    ]
    for host in edges(block.network):
        if any(ip_address(host) in network for network in finer):
            continue
        verdict = policy.check(host)
        if block.network == "64:ff9b::/96":
            continue  # what it carries decides, see below
        assert verdict.allowed is block.reachable, (host, verdict)
        if not verdict.subject:
            assert block.network in verdict.rule
            assert block.rfc in verdict.rule


def _inside(inner: str, outer: str) -> bool:
    one, other = ip_network(inner), ip_network(outer)
    if isinstance(one, IPv4Network) and isinstance(other, IPv4Network):
        return one.subnet_of(other)
    return isinstance(one, IPv6Network) and isinstance(other, IPv6Network) and one.subnet_of(other)


def test_outside_of_2000_3_only_nat64_is_open(rng: random.Random) -> None:
    policy = PeerPolicy()
    for _ in range(20_000):
        address = IPv6Address(rng.getrandbits(128))
        if policy.check(str(address)).allowed:
            assert address in IPv6Network("2000::/3") or address in IPv6Network("64:ff9b::/96")


def test_what_the_standard_library_calls_private_or_worse_is_closed(rng: random.Random) -> None:
    policy = PeerPolicy()
    exceptions = [b.network for b in special.IPV4 + special.IPV6 if b.reachable]
    for _ in range(20_000):
        bits = rng.choice((32, 128))
        address = IPv4Address(rng.getrandbits(32)) if bits == 32 else _likely(rng)
        bad = (
            address.is_private or address.is_multicast or address.is_reserved
            or address.is_loopback or address.is_link_local or address.is_unspecified
        )  # fmt: skip
        if bad and not any(address in ip_network(text) for text in exceptions):
            assert not policy.check(str(address)).allowed, address


def _likely(rng: random.Random) -> IPv6Address:
    """An address in or near a block of the table: a random one is in none."""
    network = ip_network(rng.choice(special.IPV6).network)
    noise = rng.getrandbits(128 - network.prefixlen) if network.prefixlen < 128 else 0
    return IPv6Address(int(network.network_address) ^ noise ^ (rng.random() < 0.2) << 100)


@pytest.mark.parametrize("host", PUBLIC)
def test_the_internet_is_open(host: str) -> None:
    assert PeerPolicy().check(host) == Verdict(True, "no rule: globally reachable")


def test_the_metadata_address_of_clouds_is_closed() -> None:
    verdict = PeerPolicy().check("169.254.169.254")
    assert verdict == (False, "RFC 3927 link-local 169.254.0.0/16", "", False)


# Encodings. ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", OPENABLE)
def test_an_encoding_carries_what_is_decided_about(encoding: Any) -> None:
    policy = PeerPolicy(allow=OUTER, deny=["198.41.9.0/24"], own=["198.41.5.5"])
    assert policy.check(encoding(PUBLIC4)).allowed
    for block in special.IPV4:
        for host in edges(block.network):
            plain = policy.check(host)
            verdict = policy.check(encoding(host))
            assert verdict.allowed is plain.allowed, (host, verdict)
            if not plain.allowed:
                assert (verdict.rule, verdict.subject) == (plain.rule, host)
    assert policy.check(encoding("198.41.9.77")) == (
        False, "your deny rule 198.41.9.0/24", "198.41.9.77", False,
    )  # fmt: skip
    own = policy.check(encoding("198.41.5.5"))
    assert own == (False, "this server's own address 198.41.5.5", "198.41.5.5", False)


@pytest.mark.parametrize("encoding", OPENABLE)
def test_an_encoding_of_an_opened_address_is_open(encoding: Any) -> None:
    assert not PeerPolicy(allow=OUTER).check(encoding("10.1.2.3")).allowed
    assert PeerPolicy(allow=[*OUTER, "10.0.0.0/8"]).check(encoding("10.1.2.3")).allowed


@pytest.mark.parametrize("encoding", NEVER)
def test_ipv4_in_ipv6_form_is_closed_whatever_is_allowed(encoding: Any) -> None:
    policy = PeerPolicy(allow=["::/0", "0.0.0.0/0", PUBLIC4, "::/1"])
    for host in (PUBLIC4, "127.0.0.1", "10.0.0.1", "0.0.0.2"):
        verdict = policy.check(encoding(host))
        assert not verdict.allowed
        assert verdict.subject == host
        assert "RFC 4291" in verdict.rule


@pytest.mark.parametrize(
    "host", [six_to_four(PUBLIC4), teredo_client(PUBLIC4), translated(PUBLIC4)]
)
def test_a_carrier_that_is_closed_itself_stays_so(host: str) -> None:
    verdict = PeerPolicy().check(host)
    assert not verdict.allowed
    assert not verdict.subject


@pytest.mark.parametrize(
    ("length", "host"),
    [
        # The table of RFC 6052 section 2.4, for 192.0.2.33.
        (32, "2001:db8:c000:221::"),
        (40, "2001:db8:1c0:2:21::"),
        (48, "2001:db8:122:c000:2:2100::"),
        (56, "2001:db8:122:3c0:0:221::"),
        (64, "2001:db8:122:344:c0:2:2100::"),
        (96, "2001:db8:122:344::192.0.2.33"),
    ],
)
def test_translators_that_are_named_are_looked_through(length: int, host: str) -> None:
    prefix = str(ip_network(f"{host}/{length}", strict=False))
    policy = PeerPolicy(allow=["2001:db8::/32"], nat64=[prefix])
    verdict = policy.check(host)
    assert verdict == (False, "RFC 5737 documentation 192.0.2.0/24", "192.0.2.33", False)
    assert PeerPolicy(allow=["2001:db8::/32"]).check(host).allowed
    assert PeerPolicy(allow=["2001:db8::/32", "192.0.2.33"], nat64=[prefix]).check(host).allowed


def test_a_named_translator_opens_nothing() -> None:
    assert not PeerPolicy(nat64=["64:ff9b:1::/96"]).check(f"64:ff9b:1::{PUBLIC4}").allowed


def test_for_local_use_every_place_must_be_fit_until_the_prefix_is_named() -> None:
    host, private = f"64:ff9b:1::{PUBLIC4}", "64:ff9b:1::10.0.0.1"
    opened = ["64:ff9b:1::/48"]
    assert not PeerPolicy().check(host).allowed
    assert not PeerPolicy(opened).check(host).allowed
    named = PeerPolicy(opened, nat64=["64:ff9b:1::/96"])
    assert named.check(host).allowed
    assert named.check(private).subject == "10.0.0.1"
    # Behind a prefix of 48 bits this is 127.0.0.1, whatever stands where others have the address.
    assert PeerPolicy(opened).check("64:ff9b:1:7f00:0:100:c629:4").subject == "127.0.0.1"


def test_both_addresses_of_teredo_count() -> None:
    policy = PeerPolicy(allow=["2001::/32"])
    assert policy.check(teredo_client(PUBLIC4, "8.8.8.8")).allowed
    assert policy.check(teredo_server("10.0.0.1")).subject == "10.0.0.1"
    assert policy.check(teredo_client("10.0.0.1")).subject == "10.0.0.1"


@given(st.ip_addresses(v=4))
def test_no_encoding_opens_what_is_closed(inner: IPv4Address) -> None:
    policy = PeerPolicy(allow=OUTER)
    plain = policy.check(str(inner)).allowed
    for encoding in OPENABLE:
        assert policy.check(encoding(str(inner))).allowed is plain
    for encoding in (*NEVER, local_nat64):
        assert not policy.check(encoding(str(inner))).allowed


# What is no address. ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["", " ", "example.com", "127.1", "0177.0.0.1", "2130706433", "0x7f.0.0.1", "1.2.3.4 ",
     "1.2.3.4/32", "[::1]", "::1::", "1.2.3.4:80", "١.2.3.4", "\udc80", ":" * 10_000,
     "1" * 100_000, "::ffff:127.0.0.01", "localhost"],
)  # fmt: skip
def test_bad_text_is_denied_and_never_raises(text: str) -> None:
    assert PeerPolicy(allow=["0.0.0.0/0", "::/0"]).check(text) == Verdict(False, NOT_AN_ADDRESS)


@given(st.text())
def test_any_text_has_a_verdict_and_an_explanation(text: str) -> None:
    policy = PeerPolicy()
    verdict = policy.check(text)
    assert isinstance(verdict.allowed, bool)
    assert verdict.rule
    assert policy.explain(text)


@pytest.mark.parametrize("host", ["fe80::1%eth0", f"{PUBLIC6}%1", "1.2.3.4%eth0", "%", "::1%"])
def test_a_zone_is_denied(host: str) -> None:
    verdict = PeerPolicy(allow=["::/0", "fe80::1", PUBLIC6]).check(host)
    assert not verdict.allowed
    assert "RFC 4007" in verdict.rule


# The operator's rules. ----------------------------------------------------------------------------


def test_an_allow_rule_opens_a_private_network() -> None:
    policy = PeerPolicy(allow=["10.0.0.0/8"])
    assert policy.check("10.9.8.7") == Verdict(True, "your allow rule 10.0.0.0/8")
    assert not policy.check("172.16.0.1").allowed


def test_no_wide_allow_rule_opens_a_built_in_block() -> None:
    policy = PeerPolicy(allow=["0.0.0.0/0", "::/0", "0.0.0.0/1", "128.0.0.0/1", "8.0.0.0/5"])
    for block in special.IPV4 + special.IPV6:
        if not block.reachable:
            first = str(ip_network(block.network).network_address)
            assert not policy.check(first).allowed, block
    assert policy.check(PUBLIC4).allowed


@pytest.mark.parametrize(
    ("rule", "host"),
    [("127.0.0.0/8", "127.0.0.1"), ("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("::/128", "::"),
     ("0.0.0.0/32", "0.0.0.0"), ("239.1.0.0/16", "239.1.2.3"), ("255.255.255.255",) * 2,
     ("ff02::1", "ff02::1"), ("fd00::/8", "fd12::1"), ("4000::/3", "4000::1")],
)  # fmt: skip
def test_what_is_named_opens(rule: str, host: str) -> None:
    assert not PeerPolicy().check(host).allowed
    assert PeerPolicy(allow=[rule]).check(host).allowed


def test_the_most_specific_rule_decides_and_a_denial_wins_a_tie() -> None:
    policy = PeerPolicy(
        allow=["10.0.0.0/8", "10.1.1.0/24", "198.41.0.0/24", "10.2.0.0/16"],
        deny=["10.1.0.0/16", "198.41.0.0/24", "10.1.1.5", "0.0.0.0/0"],
    )
    expected = {
        "10.3.0.1": True, "10.1.0.1": False, "10.1.1.1": True, "10.1.1.5": False,
        "198.41.0.9": False, "10.2.3.4": True, "8.8.8.8": False, "192.0.0.9": False,
    }  # fmt: skip
    assert {host: policy.check(host).allowed for host in expected} == expected


def test_a_list_of_what_alone_is_open() -> None:
    policy = PeerPolicy(allow=["198.41.0.0/24", "2a00::/16"], deny=["0.0.0.0/0", "::/0"])
    assert policy.check("198.41.0.4").allowed
    assert policy.check("2a00::1").allowed
    assert policy.check("8.8.8.8").rule == "your deny rule 0.0.0.0/0"
    assert not policy.check("2606:4700::1111").allowed
    assert not policy.check(nat64("198.41.0.4")).allowed


def test_a_denial_also_closes_what_iana_calls_reachable() -> None:
    assert PeerPolicy().check("192.52.193.1").allowed
    assert not PeerPolicy(deny=["192.0.0.0/8"]).check("192.52.193.1").allowed


@given(st.data())
def test_the_rule_in_one_paragraph(data: st.DataObject) -> None:
    """The whole of it by another way: sort what holds the address, and take the first."""
    networks = st.integers(0, 32).flatmap(
        lambda length: st.sampled_from(
            ["10.77.1.5", "198.41.0.4", "192.0.0.9", "192.0.0.1", "255.255.255.255"]
        ).map(lambda host: str(ip_network(f"{host}/{length}", strict=False)))
    )
    allow = data.draw(st.lists(networks, max_size=4))
    deny = data.draw(st.lists(networks, max_size=4))
    own = data.draw(st.sets(st.sampled_from(["198.41.0.4", "10.77.1.5"])))
    host = data.draw(st.sampled_from(["10.77.1.5", "198.41.0.4", "192.0.0.9", "255.255.255.255"]))
    address = ip_address(host)
    holding = [
        (-ip_network(text).prefixlen, rank, rank == 1)
        for rank, texts in ((0, deny), (1, allow))
        for text in texts
        if address in ip_network(text)
    ]
    closed = [b for b in special.IPV4 if address in ip_network(b.network)]
    closed.sort(key=lambda b: -ip_network(b.network).prefixlen)
    if host in own:
        holding.append((-32, 2, False))
    elif closed and not closed[0].reachable:
        holding.append((-ip_network(closed[0].network).prefixlen, 2, False))
    expected = min(holding)[2] if holding else True
    assert PeerPolicy(allow, deny, own).check(host).allowed is expected


# The server's own addresses. ----------------------------------------------------------------------


@pytest.mark.parametrize("host", [PUBLIC4, PUBLIC6])
def test_the_server_s_own_address_is_closed_and_marked(host: str) -> None:
    policy = PeerPolicy(own=[host])
    verdict = policy.check(host)
    assert verdict == (False, f"this server's own address {host}", "", True)
    assert PeerPolicy(allow=["0.0.0.0/0", "::/0"], own=[host]).check(host).own
    assert PeerPolicy(allow=[host], own=[host]).check(host).allowed


def test_an_own_address_that_is_closed_anyhow_is_not_marked() -> None:
    private = PeerPolicy(own=["10.0.0.5", "127.0.0.1"])
    assert private.check("10.0.0.5") == (False, "this server's own address 10.0.0.5", "", False)
    assert not private.check("127.0.0.1").own
    assert PeerPolicy(allow=["10.0.0.0/8"], own=["10.0.0.5"]).check("10.0.0.5").own
    assert not PeerPolicy(deny=["198.41.0.0/16"], own=[PUBLIC4]).check(PUBLIC4).own


def test_an_own_address_is_known_in_every_spelling() -> None:
    policy = PeerPolicy(own=["2A00:0:0:0::0001", "fe80::5%eth0"])
    assert policy.check("2a00::1").own
    assert policy.check("2a00:0::1").own
    assert "own address" in policy.check("fe80::5").rule


def test_with_own_adds_and_keeps() -> None:
    policy = PeerPolicy(["10.0.0.0/8"], ["8.8.8.8"], ["198.41.0.4"], nat64=["2a00::/96"])
    more = policy.with_own(["198.41.0.5"])
    assert more.check("198.41.0.4").own
    assert more.check("198.41.0.5").own
    assert not policy.check("198.41.0.5").own
    assert (more.allow, more.deny, more.nat64) == (policy.allow, policy.deny, policy.nat64)
    assert more != policy
    assert more == PeerPolicy(
        ["10.0.0.0/8"], ["8.8.8.8"], ["198.41.0.5", "198.41.0.4"], nat64=["2a00::/96"]
    )
    assert len({more, policy, policy.with_own([])}) == 2
    assert "198.41.0.5" in repr(more)


# Bad rules. ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("10.0.0.1/8", "the network is 10.0.0.0/8"),
        ("2001:db8::1/32", "the network is 2001:db8::/32"),
        ("10.0.0.0/33", "0 to 32"),
        ("::/129", "0 to 128"),
        ("10.0.0.0/", "0 to 32"),
        ("10.0.0.0/-1", "0 to 32"),
        ("10.0.0.0/255.0.0.0", "0 to 32"),
        ("10.0.0.0/٨", "0 to 32"),
        ("10.0.0.0/" + "9" * 5000, "0 to 32"),
        ("10.0.0.0-10.255.255.255", "write 10.0.0.0/8"),
        ("10.0.0.0 - 10.0.2.255", "write 10.0.0.0/23, 10.0.2.0/24"),
        ("10.0.0.1-10.0.255.254", "and so on"),
        ("2001:db8::-2001:db8::ffff", "write 2001:db8::/112"),
        ("10.0.0.9-10.0.0.1", "as in 10.0.0.0/8"),
        ("10.0.0.1-::1", "as in 10.0.0.0/8"),
        ("example.com", "as in 10.0.0.0/8"),
        ("10/8", "as in 10.0.0.0/8"),
        ("", "as in 10.0.0.0/8"),
        ("fe80::%eth0/64", "as in 10.0.0.0/8"),
        ("::ffff:10.0.0.0/104", "write 10.0.0.0/8"),
        ("::ffff:8.8.8.8", "write 8.8.8.8/32"),
    ],
)
def test_a_bad_network_is_named_with_what_was_meant(text: str, says: str) -> None:
    for make in (lambda: PeerPolicy(allow=[text]), lambda: PeerPolicy(deny=[text])):
        with pytest.raises(UsageError) as caught:
            make()
        assert repr(text) in str(caught.value)
        assert says in str(caught.value)


def test_a_network_may_be_written_with_space_around_or_without_length() -> None:
    assert parse_network(" 10.0.0.0/8 ") == IPv4Network("10.0.0.0/8")
    assert parse_network("8.8.8.8") == IPv4Network("8.8.8.8/32")
    assert parse_network("2001:DB8::/32") == IPv6Network("2001:db8::/32")


def test_bad_own_addresses_and_translators_are_named() -> None:
    with pytest.raises(UsageError, match=r"'turn\.example'"):
        PeerPolicy(own=["turn.example"])
    for text in ("10.0.0.0/8", "64:ff9b::/97", "2001:db8::/33"):
        with pytest.raises(UsageError, match=f"'{text}' is no prefix"):
            PeerPolicy(nat64=[text])


# Explanations and the memory. ---------------------------------------------------------------------


def test_explain_names_every_rule_the_deciding_one_and_the_remedy() -> None:
    policy = PeerPolicy(allow=["10.1.0.0/16"], deny=["10.1.2.0/24"], own=[PUBLIC4])
    assert policy.explain("10.1.2.3") == [
        "10.1.2.3 is denied: your deny rule 10.1.2.0/24",
        "10.1.2.3 is in: your deny rule 10.1.2.0/24 (denies; decides)",
        "10.1.2.3 is in: your allow rule 10.1.0.0/16 (allows)",
        "10.1.2.3 is in: RFC 1918 private-use 10.0.0.0/8 (denies)",
        "to change it: remove your deny rule 10.1.2.0/24, "
        "or allow 10.1.2.3 (--allow-peer 10.1.2.3)",
    ]
    assert policy.explain("64:ff9b::10.9.0.1") == [
        "64:ff9b::10.9.0.1 is denied: RFC 1918 private-use 10.0.0.0/8 "
        "(of 10.9.0.1, which it carries)",
        "it carries 10.9.0.1: NAT64, RFC 6052",
        "64:ff9b::a09:1 is in: RFC 6052 NAT64 64:ff9b::/96: globally reachable (allows; decides)",
        "64:ff9b::a09:1 is in: RFC 4291 reserved ::/8 (denies)",
        "10.9.0.1 is in: RFC 1918 private-use 10.0.0.0/8 (denies; decides)",
        "to change it: allow 10.9.0.1 (--allow-peer 10.9.0.1) or more of 10.0.0.0/8",
    ]
    assert policy.explain("8.8.8.8") == [
        "8.8.8.8 is allowed: no rule: globally reachable",
        "8.8.8.8 is in no block of any rule",
        "to change it: deny 8.8.8.8 (--deny-peer 8.8.8.8) or a network that it is in",
    ]


def test_what_explain_suggests_does_change_it() -> None:
    rules: dict[str, Any] = {"deny": ["9.9.9.9", "198.41.0.0/16"], "own": ["198.41.0.1"]}
    hosts = [
        "10.0.0.1", "127.0.0.1", "::1", "198.41.0.1", "198.41.0.2", "255.255.255.255", "0.0.0.0",
        "fe80::1", "2001:db8::1", "4000::1", nat64("10.0.0.1"), six_to_four("192.168.1.1"),
        teredo_client("10.0.0.1", "192.168.0.1"), isatap("127.0.0.1"), translated("10.0.0.1"),
    ]  # fmt: skip
    for host in hosts:
        policy = PeerPolicy(**rules)
        assert not policy.check(host).allowed
        remedy = policy.explain(host)[-1].split("--allow-peer ")[1:]
        suggested = [text.split(")")[0] for text in remedy]
        assert suggested, host
        assert PeerPolicy(suggested, **rules).check(host).allowed, (host, suggested)
    for host in (PUBLIC4, PUBLIC6, nat64(PUBLIC4)):
        last = PeerPolicy().explain(host)[-1]
        assert (
            not PeerPolicy(deny=[last.split("--deny-peer ")[1].split(")")[0]]).check(host).allowed
        )


def test_explain_does_not_promise_what_cannot_be() -> None:
    policy = PeerPolicy()
    assert "nothing opens" in policy.explain(mapped("10.0.0.1"))[-1]
    assert "nothing" in policy.explain("fe80::1%eth0")[-1]
    assert "nothing" in policy.explain("example.com")[-1]
    local = policy.explain("64:ff9b:1::10.0.0.1")[-1]
    assert "name its prefix" in local
    assert "--allow-peer" not in local
    assert policy.explain("9.9.9.9") != PeerPolicy(deny=["9.9.9.9"]).explain("9.9.9.9")


def test_verdicts_are_sentences() -> None:
    policy = PeerPolicy()
    assert str(policy.check("8.8.8.8")) == "allowed: no rule: globally reachable"
    assert str(policy.check(nat64("10.0.0.1"))) == (
        "denied: RFC 1918 private-use 10.0.0.0/8 (of 10.0.0.1, which it carries)"
    )


def test_the_memory_is_bounded_and_changes_no_verdict(rng: random.Random) -> None:
    policy, fresh = PeerPolicy(own=[PUBLIC4]), PeerPolicy(own=[PUBLIC4])
    hosts = [str(IPv4Address(rng.getrandbits(32))) for _ in range(3 * REMEMBERED)]
    first = [policy.check(host) for host in hosts]
    assert [policy.check(host) for host in hosts] == first
    assert first[-1] == fresh.check(hosts[-1])
    assert len(policy._cache) <= REMEMBERED
    policy.check("x" * 1_000_000)
    assert max(map(len, policy._cache)) < 100
