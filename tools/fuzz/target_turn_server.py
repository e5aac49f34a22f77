"""What must hold for the TURN server, whatever comes in at any of its sockets.

Shared by the coverage-guided fuzzer (python -m tools.fuzz) and the short run of every test session
(tests/fuzz/test_fuzz_turn_server.py).

The input is a script: octets choose what happens next (datagrams and connections of clients and of
peers, octets on streams cut anywhere, sockets that cannot be had or end, congestion, ICMP errors,
an operator's commands, time), and the rest is payload.  Among the payloads are requests of users
that the server knows, sound ones and ones with attributes as the script has them, so that runs get
deep before something odd arrives.

The judge keeps books of its own: which sockets are open, what the server has granted and until
when.  It demands that nothing is sent from where no socket is, relayed without a live permission or
against the policy, or left behind when everybody has gone.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import replace
from itertools import product

from stun.attributes import (
    ADDITIONAL_ADDRESS_FAMILY,
    CHANNEL_NUMBER,
    CONNECTION_ID,
    DATA,
    DONT_FRAGMENT,
    ERROR_CODE,
    EVEN_PORT,
    LIFETIME,
    MOBILITY_TICKET,
    NONCE,
    REALM,
    REQUESTED_ADDRESS_FAMILY,
    REQUESTED_TRANSPORT,
    RESERVATION_TOKEN,
    USERNAME,
    XOR_PEER_ADDRESS,
    XOR_RELAYED_ADDRESS,
)
from stun.codec import decode, encode
from stun.discovery import Transport
from stun.framing import StunStream, channel_data
from stun.message import Message
from stun.nonce import NonceMaker
from stun.registry import Class, Family, Method
from stun.sansio import (
    MILLISECOND,
    SECOND,
    Accepted,
    Address,
    Arrived,
    Cause,
    Closed,
    Congested,
    Connected,
    Dial,
    Handle,
    Hold,
    Instant,
    Listen,
    Opened,
    OpenUdp,
    Received,
    Relieved,
    Shut,
    SocketEvent,
    Transmit,
    Undeliverable,
    Write,
)
from stun.users import StaticUsers
from tools.fuzz.turn_server_scene import (
    CLIENTS,
    CONFIG,
    HOST6,
    INSIDE,
    KEYS,
    LISTENERS,
    OUTSIDE,
    OWN,
    PEERS,
    REALM_NAME,
    SECRETS,
    UNIX_TIME,
    USERS,
    scripts,
)
from turn.dataplane.base import InstallRoute, RemoveRoute
from turn.server.config import ListenAt
from turn.server.events import AllocationCreated, AllocationEnded
from turn.server.machine import Server
from turn.server.policy import PeerPolicy

CAUSES = tuple(Cause)
METHODS = tuple(Method)
MOST_STEPS = 2000
PERMISSION = 300 * SECOND
CHANNEL = 600 * SECOND
IDLE_AT_END = 7200 * SECOND


class Side:
    """One stream, as the driver has it."""

    def __init__(
        self,
        remote: Address,
        flow: tuple[Address, Transport] | None = None,
        relay: Address | None = None,
    ) -> None:
        self.remote = remote
        self.flow = flow
        """Of a client: what it connected to."""
        self.relay = relay
        """Of a peer: the relayed transport address that it is connected with."""
        self.answers = StunStream(channel_data=True)
        self.raw = False
        """A client data connection (RFC 6062): no messages any more."""
        self.held = self.congested = False
        self.connected = True


class World:
    """The other end of everything that the server asks for, led by a script."""

    def __init__(self, script: bytes) -> None:
        self.script = deque(script)
        self.now: Instant = SECOND
        self.users = StaticUsers(USERS, REALM_NAME)
        self.nonces = NonceMaker(SECRETS)
        self.config = CONFIG
        self.server = Server(
            CONFIG, self.users, self.nonces,
            entropy=random.Random(0).randbytes, unix_epoch=UNIX_TIME,
        )  # fmt: skip
        self.udp: dict[Address, Handle] = {}
        self.listeners: dict[Handle, Address] = {}
        self.streams: dict[Handle, Side] = {}
        self.handles: set[Handle] = set()
        self.accepted = self.transactions = 0
        self.events: deque[SocketEvent] = deque()
        # What the server has said, by which it is judged.
        self.asked: dict[bytes, tuple[Message, Address]] = {}
        self.relays: dict[tuple[Address, Address | Handle], list[Address]] = {}
        self.permitted: dict[tuple[Address, str], Instant] = {}
        self.identifiers: list[int] = [7, 8]
        self.tokens: list[bytes] = [bytes(8)]
        self.tickets: list[bytes] = [bytes(32)]
        self.granted = self.created = self.ended = 0
        self.reached: set[str] = set()
        self.server.start(self.now)
        self.drain()

    # The script. ----------------------------------------------------------------------------------

    def take(self) -> int:
        """Return the next octet of the script; zeros once it is at its end."""
        return self.script.popleft() if self.script else 0

    def some(self) -> bytes:
        return bytes(self.take() for _ in range(min(self.take(), len(self.script))))

    def peer(self) -> Address:
        return PEERS[self.take() % len(PEERS)]

    def transaction(self) -> bytes:
        self.transactions += 1
        return self.transactions.to_bytes(12)

    def payload(self, client: Address, server: Address | Handle) -> bytes:
        """Return what a client sends next."""
        choice = self.take() % 24
        padded = not isinstance(server, Address)
        match choice:
            case 0:
                return self.some()
            case 1:
                number = 0x4000 + self.take() % 4
                return channel_data(number, self.some(), pad=padded)
            case 2 | 3:
                message = Message.indication(Method.SEND, self.transaction())
                message.add(XOR_PEER_ADDRESS, self.peer()).add(DATA, self.some())
                if choice == 3:
                    message.add(DONT_FRAGMENT, True)
                return encode(message)
            case 4:
                return encode(Message.request(Method.BINDING, self.transaction()))
            case 5:
                # Nothing proven: any method, any attributes.
                message = Message(
                    METHODS[self.take() % len(METHODS)], Class(self.take() & 3), self.transaction()
                )
                self.add_odd(message)
                return encode(message, fingerprint=bool(self.take() & 1))
            case _:
                return self.proven(self.wish(choice), client)

    def wish(self, choice: int) -> Message:
        """Return a request of a method of TURN."""
        message = Message.request(Method.ALLOCATE, self.transaction())
        match choice:
            case 6 | 7 | 8:
                message.add(REQUESTED_TRANSPORT, 17)
                if choice == 7:
                    message.add(REQUESTED_ADDRESS_FAMILY, Family.IPV6)
            case 9 | 10:
                message.add(REQUESTED_TRANSPORT, 6)
            case 11:
                message.add(REQUESTED_TRANSPORT, 17).add(EVEN_PORT, bool(self.take() & 1))
            case 12:
                message.add(REQUESTED_TRANSPORT, 17)
                message.add(RESERVATION_TOKEN, self.tokens[self.take() % len(self.tokens)])
            case 13:
                message.add(REQUESTED_TRANSPORT, 17)
                message.add(ADDITIONAL_ADDRESS_FAMILY, Family.IPV6)
            case 14:
                message.add(REQUESTED_TRANSPORT, 17 if self.take() & 1 else 6)
                message.add(MOBILITY_TICKET, b"")
            case 15 | 16:
                message.method = Method.REFRESH
                if self.take() & 1:
                    message.add(LIFETIME, self.take() * 16)
                if self.take() & 1:
                    family = bytes((self.take() & 3, 0, 0, 0))
                    message.attributes.append((REQUESTED_ADDRESS_FAMILY.code, family))
                if choice == 16:
                    message.add(MOBILITY_TICKET, self.tickets[self.take() % len(self.tickets)])
            case 17 | 18:
                message.method = Method.CREATE_PERMISSION
                for _ in range(1 + self.take() % 3):
                    message.add(XOR_PEER_ADDRESS, self.peer())
            case 19:
                message.method = Method.CHANNEL_BIND
                message.add(CHANNEL_NUMBER, 0x4000 + self.take() % 4)
                message.add(XOR_PEER_ADDRESS, self.peer())
            case 20 | 21:
                message.method = Method.CONNECT
                message.add(XOR_PEER_ADDRESS, self.peer())
            case 22:
                message.method = Method.CONNECTION_BIND
                message.add(CONNECTION_ID, self.identifiers[-1 - self.take() % 2])
            case _:
                message.method = METHODS[self.take() % len(METHODS)]
                self.add_odd(message)
        return message

    def add_odd(self, message: Message) -> None:
        for _ in range(self.take() % 6):
            code = self.take() << 8 & 0x8000 | self.take() & 0x3F
            message.attributes.append((code, self.some()[:40]))

    def proven(self, message: Message, client: Address) -> bytes:
        """Return a request as a user of the server sends it, or almost."""
        odd = self.take()
        name = "bob" if odd & 0x0F == 1 else "alice"
        stamp = UNIX_TIME + self.now // SECOND - (4000 if odd & 0xF0 == 0x10 else 0)
        message.add(USERNAME, name).add(REALM, REALM_NAME)
        message.add(NONCE, self.nonces.make(client, stamp))
        self.asked[message.transaction_id] = (message, client)
        octets = encode(message, key=KEYS[name], fingerprint=bool(odd & 0x80))
        if odd & 0x70 == 0x20:
            at = self.take() % len(octets)
            octets = octets[:at] + bytes([octets[at] ^ 1 << (self.take() & 7)]) + octets[at + 1 :]
        return octets

    # The driver. ----------------------------------------------------------------------------------

    def drain(self) -> None:
        """Carry out what the server asks for, and judge it."""
        while True:
            output = self.server.poll()
            if output is None:
                # Only with its queue drained is the machine told what became of orders.
                if not self.events:
                    return
                self.server.on_socket(self.events.popleft(), self.now)
                continue
            self.reached.add(type(output).__name__)
            match output:
                case OpenUdp(handle, local) | Listen(handle, local):
                    self.open(handle, local, udp=isinstance(output, OpenUdp))
                case Transmit():
                    self.judge_datagram(output)
                case Write(handle, data):
                    self.judge_write(self.streams[handle], handle, data)
                case Hold(handle, held):
                    self.streams[handle].held = held
                case Dial(handle, local, remote):
                    self.dial(handle, local, remote)
                case Shut(handle):
                    self.shut(handle)
                case InstallRoute() | RemoveRoute():
                    raise AssertionError("no data plane was announced")
                case AllocationCreated():
                    self.created += 1
                case AllocationEnded():
                    self.ended += 1
                case _:
                    pass  # what is told to people

    def open(self, handle: Handle, local: Address, *, udp: bool) -> None:
        assert handle > 0
        assert handle not in self.handles, "a handle was used twice"
        self.handles.add(handle)
        listener = any(local == at.local for at in LISTENERS)
        choice = 0 if listener else self.take()
        if choice >= 0xF0:
            self.events.append(Closed(handle, CAUSES[choice % len(CAUSES)]))
            return
        places = self.udp if udp else {a: h for h, a in self.listeners.items()}
        assert local not in places, "an address was bound twice"
        if udp:
            self.udp[local] = handle
        else:
            self.listeners[handle] = local
        self.events.append(Opened(handle, local))

    def dial(self, handle: Handle, local: Address, remote: Address) -> None:
        assert handle not in self.handles
        self.handles.add(handle)
        assert local in self.listeners.values(), "dialled from where nothing listens"
        assert self.may_reach(remote), f"dialled {remote} against the policy"
        side = self.streams[handle] = Side(remote, relay=local)
        side.connected = False

    def shut(self, handle: Handle) -> None:
        if handle in self.streams:
            del self.streams[handle]
        elif handle in self.listeners:
            del self.listeners[handle]
        else:
            (local,) = [a for a, h in self.udp.items() if h == handle]
            del self.udp[local]
        self.events = deque(e for e in self.events if getattr(e, "handle", None) != handle)

    # The judge. -----------------------------------------------------------------------------------

    def may_reach(self, peer: Address) -> bool:
        """Whether the server may have to do with a peer: by policy, or as another's relay."""
        if self.config.policy.check(peer.host).allowed:
            return True
        return peer in self.udp or peer in self.listeners.values()

    def judge_datagram(self, sent: Transmit) -> None:
        assert sent.source in self.udp, "sent from where no socket is"
        if any(sent.source == at.local for at in LISTENERS):
            assert sent.destination in CLIENTS
            self.judge_answer(sent.data, (sent.destination, sent.source))
            return
        host = sent.destination.host
        if host in (INSIDE, HOST6):
            host = {INSIDE: OUTSIDE}.get(host, host)  # another client's relayed transport address
        until = self.permitted.get((sent.source, host), 0)
        assert self.now < until, f"relayed to {sent.destination} without a permission"
        assert self.may_reach(sent.destination)

    def judge_write(self, side: Side, handle: Handle, data: bytes) -> None:
        assert side.connected, "written before it is connected"
        if side.flow is None or side.raw:
            return
        _, transport = side.flow
        messages = [data] if transport is Transport.DTLS else side.answers.feed(data)
        assert side.answers.error is None, "what came on a stream is not a message"
        for octets in messages:
            self.judge_answer(octets, (side.remote, handle))

    def judge_answer(self, octets: bytes, flow: tuple[Address, Address | Handle]) -> None:
        if octets[0] >= 0x40:
            return
        message = decode(octets)
        assert message.message_class is not Class.REQUEST
        if message.message_class is Class.INDICATION:
            identifier = message.get(CONNECTION_ID)
            if identifier is not None:
                self.identifiers.append(identifier)
            return
        request, client = self.asked.pop(message.transaction_id, (None, None))
        if request is None:
            assert message.message_class is Class.ERROR or message.method == Method.BINDING, (
                "a success that nobody proved to deserve"
            )
            return
        assert client == flow[0]
        if message.message_class is Class.ERROR:
            error = message.get(ERROR_CODE)
            assert error is not None
            assert 300 <= error.code < 500 or error.code == 508
            return
        if message.method == Method.BINDING:
            return
        # A request that was changed on its way draws no success.
        assert request.method == message.method
        self.note(request, message, flow)

    def note(
        self, request: Message, response: Message, flow: tuple[Address, Address | Handle]
    ) -> None:
        """Enter in the books what a success grants."""
        match response.method:
            case Method.ALLOCATE:
                self.granted += 1
                self.relays[flow] = [
                    Address({OUTSIDE: INSIDE}.get(a.host, a.host), a.port)
                    for a in response.all(XOR_RELAYED_ADDRESS)
                ]
                assert self.relays[flow]
                self.tokens.extend(response.all(RESERVATION_TOKEN))
                self.tickets.extend(response.all(MOBILITY_TICKET))
            case Method.REFRESH:
                ticket = request.get(MOBILITY_TICKET)
                if ticket:
                    # The allocation has moved here; which one it was, only the server knows.
                    known = [relay for relays in self.relays.values() for relay in relays]
                    self.relays[flow] = known
                    self.tickets.extend(response.all(MOBILITY_TICKET))
            case Method.CREATE_PERMISSION | Method.CHANNEL_BIND:
                lifetime = CHANNEL if response.method == Method.CHANNEL_BIND else PERMISSION
                for peer, relay in product(request.all(XOR_PEER_ADDRESS), self.relays[flow]):
                    place = relay, peer.host
                    until = self.now + lifetime
                    self.permitted[place] = max(self.permitted.get(place, 0), until)
            case Method.CONNECT:
                identifier = response.get(CONNECTION_ID)
                assert identifier
                self.identifiers.append(identifier)
            case Method.CONNECTION_BIND:
                handle = flow[1]
                assert not isinstance(handle, Address)
                self.streams[handle].raw = True
            case _:
                raise AssertionError(f"a success to {response}")

    # What may happen. -----------------------------------------------------------------------------

    def step(self) -> None:
        """Let one thing happen."""
        server, now = self.server, self.now
        match self.take() % 16:
            case 0 | 1 | 2:
                server.receive(self.from_client(), now)
            case 3:
                at = LISTENERS[self.take() % len(LISTENERS)]
                self.accept(at, CLIENTS[2] if at.local.is_ipv6 else CLIENTS[self.take() & 1])
            case 4 | 5 | 6 if (handle := self.pick(client=True)) is not None:
                side = self.streams[handle]
                octets = self.some() if side.raw else self.payload(side.remote, handle)
                cut = self.take() if self.take() & 1 else len(octets)
                self.tell(handle, *filter(None, (octets[:cut], octets[cut:])))
            case 7 if (handle := self.pick()) is not None:
                del self.streams[handle]
                self.events.append(Closed(handle, CAUSES[self.take() % len(CAUSES)]))
            case 8 if relayed := self.relayed(udp=True):
                local = relayed[self.take() % len(relayed)]
                server.receive(Received(self.some(), self.peer(), local), now)
            case 9 if relayed := self.relayed(udp=False):
                local = relayed[self.take() % len(relayed)]
                listener = next(h for h, a in self.listeners.items() if a == local)
                self.accepted += 1
                peer = self.peer()
                self.streams[-self.accepted] = Side(peer, relay=local)
                self.events.append(Accepted(listener, -self.accepted, local, peer))
            case 10 if (handle := self.pick(client=False)) is not None:
                side = self.streams[handle]
                if side.connected:
                    self.tell(handle, self.some() * (1 + self.take() * (self.take() & 1)))
                else:
                    side.connected = True
                    self.events.append(Connected(handle, Address(INSIDE, 50_000), side.remote))
            case 11 if (handle := self.pick()) is not None and self.streams[handle].connected:
                side = self.streams[handle]
                side.congested = not side.congested
                self.events.append(Congested(handle) if side.congested else Relieved(handle))
            case 12:
                locals_ = list(self.udp)
                local = locals_[self.take() % len(locals_)]
                event = Undeliverable(local, self.peer(), self.take() & 15, self.take() & 7, 1400)
                self.events.append(event)
            case 13:
                self.command()
            case _:
                self.pass_time(self.take() ** 2 * 10 * MILLISECOND)
        self.drain()
        relays = {None, *self.listeners.values()}
        assert all(side.relay in relays for side in self.streams.values()), (
            "a peer's connection outlived its allocation"
        )

    def from_client(self) -> Received:
        at = LISTENERS[self.take() & 2]
        client = CLIENTS[2] if at.local.is_ipv6 else CLIENTS[self.take() & 1]
        return Received(self.payload(client, at.local), client, at.local)

    def accept(self, at: ListenAt, client: Address) -> None:
        udp = at.transport is Transport.UDP
        listener = self.udp.get(at.local) if udp else None
        if listener is None:
            listener = next((h for h, a in self.listeners.items() if a == at.local), None)
        if listener is None:
            return
        self.accepted += 1
        secure = udp or bool(self.take() & 1)
        transport = Transport.DTLS if udp else Transport.TLS if secure else Transport.TCP
        self.streams[-self.accepted] = Side(client, (at.local, transport))
        self.events.append(Accepted(listener, -self.accepted, at.local, client, secure))

    def tell(self, handle: Handle, *pieces: bytes) -> None:
        for piece in pieces:
            self.events.append(Arrived(handle, piece))

    def pick(self, *, client: bool | None = None) -> Handle | None:
        """Choose a stream."""
        handles = [h for h, s in self.streams.items() if client in (None, s.flow is not None)]
        return handles[self.take() % len(handles)] if handles else None

    def relayed(self, *, udp: bool) -> list[Address]:
        places = self.udp if udp else self.listeners.values()
        return [a for a in places if all(a != at.local for at in LISTENERS)]

    def command(self) -> None:
        server, now = self.server, self.now
        match self.take() % 5:
            case 0:
                sessions = list(server.sessions())
                for session in sessions:
                    assert session.expires > now - CHANNEL
                    assert session.connections <= CONFIG.limits.tcp_connections_per_allocation
                if sessions:
                    one = sessions[self.take() % len(sessions)]
                    assert server.disconnect(now, session=one.session) == 1
            case 1:
                server.disconnect(now, username=("alice", "bob", "nobody")[self.take() % 3])
            case 2:
                deny = [f"{self.peer().host}"] if self.take() & 1 else []
                policy = PeerPolicy(deny=deny, own=OWN)
                self.config = replace(CONFIG, policy=policy)
                server.reconfigure(self.config, self.users, now)
            case 3 if self.take() == 0x33:
                server.drain(now)
            case _:
                assert server.counters
                assert server.metrics is not None

    def pass_time(self, duration: int) -> None:
        """Let time pass, from one deadline to the next."""
        end = self.now + duration
        for _ in range(100_000):
            due = self.server.deadline()
            if due is None or due > end:
                self.now = end
                return
            self.now = max(self.now, due)
            self.server.on_deadline(self.now)
            self.drain()
        raise AssertionError("the deadline does not move on")

    def finish(self) -> None:
        """Let everybody go: nothing may be left of them."""
        for handle in [h for h, side in self.streams.items() if side.flow is not None]:
            # One at a time: the end of one may shut another.
            if handle in self.streams:
                del self.streams[handle]
                self.events.append(Closed(handle, Cause.RESET))
                self.drain()
        self.pass_time(IDLE_AT_END)
        assert not list(self.server.sessions()), "an allocation was left behind"
        assert not self.relayed(udp=True), "a relayed transport address was left open"
        assert not self.relayed(udp=False)
        assert not self.streams, "a connection was left open"
        assert self.created == self.ended
        assert self.created >= self.granted
        metrics = self.server.metrics
        assert metrics.allocations == metrics.permissions == metrics.channels == 0
        assert metrics.connections == 0
        self.server.stop(self.now)
        self.drain()
        assert not self.udp
        assert not self.listeners


def check_script(script: bytes) -> set[str]:
    """Raise ``AssertionError``, or whatever escapes, when the server does wrong.

    Returns the names of what the server ordered and told.
    """
    world = World(script)
    for _ in range(MOST_STEPS):
        if not world.script:
            break
        world.step()
    world.finish()
    return world.reached


TARGETS = {"turn-server": (check_script, scripts)}
