"""The real STUN client and server machines, talking through every simulated NAT.

The checks are those of RFC 5780 section 4, each on sockets of its own, and what they find must be
what the NAT was built to do.
"""

from __future__ import annotations

from collections import deque
from itertools import count

import pytest

from nattype.lab.sim import SERVER_A, SERVER_A6, SERVER_B, SERVER_B6, SimOptions, behind, pair
from nattype.model import (
    NAMED_KINDS,
    Allocation,
    Filtering,
    Kind,
    Link,
    Mapping,
    Unsolicited,
    grid,
    kind,
)
from stun.attributes import (
    CHANGE_REQUEST,
    CONNECT_BACK,
    CONNECT_BACK_RESULT,
    MAPPED_ADDRESS,
    OTHER_ADDRESS,
    PADDING,
    XOR_MAPPED_ADDRESS,
    ChangeRequest,
    ConnectBack,
    ConnectBackResult,
)
from stun.client import Client, Config
from stun.codec import Message
from stun.outcome import Event, Failed, Indication, Reply
from stun.registry import Method
from stun.sansio import (
    Accepted,
    Address,
    Connected,
    Dial,
    Instant,
    Listen,
    Opened,
    OpenUdp,
    Output,
    Received,
    SocketEvent,
)
from stun.server import Server, ServerConfig, Site, Started

EVERY_KIND = (*NAMED_KINDS, *grid())
PORTS = (3478, 3479)


