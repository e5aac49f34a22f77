"""Servers that do not do what they say: named, and never turned into a wrong NAT type."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import pytest

from nattype.classify import Classified, classify
from nattype.lab.sim import SERVER_A, SERVER_B, behind
from nattype.lab.sim.diagnose import observe
from nattype.model import Filtering, Link, Mapping, NatType, kind
from nattype.report import Outcome
from stun import attributes
from stun.codec import Message, decode, encode
from stun.sansio import Address, Dial, Instant, OpenUdp, Received, SocketEvent, Transmit
from stun.server import Server, ServerConfig

NEAR = Link(delay=0.005)
A, B = Address(SERVER_A, 3478), Address(SERVER_B, 3479)
KINDS = [
    "open",
    "firewall",
    "full-cone",
    "restricted-cone",
    "port-restricted-cone",
    "port-restricted-poisoned",
    "symmetric",
    "symmetric-address",
    "adm+eif+random",
    "apdm+adf+sequential",
]


class Liar:
    """A server that alters what passes through it."""

    def __init__(self, config: ServerConfig, rng: random.Random) -> None:
        self.server = Server(config, entropy=rng.randbytes)
        self.server.start(0)
        self.rng = rng
        self.queue: deque[Any] = deque()

    def request(self, message: Message, packet: Received) -> Message | None:
        return message

    def output(self, output: Any) -> list[Any]:
        return [output]

    def receive(self, packet: Received, now: Instant) -> None:
        message = self.request(decode(packet.data), packet)
        if message is not None:
            altered = Received(encode(message), packet.source, packet.local)
            self.server.receive(altered, now)

    def on_socket(self, event: SocketEvent, now: Instant) -> None:
        self.server.on_socket(event, now)

    def on_deadline(self, now: Instant) -> None:
        self.server.on_deadline(now)

    def deadline(self) -> Instant | None:
        return self.server.deadline()

    def poll(self) -> Any:
        while not self.queue:
            output = self.server.poll()
            if output is None:
                return None
            self.queue.extend(self.output(output))
        return self.queue.popleft()


class IgnoresChangeRequest(Liar):
    def request(self, message: Message, packet: Received) -> Message:
        code = attributes.CHANGE_REQUEST.code
        message.attributes = [a for a in message.attributes if a[0] != code]
        return message


class Refuses(Liar):
    """Answers CHANGE-REQUEST with an error."""

    code = 420

    def request(self, message: Message, packet: Received) -> Message | None:
        if not message.has(attributes.CHANGE_REQUEST):
            return message
        error = encode(Message.error(message, self.code))
        self.queue.append(Transmit(error, packet.source, packet.local))
        return None


class DropsChangeRequest(Liar):
    def request(self, message: Message, packet: Received) -> Message | None:
        return None if message.has(attributes.CHANGE_REQUEST) else message


class DeadSecondAddress(Liar):
    def request(self, message: Message, packet: Received) -> Message | None:
        return None if packet.local.host == SERVER_B else message

    def output(self, output: Any) -> list[Any]:
        if isinstance(output, Transmit) and output.source.host == SERVER_B:
            return []
        return [output]


class DeafSecondAddress(DeadSecondAddress):
    """Its second address takes requests, but nothing it sends gets out."""

    def request(self, message: Message, packet: Received) -> Message:
        return message


class WrongPort(Liar):
    """Asked to answer from another address and port, it changes the address only."""

    def output(self, output: Any) -> list[Any]:
        if isinstance(output, Transmit) and output.source == B:
            output.source = Address(SERVER_B, 3478)
        return [output]


class WrongTransaction(Liar):
    def output(self, output: Any) -> list[Any]:
        if isinstance(output, Transmit):
            data = bytearray(output.data)
            data[19] ^= 1
            output.data = bytes(data)
        return [output]


class SendsGarbage(Liar):
    """Sends rubbish beside every answer: noise, a cut answer, a stranger's answer."""

    def output(self, output: Any) -> list[Any]:
        if not isinstance(output, Transmit):
            return [output]
        noise = self.rng.randbytes(self.rng.randrange(1, 60))
        cut = output.data[: self.rng.randrange(1, len(output.data))]
        foreign = output.data[:8] + self.rng.randbytes(12) + output.data[20:]
        return [
            *(Transmit(d, output.destination, output.source) for d in (noise, cut, foreign)),
            output,
        ]


class CannotDial(Liar):
    """A server whose own firewall stops the connections it dials: it grants and then is silent."""

    def output(self, output: Any) -> list[Any]:
        return [] if isinstance(output, Dial) else [output]


class CannotDialFromSecond(Liar):
    def output(self, output: Any) -> list[Any]:
        return [] if isinstance(output, Dial) and output.local.host == SERVER_B else [output]


class OnlyUdp(Liar):
    def output(self, output: Any) -> list[Any]:
        return [output] if isinstance(output, Transmit | OpenUdp) else []


