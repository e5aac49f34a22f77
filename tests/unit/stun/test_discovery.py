"""From URIs to targets: which questions are asked, and what is made of the answers."""

from collections import Counter

import pytest

from stun.discovery import (
    MAX_QUERIES,
    DiscoveryError,
    Kind,
    Naptr,
    Query,
    Srv,
    Target,
    Transport,
    interleave,
    order_srv,
    run,
    stun_targets,
    turn_targets,
    turn_transport,
)
from stun.sansio import Address
from stun.uri import StunUri, TurnUri, parse

UDP, TCP, TLS, DTLS = Transport


class Zone:
    """A name service that remembers what it was asked."""

    def __init__(self, addresses=None, srv=None, naptr=None):
        self.records = {Query(name, Kind.ADDRESS): a for name, a in (addresses or {}).items()}
        self.records |= {Query(name, Kind.SRV): a for name, a in (srv or {}).items()}
        self.records |= {Query(name, Kind.NAPTR): a for name, a in (naptr or {}).items()}
        self.asked = []

    def __call__(self, query):
        self.asked.append((query.name, query.kind.name))
        return self.records.get(query, ())


def stun(text, zone=None, **options):
    return run(stun_targets(parse(text), entropy=bytes, **options), zone or Zone())


def turn(text, zone=None, **options):
    return run(turn_targets(parse(text), entropy=bytes, **options), zone or Zone())


def short(targets):
    return [(t.transport, *t.address) for t in targets]


REMOTE = {
    "example.com": [Naptr(100, 10, "", "RELAY:turn.udp:turn.tcp:turn.tls", "", "example.net.")],
    "example.net": [
        Naptr(100, 10, "", "RELAY:turn.udp", "", "datagram.example.net."),
        Naptr(200, 10, "", "RELAY:turn.tcp:turn.tls", "", "stream.example.net."),
    ],
    "datagram.example.net": [Naptr(100, 10, "S", "RELAY:turn.udp", "", "_turn._udp.example.net.")],
    "stream.example.net": [
        Naptr(100, 10, "s", "relay:TURN.TCP", "", "_turn._tcp.example.net."),
        Naptr(200, 10, "A", "RELAY:turn.tls", "", "a.example.net."),
    ],
}
SRV = {
    "_turn._udp.example.net": [Srv(0, 0, 3478, "a.example.net.")],
    "_turn._tcp.example.net": [Srv(0, 0, 5000, "a.example.net.")],
}
HOST = {"example.org": ["192.0.2.1", "2001:db8::1"]}