class Asker:
    """A client with sockets of its own: opens them, asks from them, keeps what came of it."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.numbers = count(1)
        self.orders: deque[Output] = deque()
        self.told: list[SocketEvent] = []

    def receive(self, packet: Received, now: Instant) -> None:
        self.client.receive(packet, now)

    def on_socket(self, event: SocketEvent, now: Instant) -> None:
        self.told.append(event)
        self.client.on_socket(event, now)

    def on_deadline(self, now: Instant) -> None:
        self.client.on_deadline(now)

    def poll(self) -> Output | Event | None:
        return self.orders.popleft() if self.orders else self.client.poll()

    def deadline(self) -> Instant | None:
        return self.client.deadline()


class Talk:
    """A world with the real server on it, and blocking calls for one host of it."""

    def __init__(
        self,
        which: Kind | str,
        seed: int,
        *,
        link: Link = Link(),  # noqa: B008
        options: SimOptions = SimOptions(),  # noqa: B008
        ipv6: bool = False,
    ) -> None:
        self.scenario = behind(which, seed=seed, link=link, options=options)
        self.world = self.scenario.world
        config = ServerConfig(
            Address(SERVER_A, PORTS[0]),
            Address(SERVER_B, PORTS[1]),
            more=(Site(Address(SERVER_A6, PORTS[0]), Address(SERVER_B6, PORTS[1])),),
        )
        server = Server(config, entropy=self.world.entropy("server"))
        self.server = self.world.attach(server, self.scenario.server)
        server.start(self.world.now)
        self.asker = Asker(Client(Config(), entropy=self.world.entropy("client")))
        self.events: list[Event] = []
        self.attached = self.world.attach(
            self.asker,
            self.scenario.host,
            self.events.append,  # type: ignore[arg-type]  # an event, not an Output
        )
        self.world.run()
        assert Started() in self.server.events
        self.host = self.scenario.host.address(ipv6=ipv6)
        self.a, self.b = (SERVER_A6, SERVER_B6) if ipv6 else (SERVER_A, SERVER_B)
        self.quad = [Address(host, port) for host in (self.a, self.b) for port in PORTS]

    def udp(self) -> Address:
        """Return the address of a fresh socket."""
        handle = next(self.asker.numbers)
        self.asker.orders.append(OpenUdp(handle, Address(self.host, 0)))
        self.attached.pump()
        opened = self.asker.told[-1]
        assert isinstance(opened, Opened)
        return opened.local

    def ask(
        self, local: Address, server: Address, change: ChangeRequest | None = None, padding: int = 0
    ) -> Reply | Failed:
        """Send a Binding request and wait for its end."""
        message = Message.request(
            Method.BINDING, self.world.random(f"{self.world.now}").randbytes(12)
        )
        if change is not None:
            message.add(CHANGE_REQUEST, change)
        if padding:
            message.add(PADDING, bytes(padding))
        self.asker.client.request(message, destination=server, source=local, now=self.world.now)
        return self._outcome()

    def _outcome(self) -> Reply | Failed:
        def ended() -> bool:
            return any(isinstance(event, Reply | Failed) for event in self.events)

        assert self.world.run(until=ended, max_time=120)
        outcome = next(event for event in self.events if isinstance(event, Reply | Failed))
        self.events.clear()
        assert isinstance(outcome, Reply | Failed)
        return outcome

    def mapped(self, local: Address, server: Address) -> Address | None:
        outcome = self.ask(local, server)
        return outcome.message.get(XOR_MAPPED_ADDRESS) if isinstance(outcome, Reply) else None

    def dial(self, server: Address, local: Address | None = None) -> int | None:
        """Open a connection; return its handle, ``None`` if that failed."""
        handle = next(self.asker.numbers)
        self.asker.orders.append(Dial(handle, local or Address(self.host, 0), server))
        self.world.run(
            until=lambda: any(getattr(e, "handle", 0) == handle for e in self.asker.told),
            max_time=200,
        )
        return handle if isinstance(self.asker.told[-1], Connected) else None

    def ask_over(self, handle: int, message: Message | None = None) -> Message:
        """Send a Binding request over a connection; return the response."""
        self.asker.client.request_over(handle, message, now=self.world.now)
        outcome = self._outcome()
        assert isinstance(outcome, Reply), outcome
        return outcome.message


def blocks_udp(which: Kind) -> bool:
    return any(box.udp_blocked for box in which.boxes)


def blocks_tcp(which: Kind) -> bool:
    return any(box.tcp_blocked for box in which.boxes)


@pytest.mark.parametrize("ipv6", [False, True], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("which", EVERY_KIND, ids=lambda k: k.name)
class TestBehaviourDiscovery:
    """RFC 5780 section 4.3 and 4.4 on a faultless path."""

    def test_mapping(self, which: Kind, ipv6: bool, seed: int) -> None:
        talk = Talk(which, seed, ipv6=ipv6)
        local = talk.udp()
        a1, _, b1, b2 = talk.quad
        m1, m2, m3 = (talk.mapped(local, server) for server in (a1, b1, b2))
        if blocks_udp(which):
            assert (m1, m2, m3) == (None, None, None)
            return
        expected = which.expected.mapping
        if m1 == local:
            assert expected is Mapping.NONE
        elif m1 == m2:
            assert expected is Mapping.ENDPOINT_INDEPENDENT
        elif m2 == m3:
            assert expected is Mapping.ADDRESS_DEPENDENT
        else:
            assert expected is Mapping.ADDRESS_AND_PORT_DEPENDENT
        assert talk.mapped(local, a1) == m1

    def test_filtering(self, which: Kind, ipv6: bool, seed: int) -> None:
        if blocks_udp(which):
            return  # test_mapping has shown that nothing passes
        talk = Talk(which, seed, ipv6=ipv6)
        results = []
        for change in (ChangeRequest(True, True), ChangeRequest(False, True)):
            local = talk.udp()
            assert isinstance(talk.ask(local, talk.quad[0]), Reply)
            results.append(isinstance(talk.ask(local, talk.quad[0], change), Reply))
        found = {
            (True, True): {Filtering.ENDPOINT_INDEPENDENT, Filtering.NONE},
            (False, True): {Filtering.ADDRESS_DEPENDENT},
            (False, False): {Filtering.ADDRESS_AND_PORT_DEPENDENT},
        }[results[0], results[1]]
        assert which.expected.filtering in found

    def test_tcp_mapping(self, which: Kind, ipv6: bool, seed: int) -> None:
        talk = Talk(which, seed, ipv6=ipv6)
        local = Address(talk.host, 5000)
        a1, _, b1, b2 = talk.quad
        handles = [talk.dial(server, local) for server in (a1, b1, b2)]
        if blocks_tcp(which):
            assert handles == [None, None, None]
            return
        mapped = [
            talk.ask_over(handle).get(XOR_MAPPED_ADDRESS)
            for handle in handles
            if handle is not None
        ]
        assert len(mapped) == 3
        m1, m2, m3 = mapped
        match which.expected.mapping:
            case Mapping.NONE:
                assert {m1, m2, m3} == {local}
            case Mapping.ENDPOINT_INDEPENDENT:
                assert m1 == m2 == m3 != local
            case Mapping.ADDRESS_DEPENDENT:
                assert m1 != m2 == m3
            case _:
                assert len({m1, m2, m3}) == 3

    def test_tcp_filtering(self, which: Kind, ipv6: bool, seed: int) -> None:
        if blocks_tcp(which):
            return
        talk = Talk(which, seed, ipv6=ipv6)
        filtering, unsolicited = _tcp_filter(which)
        for number in (1, 2):
            result = _connect_back(talk, number)
            open_to = {Filtering.ENDPOINT_INDEPENDENT: {1, 2}, Filtering.NONE: {1, 2}}
            passes = number in open_to.get(filtering, {1} if "address-dep" in filtering else set())
            if passes:
                assert result.established == 1, (number, result)
            else:
                outcome = {
                    Unsolicited.RST: result.refused,
                    Unsolicited.ICMP: result.unreachable,
                }.get(unsolicited, result.timed_out)
                assert outcome == 1, (number, result)

    def test_tcp_simultaneous_open(self, which: Kind, ipv6: bool, seed: int) -> None:
        if blocks_tcp(which):
            return
        talk = Talk(which, seed, ipv6=ipv6, link=Link(delay=0.02))
        handle = talk.dial(talk.quad[0], Address(talk.host, 6000))
        assert handle is not None
        request = Message.request(Method.BINDING, bytes(12))
        request.add(CONNECT_BACK, ConnectBack(3, 1, 300, 2000))
        granted = talk.ask_over(handle, request).get(CONNECT_BACK)
        assert granted is not None
        assert granted.port
        silent = Address(talk.a, granted.port)
        ours = talk.dial(silent, Address(talk.host, 6000))
        # The server dials the source of the control connection, so only a mapping that does not
        # depend on the destination's port leads there.
        reachable = which.expected.mapping not in (Mapping.ADDRESS_AND_PORT_DEPENDENT,)
        assert (ours is not None) == reachable


def _tcp_filter(which: Kind) -> tuple[Filtering, Unsolicited]:
    unsolicited = [box.unsolicited_tcp for box in which.boxes] or [Unsolicited.DROP]
    return which.expected.filtering, unsolicited[0]


def _connect_back(talk: Talk, number: int) -> ConnectBackResult:
    local = Address(talk.host, 7000 + number)
    handle = talk.dial(talk.quad[0], local)
    assert handle is not None
    talk.asker.orders.append(Listen(next(talk.asker.numbers), local))
    request = Message.request(Method.BINDING, bytes([number] * 12))
    request.add(CONNECT_BACK, ConnectBack(number, 1, 100, 2000))
    granted = talk.ask_over(handle, request).get(CONNECT_BACK)
    assert granted is not None
    assert granted.count == 1

    def reported() -> list[ConnectBackResult]:
        messages = [e.message for e in talk.events if isinstance(e, Indication)]
        results = [message.get(CONNECT_BACK_RESULT) for message in messages]
        return [result for result in results if result is not None]

    assert talk.world.run(until=lambda: bool(reported()), max_time=10)
    [result] = reported()
    if result.established:
        assert any(isinstance(event, Accepted) for event in talk.asker.told)
    talk.events.clear()
    return result


class TestPaths:
    def test_other_address_is_the_second_one(self, seed: int) -> None:
        talk = Talk("open", seed)
        outcome = talk.ask(talk.udp(), talk.quad[0])
        assert isinstance(outcome, Reply)
        assert outcome.message.get(OTHER_ADDRESS) == Address(SERVER_B, PORTS[1])

    def test_retransmission_gets_through_loss(self, seed: int) -> None:
        talk = Talk("symmetric", seed, link=Link(loss=0.2, delay=0.03, jitter=0.02))
        outcomes = [talk.ask(talk.udp(), talk.quad[0]) for _ in range(40)]
        answered = [outcome for outcome in outcomes if isinstance(outcome, Reply)]
        # A transaction of seven sends fails with probability 0.36 ** 7, below 1 in 1000.
        assert len(answered) >= 38
        assert any(outcome.attempts > 1 for outcome in answered)

    def test_a_request_into_silence_ends_after_39_5_seconds(self, seed: int) -> None:
        talk = Talk("udp-blocked", seed)
        began = talk.world.now
        outcome = talk.ask(talk.udp(), talk.quad[0])
        assert isinstance(outcome, Failed)
        # RFC 8489 section 6.2.1: with the default RTO, Rc and Rm "the client will consider the
        # transaction timed out" after 39500 ms.
        assert talk.world.now - began == 39_500_000_000

    def test_an_alg_fools_mapped_address_but_not_xor_mapped_address(self, seed: int) -> None:
        """RFC 8489 section 14.2: why XOR-MAPPED-ADDRESS exists."""
        talk = Talk("port-restricted-cone", seed, options=SimOptions(alg=True))
        local = talk.udp()
        classic = Message.request(Method.BINDING, bytes(12))
        classic.cookie = 0x12345678  # an RFC 3489 client gets MAPPED-ADDRESS
        talk.asker.client.request(
            classic, destination=talk.quad[0], source=local, now=talk.world.now
        )
        outcome = talk._outcome()
        assert isinstance(outcome, Reply)
        mapped = outcome.message.get(MAPPED_ADDRESS)
        assert mapped is not None
        assert mapped.host == local.host, "the gateway has rewritten it"
        xored = talk.mapped(local, talk.quad[0])
        assert xored is not None
        assert xored.host == talk.scenario.boxes[0].external_addresses()[0]

    @pytest.mark.parametrize("drops", [False, True])
    def test_fragments(self, drops: bool, seed: int) -> None:
        talk = Talk("port-restricted-cone", seed, options=SimOptions(drop_fragments=drops))
        outcome = talk.ask(talk.udp(), talk.quad[0], padding=1500)
        assert isinstance(outcome, Failed if drops else Reply)

    def test_sequential_ports_can_be_predicted(self, seed: int) -> None:
        talk = Talk("symmetric-sequential", seed)
        assert kind("symmetric-sequential").boxes[0].allocation is Allocation.SEQUENTIAL
        local = talk.udp()
        mapped = [talk.mapped(local, server) for server in talk.quad]
        ports = [address.port for address in mapped if address is not None]
        assert ports == list(range(ports[0], ports[0] + 4))

    def test_the_inbound_first_poison(self, seed: int) -> None:
        talk = Talk("port-restricted-poisoned", seed)
        local = talk.udp()
        a1, _, b1, b2 = talk.quad
        m1 = talk.mapped(local, a1)
        assert isinstance(talk.ask(local, a1, ChangeRequest(True, True)), Failed)
        assert talk.mapped(local, b1) == m1
        assert talk.mapped(local, b2) != m1, "the answer of the change came first and cost the port"

    def test_two_sites_see_each_other_as_the_server_does(self, seed: int) -> None:
        scenario = pair("full-cone", "full-cone-random", seed=seed)
        world = scenario.world
        server = Server(ServerConfig(Address(SERVER_A, 3478)), entropy=world.entropy("server"))
        world.attach(server, scenario.server)
        server.start(world.now)
        world.run()
        replies: list[Event] = []
        askers = []
        for site in scenario.sites:
            asker = Asker(Client(entropy=world.entropy(site.host.name)))
            world.attach(asker, site.host, replies.append)  # type: ignore[arg-type]
            local = Address(site.host.address(), 5000)
            asker.orders.append(OpenUdp(1, local))
            world.run()
            asker.client.request(destination=Address(SERVER_A, 3478), source=local, now=world.now)
            askers.append(asker)
        world.run()
        hosts = [
            reply.message.get(XOR_MAPPED_ADDRESS).host  # type: ignore[union-attr]
            for reply in replies
            if isinstance(reply, Reply)
        ]
        assert hosts == [site.boxes[0].external_addresses()[0] for site in scenario.sites]