def ask(
    name: str,
    liar: type[Liar],
    config: ServerConfig,
    seed: int,
    *,
    link: Link = NEAR,
    tcp: bool = False,
    udp: bool = True,
) -> Classified:
    scenario = behind(name, seed=seed, link=link)
    scenario.world.attach(liar(config, random.Random(seed)), scenario.server)
    return classify(observe(scenario, servers=[A], tcp=tcp, udp=udp)[0])


def never_wrong(name: str, found: Classified) -> None:
    expected = kind(name).expected
    assert found.udp is not None
    assert found.udp.nat_type in (expected.udp, NatType.INCONCLUSIVE)
    assert found.udp.mapping in (expected.mapping, Mapping.UNKNOWN)
    assert found.udp.filtering in (expected.filtering, Filtering.UNKNOWN)


RFC5780 = ServerConfig(A, B)
CULPRITS = [
    (IgnoresChangeRequest, RFC5780, "ignores CHANGE-REQUEST"),
    (Refuses, RFC5780, "error 420"),
    (DropsChangeRequest, RFC5780, None),
    (DeadSecondAddress, RFC5780, "did not answer"),
    (DeafSecondAddress, RFC5780, "did not answer"),
    (WrongPort, RFC5780, None),
    (Liar, ServerConfig(A, B, advertised={SERVER_B: "10.1.2.3"}), "private"),
    (Liar, ServerConfig(A, B, advertised={SERVER_B: "0.0.0.0"}), "nobody's"),
    (Liar, ServerConfig(A, B, advertised={SERVER_B: SERVER_A}), "own address"),
]


@pytest.mark.parametrize("loss", [0.0, 0.1])
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(
    ("liar", "config", "blamed"), CULPRITS, ids=lambda v: getattr(v, "__name__", None)
)
def test_a_culprit_is_named_and_nothing_wrong_is_said(
    *, name: str, liar: type[Liar], config: ServerConfig, blamed: str | None, loss: float, seed: int
) -> None:
    found = ask(name, liar, config, seed, link=Link(loss=loss, delay=0.005))
    never_wrong(name, found)
    if blamed is not None and loss == 0.0:
        assert any(blamed in culprit for culprit in found.culprits), found.culprits
        assert any(e.test == "server.honesty" and e.server for e in found.evidence)


@pytest.mark.parametrize("name", KINDS)
def test_a_server_that_drops_change_request_is_found_out(name: str, seed: int) -> None:
    found = ask(name, DropsChangeRequest, RFC5780, seed)
    assert found.udp is not None
    assert found.udp.filtering is Filtering.UNKNOWN
    # Where the control needs no help it tells whose fault the silence is.
    if kind(name).expected.mapping in (Mapping.NONE, Mapping.ENDPOINT_INDEPENDENT):
        assert any("no answer came even to a socket" in culprit for culprit in found.culprits)


@pytest.mark.parametrize("name", ["symmetric", "symmetric-address"])
@pytest.mark.parametrize("liar", [IgnoresChangeRequest, Refuses, DropsChangeRequest])
def test_mapping_needs_no_change_request(name: str, liar: type[Liar], seed: int) -> None:
    found = ask(name, liar, RFC5780, seed)
    assert found.udp is not None
    assert found.udp.nat_type is NatType.SYMMETRIC
    assert found.udp.mapping is kind(name).expected.mapping


@pytest.mark.parametrize("name", KINDS)
def test_answers_to_nobodys_question_are_no_answers(name: str, seed: int) -> None:
    found = ask(name, WrongTransaction, RFC5780, seed)
    assert found.udp is not None
    assert found.udp.nat_type is NatType.INCONCLUSIVE
    assert found.udp.mapped_address is None
    assert any("answer none of the requests" in culprit for culprit in found.culprits)


@pytest.mark.parametrize("name", KINDS)
def test_garbage_beside_the_answers_does_no_harm(name: str, seed: int) -> None:
    found = ask(name, SendsGarbage, RFC5780, seed)
    assert found.udp is not None
    assert found.udp.nat_type is kind(name).expected.udp
    assert found.udp.filtering is kind(name).expected.filtering


# Ordinary servers.


@pytest.mark.parametrize("name", KINDS)
def test_one_ordinary_server_tells_no_type_but_an_open_mapping(name: str, seed: int) -> None:
    found = ask(name, Liar, ServerConfig(A), seed)
    assert found.udp is not None
    assert found.udp.filtering is Filtering.UNKNOWN
    expected = kind(name).expected
    known = Mapping.NONE if expected.mapping is Mapping.NONE else Mapping.UNKNOWN
    assert found.udp.mapping is known
    assert found.culprits == ()
    assert any(e.test == "udp.filtering" and "no second" in e.detail for e in found.evidence)