class TestStun:
    @pytest.mark.parametrize(
        ("text", "port"), [("stun:192.0.2.7", 3478), ("stun:192.0.2.7:99", 99)]
    )
    def test_an_address_asks_nobody(self, text, port):
        zone = Zone()
        assert stun(text, zone) == [Target(Address("192.0.2.7", port), UDP)]
        assert stun(text, zone, transport=TCP) == [Target(Address("192.0.2.7", port), TCP)]
        assert zone.asked == []

    def test_a_port_means_no_srv(self):
        zone = Zone(HOST)
        assert short(stun("stun:example.org:99", zone)) == [
            (UDP, "192.0.2.1", 99),
            (UDP, "2001:db8::1", 99),
        ]
        assert zone.asked == [("example.org", "ADDRESS")]

    def test_srv(self):
        zone = Zone(
            {"a.example.org": ["192.0.2.1"], "b.example.org": ["192.0.2.2", "192.0.2.3"]},
            {
                "_stun._udp.example.org": [
                    Srv(2, 0, 1, "b.example.org."),
                    Srv(1, 0, 2, "a.example.org"),
                ]
            },
        )
        assert short(stun("stun:example.org", zone)) == [
            (UDP, "192.0.2.1", 2),
            (UDP, "192.0.2.2", 1),
            (UDP, "192.0.2.3", 1),
        ]

    def test_without_srv_both_families_at_the_default_port(self):
        zone = Zone(HOST)
        assert short(stun("stun:example.org", zone)) == [
            (UDP, "192.0.2.1", 3478),
            (UDP, "2001:db8::1", 3478),
        ]
        assert zone.asked == [("_stun._udp.example.org", "SRV"), ("example.org", "ADDRESS")]

    def test_a_certificate_has_names_without_the_last_dot(self):
        zone = Zone({"example.org.": ["192.0.2.1"]})
        assert [target.name for target in stun("stuns:example.org.", zone)] == ["example.org"]
        found = run(turn_targets(parse("turns:example.org.:5349"), entropy=bytes), zone)
        assert [target.name for target in found] == ["example.org"]

    @pytest.mark.parametrize(
        ("text", "transport", "owner", "port"),
        [
            ("stun:h", TCP, "_stun._tcp.h", 3478),
            ("stuns:h", None, "_stuns._tcp.h", 5349),
            ("stuns:h", DTLS, "_stuns._udp.h", 5349),
        ],
    )
    def test_names_and_ports(self, text, transport, owner, port):
        zone = Zone({"h": ["192.0.2.1"]})
        (target,) = stun(text, zone, transport=transport)
        assert zone.asked[0] == (owner, "SRV")
        assert target.address.port == port
        # The certificate has to prove the host of the URI.
        assert target.name == ("h" if text.startswith("stuns") else None)

    def test_behaviour_discovery_has_its_own_records(self):
        # RFC 5780 section 6.1.
        zone = Zone(HOST)
        stun("stun:example.org", zone, behavior=True)
        assert [name for name, _ in zone.asked] == [
            "_stun-behavior._udp.example.org",
            "_stun._udp.example.org",
            "example.org",
        ]
        zone = Zone(HOST)
        stun("stuns:example.org", zone, behavior=True)
        assert zone.asked[0] == ("_stun-behaviors._tcp.example.org", "SRV")
        zone = Zone(HOST, {"_stun-behavior._udp.example.org": [Srv(0, 0, 7, "example.org")]})
        assert short(stun("stun:example.org", zone, behavior=True))[0] == (UDP, "192.0.2.1", 7)

    @pytest.mark.parametrize("target", [".", ""])
    def test_decidedly_not_available(self, target):
        # RFC 2782: a target of "." means just that, so there is no falling back.
        zone = Zone(HOST, {"_stun._udp.example.org": [Srv(0, 0, 0, target)]})
        assert stun("stun:example.org", zone) == []

    def test_wrong_kinds_of_records_are_passed_over(self):
        zone = Zone({"example.org": ["192.0.2.1", Srv(0, 0, 1, "x")]})
        zone.records[Query("_stun._udp.example.org", Kind.SRV)] = ["192.0.2.9"]
        assert short(stun("stun:example.org", zone)) == [(UDP, "192.0.2.1", 3478)]

    @pytest.mark.parametrize(("text", "transport"), [("stun:h", TLS), ("stuns:h", UDP)])
    def test_a_transport_that_is_not_the_schemes(self, text, transport):
        with pytest.raises(DiscoveryError):
            stun(text, transport=transport)


class TestOrder:
    """RFC 2782."""

    def test_priority_first(self):
        records = [Srv(n, 99, 1, str(n)) for n in (5, 1, 3)]
        assert [r.priority for r in order_srv(records, bytes)] == [1, 3, 5]

    def test_nothing(self):
        assert order_srv([], bytes) == []

    def test_the_lowest_number_chooses_the_weightless(self):
        records = [Srv(0, 10, 1, "heavy"), Srv(0, 0, 1, "light")]
        assert [r.target for r in order_srv(records, bytes)] == ["light", "heavy"]
        assert [r.target for r in order_srv(records, lambda n: b"\x01".rjust(n, b"\0"))] == [
            "heavy",
            "light",
        ]

    def test_weights_are_proportions(self, rng):
        records = [Srv(0, weight, 1, str(weight)) for weight in (60, 30, 10)]
        firsts = Counter(order_srv(records, rng.randbytes)[0].target for _ in range(4000))
        for weight in (60, 30, 10):
            # Five standard deviations; 0 counts to the first record, so the sum is 101.
            assert abs(firsts[str(weight)] - 40 * weight) < 160

    def test_every_record_comes_once(self, rng):
        records = [Srv(n % 3, n % 4, n, str(n)) for n in range(20)]
        assert sorted(order_srv(records, rng.randbytes)) == sorted(records)