@pytest.mark.parametrize("loss", [0.0, 0.1])
@pytest.mark.parametrize("name", KINDS)
def test_two_ordinary_servers_tell_the_mapping(name: str, loss: float, seed: int) -> None:
    scenario = behind(name, seed=seed, link=Link(delay=0.005, loss=loss))
    second = Address(SERVER_B, 3478)
    for address in (A, second):
        server = Server(ServerConfig(address), entropy=random.Random(seed).randbytes)
        server.start(0)
        scenario.world.attach(server, scenario.server)
    found = classify(observe(scenario, servers=[A, second], tcp=False)[0])
    assert found.udp is not None
    expected = kind(name).expected
    if expected.udp is NatType.SYMMETRIC:
        assert found.udp.nat_type is NatType.SYMMETRIC
        # At one port each, the two cannot show that a mapping serves every port of an address.
        assert found.udp.mapping is Mapping.ADDRESS_AND_PORT_DEPENDENT
        assert any("would look the same" in e.detail for e in found.evidence)
    else:
        assert found.udp.mapping is expected.mapping
        assert found.udp.nat_type is NatType.INCONCLUSIVE
    assert found.udp.filtering is Filtering.UNKNOWN


def test_dead_servers_cost_nothing(seed: int) -> None:
    scenario = behind("port-restricted-cone", seed=seed, link=Link(delay=0.005))
    scenario.world.attach(Liar(RFC5780, random.Random(seed)), scenario.server)
    dead = [Address("192.52.193.250", port) for port in (3478, 3479, 3480)]
    found = observe(scenario, servers=[*dead, A])[0]
    verdict = classify(found)
    assert verdict.udp is not None
    assert verdict.udp.nat_type is NatType.PORT_RESTRICTED_CONE
    assert found.primary == A
    assert found.took < 3_000_000_000


def test_the_server_with_two_addresses_is_preferred(seed: int) -> None:
    scenario = behind("port-restricted-cone", seed=seed, link=Link(delay=0.02, jitter=0.01))
    plain = Address(SERVER_B, 19302)
    for config in (ServerConfig(plain), RFC5780):
        server = Server(config, entropy=random.Random(seed).randbytes)
        server.start(0)
        scenario.world.attach(server, scenario.server)
    found = observe(scenario, servers=[plain, A])[0]
    assert found.primary == A


# TCP.


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("liar", [CannotDial, CannotDialFromSecond])
@pytest.mark.parametrize("udp", [True, False])
def test_a_server_that_cannot_dial_is_not_taken_for_a_filter(
    name: str, liar: type[Liar], udp: bool, seed: int
) -> None:
    found = ask(name, liar, RFC5780, seed, tcp=True, udp=udp)
    expected = kind(name).expected
    assert found.tcp is not None
    assert found.tcp.mapping is expected.mapping
    assert found.tcp.filtering in (Filtering.UNKNOWN, expected.filtering)
    assert found.tcp.nat_type in (NatType.INCONCLUSIVE, expected.tcp)


@pytest.mark.parametrize("name", KINDS)
def test_a_server_without_connect_back_leaves_tcp_filtering_open(name: str, seed: int) -> None:
    config = ServerConfig(A, B, connect_back=False)
    found = ask(name, Liar, config, seed, tcp=True)
    assert found.tcp is not None
    assert found.tcp.mapping is kind(name).expected.mapping
    assert found.tcp.filtering is Filtering.UNKNOWN
    assert found.tcp.simultaneous_open is None
    said = [e for e in found.evidence if e.test == "tcp.filtering"]
    assert [e.outcome for e in said] == [Outcome.SKIPPED]
    assert "cannot connect back" in said[0].detail
    assert said[0].at > 0


@pytest.mark.parametrize("name", ["port-restricted-cone", "tcp-blocked"])
def test_a_server_without_tcp_does_not_make_tcp_blocked(name: str, seed: int) -> None:
    found = ask(name, OnlyUdp, RFC5780, seed, tcp=True)
    assert found.tcp is not None
    if name == "tcp-blocked":
        assert found.tcp.nat_type is NatType.TCP_BLOCKED
    else:
        assert found.tcp.nat_type is NatType.INCONCLUSIVE


@pytest.mark.parametrize("name", ["udp-blocked", "port-restricted-cone"])
@pytest.mark.parametrize("protocol", ["udp", "tcp", "both"])
def test_nobody_answers(name: str, protocol: str, seed: int) -> None:
    scenario = behind(name, seed=seed)
    found = classify(
        observe(scenario, servers=[A], udp=protocol != "tcp", tcp=protocol != "udp")[0]
    )
    for part in (found.udp, found.tcp):
        assert part is None or part.nat_type is NatType.INCONCLUSIVE
    assert found.behind_nat is None


@pytest.mark.parametrize("name", ["udp-blocked", "tcp-blocked"])
def test_one_protocol_alone_is_judged_with_the_help_of_the_other(name: str, seed: int) -> None:
    blocked_is_udp = name == "udp-blocked"
    found = ask(name, Liar, RFC5780, seed, udp=blocked_is_udp, tcp=not blocked_is_udp)
    part = found.udp if blocked_is_udp else found.tcp
    assert part is not None
    assert part.nat_type is (NatType.UDP_BLOCKED if blocked_is_udp else NatType.TCP_BLOCKED)
    assert (found.tcp if blocked_is_udp else found.udp) is None