class TestTurn:
    def test_step_1_an_address(self):
        assert short(turn("turn:192.0.2.1", supported=[TLS, UDP])) == [
            (TLS, "192.0.2.1", 5349),
            (UDP, "192.0.2.1", 3478),
        ]
        assert short(turn("turns:192.0.2.1")) == [(TLS, "192.0.2.1", 5349)]
        assert short(turn("turn:192.0.2.1:7?transport=tcp")) == [(TCP, "192.0.2.1", 7)]

    def test_step_2_a_name_and_a_port(self):
        zone = Zone(HOST)
        assert short(turn("turn:example.org:7", zone, supported=[TCP, UDP])) == [
            (TCP, "192.0.2.1", 7),
            (TCP, "2001:db8::1", 7),
            (UDP, "192.0.2.1", 7),
            (UDP, "2001:db8::1", 7),
        ]
        assert zone.asked == [("example.org", "ADDRESS")]

    @pytest.mark.parametrize(
        ("text", "owner", "transport", "port"),
        [
            ("turn:h?transport=udp", "_turn._udp.h", UDP, 3478),
            ("turn:h?transport=tcp", "_turn._tcp.h", TCP, 3478),
            ("turns:h?transport=tcp", "_turns._tcp.h", TLS, 5349),
            ("turns:h?transport=udp", "_turns._udp.h", DTLS, 5349),
        ],
    )
    def test_step_3_a_name_and_a_transport(self, text, owner, transport, port):
        zone = Zone({"h": ["192.0.2.1"], "s": ["192.0.2.2"]})
        assert short(turn(text, zone, supported=list(Transport))) == [
            (transport, "192.0.2.1", port)
        ]
        assert zone.asked == [(owner, "SRV"), ("h", "ADDRESS")]
        zone.records[Query(owner, Kind.SRV)] = [Srv(0, 0, 7, "s.")]
        (target,) = turn(text, zone, supported=list(Transport))
        assert target.address == Address("192.0.2.2", 7)
        assert target.name == ("h" if transport.is_secure else None)

    def test_step_5_without_naptr(self):
        zone = Zone(HOST | {"s": ["192.0.2.9"]}, {"_turns._tcp.example.org": [Srv(0, 0, 7, "s.")]})
        assert short(turn("turn:example.org", zone, supported=[TLS, UDP])) == [
            (TLS, "192.0.2.9", 7),
            (UDP, "192.0.2.1", 3478),
            (UDP, "2001:db8::1", 3478),
        ]
        assert zone.asked[0] == ("example.org", "NAPTR")

    def test_step_4_remote_hosting(self):
        # RFC 5928 4.2 says that the targets are those of table 2, in its order.  Its own rule gives
        # another one: the first set of records ranks all three alike, so "the preferred order set
        # by the application is used".  The rule is followed.
        zone = Zone({"a.example.net": ["192.0.2.1"]}, SRV, REMOTE)
        found = turn("turn:example.com", zone, supported=[TLS, TCP, UDP])
        assert short(found) == [
            (TLS, "192.0.2.1", 5349),
            (TCP, "192.0.2.1", 5000),
            (UDP, "192.0.2.1", 3478),
        ]
        assert [target.name for target in found] == ["example.com", None, None]
        # No question is put twice.
        assert len(zone.asked) == len(set(zone.asked))

    def test_step_4_only_what_is_supported(self):
        zone = Zone({"a.example.net": ["192.0.2.1"]}, SRV, REMOTE)
        assert short(turn("turn:example.net", zone, supported=[TCP])) == [(TCP, "192.0.2.1", 5000)]
        zone = Zone({"a.example.net": ["192.0.2.1"]}, SRV, REMOTE)
        assert short(turn("turns:example.net", zone)) == [(TLS, "192.0.2.1", 5349)]

    @pytest.mark.parametrize(
        "record",
        [
            Naptr(1, 1, "U", "RELAY:turn.udp", "", "a."),  # no such flag in S-NAPTR
            Naptr(1, 1, "A", "RELAY:turn.udp", "!.*!x!", "a."),  # no regular expressions either
            Naptr(1, 1, "A", "SIP+D2U:turn.udp", "", "a."),
            Naptr(1, 1, "A", "RELAY", "", "a."),
            Naptr(1, 1, "A", "", "", "a."),
        ],
    )
    def test_records_that_are_for_others(self, record):
        zone = Zone({"a": ["192.0.2.1"]}, {}, {"h": [record]})
        assert turn("turn:h", zone, supported=[UDP]) == []

    def test_circles_end(self):
        circle = {
            name: [Naptr(1, 1, "", "RELAY:turn.udp", "", other + ".") for other in ("a", "b", "h")]
            for name in ("a", "b", "h")
        }
        zone = Zone({}, {}, circle)
        assert turn("turn:h", zone, supported=[UDP]) == []
        assert len(zone.asked) < 10

    def test_fanning_out_ends(self):
        class Endless(Zone):
            def __call__(self, query):
                super().__call__(query)
                if query.kind is Kind.NAPTR:
                    names = (f"{n}.{query.name}" for n in range(10))
                    return [Naptr(1, 1, "", "RELAY:turn.udp", "", name) for name in names]
                return ()

        zone = Endless()
        assert turn("turn:h", zone, supported=[UDP]) == []
        assert len(zone.asked) == MAX_QUERIES

    @pytest.mark.parametrize(
        ("text", "supported"),
        [
            ("turn:h?transport=udp", [TCP, TLS]),
            ("turn:h?transport=tcp", [UDP]),
            ("turns:h?transport=tcp", [UDP, TCP]),
            ("turns:h?transport=udp", [UDP, TCP, TLS]),
            ("turns:h", [UDP, TCP]),
            ("turn:h?transport=sctp", list(Transport)),
            ("turn:h", []),
        ],
    )
    def test_must_stop_with_an_error(self, text, supported):
        zone = Zone()
        with pytest.raises(DiscoveryError):
            turn(text, zone, supported=supported)
        assert zone.asked == []

    def test_turn_transport(self):
        assert turn_transport(TurnUri("h")) is None
        assert turn_transport(TurnUri("h", transport="udp", secure=True)) is DTLS
        with pytest.raises(DiscoveryError):
            turn_transport(TurnUri("h", transport="x"))


def test_targets_are_given_once():
    zone = Zone({"a": ["192.0.2.1"]}, {"_stun._udp.h": [Srv(0, 0, 1, "a."), Srv(1, 0, 1, "a.")]})
    assert short(stun("stun:h", zone)) == [(UDP, "192.0.2.1", 1)]


def test_interleave():
    def targets(*hosts):
        return [Target(Address(host, 1), UDP) for host in hosts]

    assert interleave(targets("1", "2", "a::", "3", "b::")) == targets("a::", "1", "b::", "2", "3")
    assert interleave(targets("1", "a::", "b::", "c::")) == targets("a::", "1", "b::", "c::")
    assert interleave([]) == []


def test_a_uri_may_be_made_by_hand():
    steps = stun_targets(StunUri("192.0.2.1", secure=True), entropy=bytes)
    assert run(steps, Zone()) == [Target(Address("192.0.2.1", 5349), TLS, "192.0.2.1")]
