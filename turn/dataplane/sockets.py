"""The data plane on the system's sockets: batches in, a table of routes, batches out.

Theory of operation.  What is ready is served a round at a time (:mod:`turn.dataplane.wakeups`).
From a listener up to :data:`turn.dataplane.mmsg.BATCH` datagrams are read with one system call.
Source and channel number lie in memory side by side and are the key of :attr:`Listener.routes`.  A
hit is a :class:`turn.dataplane.flows.Flow`: what follows the header is sent to the peer from where
it was read.  Datagrams of one flow that were read together leave together, as one segmented
datagram (GSO).  In the other direction ChannelData's header is written before the datagram, where
room was left for it, and what goes to all clients leaves with one system call for each listener.

Where there is a faster plane (:mod:`turn.dataplane.kernel`), that gets the same routes, and here
comes what it passes up.  Datagrams are then not joined on the way in, for it takes none apart.

A miss is given to the machine.  Bare Binding requests, of which a public server gets more than of
anything else, become their answers where they lie, a batch at a time.

Nothing is ever looked at without a bound: per round at most :data:`EVENTS` sockets, a batch each.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from stun.datagrams import Core, UdpDatagrams, is_encrypted
from stun.icmp import read_errors
from stun.responder import BARE_ANSWER
from stun.sansio import (
    SECOND,
    Address,
    Closed,
    Handle,
    Instant,
    Opened,
    OpenUdp,
    Received,
    Security,
    SocketEvent,
    Transmit,
    Undeliverable,
)
from stun.sockaddr import cause_of_bind, detail_of, from_sockaddr, is_wildcard
from turn.dataplane.base import FastPlane, Route, RouteKey
from turn.dataplane.bindings import Bindings
from turn.dataplane.bursts import take_burst
from turn.dataplane.flows import (
    BUSY_SHARE,
    CHANNEL,
    Flow,
    Listener,
    Relay,
    SockAddr,
    descriptors,
    why,
)
from turn.dataplane.mmsg import Inbox
from turn.dataplane.names import NAME_SIZE, pack_name, unpack_name
from turn.dataplane.overhearing import Overhearing
from turn.dataplane.successive import Successive
from turn.dataplane.wakeups import READY, Events, Wakeups

if TYPE_CHECKING:
    from turn.dataplane.loop import SharedSelector

PEER_BATCH: Final = 32
"""Datagrams read from one peer in one wake-up."""
BUSY: Final = 32
"""Packets after which a flow gets a socket of its own."""
NEVER: Final = 1 << 30
SETTLING: Final = SECOND
"""How long the source of a packet is still checked on the socket of one flow alone.

Between bind and connect it takes packets from everybody, and those that the kernel had in its hands
at that moment may be queued a little later.
"""

_BARE = bytes.fromhex("0001 0000 2112 a442")
_BARE_SIZE = 20
_NAME_V4 = 14


class SocketPlane:
    """A :class:`stun.datagrams.Datagrams` that is a :class:`turn.dataplane.base.DataPlane` too.

    ``bindings`` answers bare Binding requests; ``observe`` is given how long each datagram took, in
    nanoseconds, that was passed to the machine.  ``fast`` sees packets before this one does, and is
    told of each route and its end.
    """

    def __init__(
        self,
        core: Core,
        *,
        bindings: Bindings | None = None,
        observe: Callable[[int], None] | None = None,
        fast: FastPlane | None = None,
    ) -> None:
        self._core = core
        self._fast = fast
        self.given: Callable[[Address], socket.socket | None] = lambda _: None
        """Returns the bound socket of a listener where it is not to be made here."""
        self._bindings = bindings
        self._observe = observe
        self._listeners: dict[Handle, Listener] = {}
        self._relays: dict[Handle, Relay] = {}
        self._from: dict[Address, Listener | Relay] = {}
        self._by_fd: dict[int, Flow | Listener | Relay] = {}
        self._flows: dict[RouteKey, Flow] = {}
        # A wildcard listener must learn from the kernel where each datagram was sent to.
        self._overheard = Overhearing(core, self._heard)
        self._wildcards = UdpDatagrams(self._overheard)
        self._inbox = Inbox()
        self._inbox6: Inbox | None = None
        self._peers = Inbox(128, named=False)
        self._refused: Counter[int] = Counter()
        self._counts: Counter[str] = Counter()
        self._promoted = 0
        self._successive = Successive(self._refused)
        self.received = self.to_peers = self.to_clients = 0
        self._wakeups = Wakeups(core, self._serve, self._by_fd)

    def share(self, selector: SharedSelector, fail: Callable[[BaseException], None]) -> None:
        """Be served by an event loop's own selector: :meth:`turn.dataplane.wakeups.Wakeups.share`.

        To be called before anything is opened.
        """
        self._wakeups.share(selector, fail)

    def relay_beside(self, fast: FastPlane | None) -> None:
        """Have this faster plane see packets first from now on, or none; it learns every route.

        The one before has been closed.  Routes of wildcard listeners, which are not known here,
        come to the new one when they are renewed.
        """
        before, self._fast = self._fast, fast
        if before is not None:
            self._counts.update(before.counters())
        for listener in self._listeners.values():
            listener.let_join(fast is None)
        if fast is not None:
            for flow in self._flows.values():
                fast.install(flow.route, flow.expires)

    # Sockets. -------------------------------------------------------------------------------------

    def open(self, order: OpenUdp) -> Opened | Closed:
        """Bind a socket and start to read it."""
        handle, local = order.handle, order.local
        if is_wildcard(local.host):
            return self._wildcards.open(order)
        try:
            port: Listener | Relay
            if order.serves or order.security is not Security.NONE:
                port = self._listeners[handle] = Listener(
                    handle,
                    local,
                    order.security,
                    may_join=self._fast is None,
                    sock=self.given(local),
                )
            else:
                port = self._relays[handle] = Relay(handle, local)
        except OSError as error:
            return Closed(handle, cause_of_bind(error), detail_of(error))
        self._from[port.local] = port
        self._watch(port.sock, port)
        return Opened(handle, port.local)

    def shut(self, handle: Handle) -> bool:
        """Close a socket; say whether there was one."""
        port: Listener | Relay | None
        if (port := self._relays.pop(handle, None)) is not None:
            self._successive.flush()
            if port.flows:
                for flow in [*port.flows.values()]:
                    self.remove(flow.route.key)
        elif (port := self._listeners.pop(handle, None)) is not None:
            for flow in [*port.routes.values()]:
                self.remove(flow.route.key)
            port.outbox.flush()
            port.count(self._counts)
        else:
            return self._wildcards.shut(handle)
        del self._from[port.local]
        self._unwatch(port.sock)
        port.close()
        return True

    def close(self) -> None:
        """Close every socket."""
        for handle in [*self._relays, *self._listeners]:
            self.shut(handle)
        self._wildcards.close()
        self._wakeups.close()

    def _watch(self, sock: socket.socket, source: Flow | Listener | Relay) -> None:
        self._by_fd[sock.fileno()] = source
        self._wakeups.watch(sock)

    def _unwatch(self, sock: socket.socket) -> None:
        del self._by_fd[sock.fileno()]
        self._wakeups.unwatch(sock)

    # Routes. --------------------------------------------------------------------------------------

    def install(self, route: Route, expires: Instant) -> None:
        """Forward on ``route`` until ``expires``; a known key gets the new bound."""
        key = route.key
        flow = self._flows.get(key)
        if flow is not None and flow.route is not route:
            self.remove(key)
            flow = None
        if self._fast is not None:
            self._fast.install(route, expires)
        if flow is not None:
            flow.expires = expires
            return
        listener, relay = self._from.get(key.server), self._from.get(route.relay)
        if type(listener) is not Listener or type(relay) is not Relay:
            # On a wildcard listener, say: the machine relays by itself.
            self._counts["routes that were not for these sockets"] += 1
            return
        try:
            flow = Flow(route, listener, relay, expires)
        except (OSError, ValueError, OverflowError):
            self._counts["routes that were not for these sockets"] += 1
            return
        self._flows[key] = flow
        listener.routes[flow.table_key] = flow
        if relay.flows is None:
            relay.flows = {}
        relay.flows[flow.peer] = flow

    def remove(self, key: RouteKey) -> None:
        """Forward no longer on ``key``."""
        if self._fast is not None:
            self._fast.remove(key)
        flow = self._flows.pop(key, None)
        if flow is None:
            return
        flow.expires = 0
        flow.outgoing.clear()
        flow.listener.outbox.forget(flow)
        del flow.listener.routes[flow.table_key]
        if flow.relay.flow_of(flow.peer) is flow:
            assert flow.relay.flows is not None
            del flow.relay.flows[flow.peer]
        if flow.sock is not None:
            self._unwatch(flow.sock)
            flow.sock.close()
            flow.sock = None
            self._promoted -= 1

    def _promote(self, flow: Flow, now: Instant) -> None:
        """Give a busy flow a socket of its own, as long as there are descriptors for others."""
        flow.packets = 0
        if self._promoted >= descriptors() // BUSY_SHARE:
            return
        try:
            flow.connect()
        except OSError:  # no route to the peer, say: it works as before
            flow.packets = -NEVER
            self._counts["flows that could get no socket of their own"] += 1
            return
        assert flow.sock is not None
        self._promoted += 1
        flow.trusted_from = now + SETTLING
        self._watch(flow.sock, flow)

    # A wake-up. -----------------------------------------------------------------------------------

    def _serve(self, events: Events) -> int:
        """Serve what is ready; return how many packets were forwarded."""
        before = self.to_peers + self.to_clients
        now: Instant = -1
        by_fd, peers, ready = self._by_fd, self._peers, READY
        memory, starts, addresses, views = (
            peers.memory, peers.starts, peers.addresses, peers.views,
        )  # fmt: skip
        write_header = CHANNEL.pack_into
        slot, last, got, passed = 0, peers.slots - PEER_BATCH, 0, 0
        for fd, mask in events:
            flow = by_fd.get(fd)
            if type(flow) is not Flow:
                if type(flow) is Listener:
                    self._read_listener(flow, mask)
                elif type(flow) is Relay:
                    if mask != ready:
                        self._report_errors(flow.sock, flow.local)
                    self._read_checked(flow, flow.sock)
                continue
            sock = flow.sock
            assert sock is not None
            if now < 0:
                now = self._wakeups.now()
            if mask != ready:
                self._report_errors(sock, flow.relay.local)
                if flow.sock is not sock:
                    continue
            if now < flow.trusted_from:
                self._read_checked(flow.relay, sock)
                continue
            if slot > last:
                self._flush_listeners()
                slot = 0
            if not flow.pause or now >= flow.expires:
                slot += self._read_burst(flow, sock, slot, now)
                continue
            flow.pause -= 1
            try:
                length = sock.recv_into(views[slot])
            except BlockingIOError:
                continue
            except OSError:
                self._report_errors(sock, flow.relay.local)
                continue
            got += 1
            meter = flow.meter
            meter.octets -= length
            meter.packets -= 1
            if (meter.octets >= 0 and meter.packets >= 0) or meter.renew(now):
                usage = meter.usage
                usage.packets_to_client += 1
                usage.octets_to_client += length
                write_header(memory, starts[slot] - 4, flow.channel, length)
                outbox = flow.outbox
                outbox.names.append(flow.name)
                outbox.vector += (addresses[slot] - 4, length + 4)
                passed += 1
                slot += 1
        self.received += got
        self.to_clients += passed
        self._flush_listeners()
        return self.to_peers + self.to_clients - before

    def _read_burst(self, flow: Flow, sock: socket.socket, slot: int, now: Instant) -> int:
        """Read several packets of a peer into the slots from ``slot`` on; return how many slots."""
        peers = self._peers
        try:
            lengths = peers.receive(sock, slot, PEER_BATCH)
        except OSError:
            self._report_errors(sock, flow.relay.local)
            return 0
        if now >= flow.expires:
            for data in peers.datagrams(slot, lengths):
                if not flow.relay.is_open:
                    break
                self._punt(flow.relay, data, flow.peer)
            return len(lengths)
        usage = flow.meter.usage
        before = usage.packets_to_client
        self._wakeups.full |= len(lengths) == PEER_BATCH
        packets = take_burst(peers, flow, slot, lengths, now)
        self.received += packets
        self.to_clients += usage.packets_to_client - before
        flow.look_for_bursts(packets, emptied=len(lengths) < PEER_BATCH)
        return len(lengths)

    def _flush_listeners(self) -> None:
        for listener in self._listeners.values():
            outbox = listener.outbox
            if outbox.names or outbox.destinations or outbox.joined:
                outbox.flush()

    # From clients. --------------------------------------------------------------------------------

    def _read_listener(self, listener: Listener, mask: int) -> None:
        sock = listener.sock
        if mask != READY:
            self._report_errors(sock, listener.local)
            if not listener.is_open:
                return
        if listener.ipv6:
            if self._inbox6 is None:
                self._inbox6 = Inbox(ipv6=True)
            inbox = self._inbox6
        else:
            inbox = self._inbox
        try:
            lengths = inbox.receive(sock)
        except OSError:
            self._report_errors(sock, listener.local)
            return
        now = self._wakeups.now()
        memory, view, find = inbox.memory, inbox.view, listener.routes.get
        read_header = CHANNEL.unpack_from
        active: list[Flow] = []
        bare: list[int] = []
        # Behind what was joined with others there is no room for an answer.
        in_place = (
            self._bindings is not None
            and inbox.sizes is None
            and listener.security is not Security.REQUIRED
        )
        self._wakeups.full |= len(lengths) == inbox.slots
        self.received += len(lengths)
        for length, start, key in inbox.parts(lengths):
            flow = find(key)
            if flow is not None and length >= 4 and now < flow.expires:
                _, size = read_header(memory, start)
                # RFC 8656 section 12.5: over UDP "padding is not required but MAY be included".
                if size <= length - 4 < size + 4:
                    meter = flow.meter
                    meter.octets -= size
                    meter.packets -= 1
                    if (meter.octets >= 0 and meter.packets >= 0) or meter.renew(now):
                        usage = meter.usage
                        usage.packets_from_client += 1
                        usage.octets_from_client += size
                        outgoing = flow.outgoing
                        if not outgoing:
                            active.append(flow)
                        outgoing.append(view[start + 4 : start + 4 + size])
                    continue
            elif length == _BARE_SIZE and in_place and memory[start : start + 8] == _BARE:
                bare.append(start)
                continue
            self._miss(listener, key[:-2], memory[start : start + length])
            if not listener.is_open:
                break
        if bare and listener.is_open:
            self._answer(listener, inbox, bare, now)
        if active:
            self._send_to_peers(active, now)

    def _answer(self, listener: Listener, inbox: Inbox, starts: list[int], now: Instant) -> None:
        """Answer bare Binding requests."""
        ipv6, bindings = inbox.ipv6, self._bindings
        assert bindings is not None
        answered = bindings.bare_in_place(inbox.memory, starts, now, ipv6=ipv6)
        if answered is not None:
            if answered:
                listener.outbox.reply(inbox, answered, BARE_ANSWER[ipv6])
            return
        name = NAME_SIZE[ipv6] - 2
        for start in starts:
            source = unpack_name(inbox.memory[start - name : start])
            data = inbox.memory[start : start + _BARE_SIZE]
            self._hand_over(Received(data, source, listener.local), now)
            if not listener.is_open:
                break

    def _miss(self, listener: Listener, name: bytes, data: bytes) -> None:
        """Give to the machine, or answer, what no route covers."""
        core, security = self._core, listener.security
        if security is not Security.NONE and is_encrypted(data, security):
            self._wakeups.asked = True
            core.encrypted(Received(data, unpack_name(name), listener.local), listener.handle)
            return
        now = self._wakeups.now()
        if len(data) == _BARE_SIZE and self._bindings is not None and data.startswith(_BARE):
            host = name[2:6] if len(name) == _NAME_V4 else name[6:22]
            answer = self._bindings.bare(data, name[:2] + host, now)
            if answer is not None:
                if answer:
                    listener.outbox.add(answer, name)
                return
        self._hand_over(Received(data, unpack_name(name), listener.local), now)

    def _send_to_peers(self, flows: list[Flow], now: Instant) -> None:
        """Send what waits for peers.  For a flow that is gone nothing does."""
        sent, refused = 0, self._refused
        for flow in flows:
            outgoing, sock = flow.outgoing, flow.sock
            count = len(outgoing)
            sent += count
            if sock is None:
                if count:
                    flow.send(refused)
                    flow.packets += count
                    if flow.packets >= BUSY:
                        self._promote(flow, now)
            elif count == 1:
                try:
                    sock.send(outgoing[0])
                except OSError:
                    flow.send(refused)
                else:
                    outgoing.clear()
            elif count:
                flow.send(refused)
        self.to_peers += sent

    # From peers, where a flow has no socket of its own, or a new one. -----------------------------

    def _read_checked(self, relay: Relay, sock: socket.socket) -> None:
        """Read with regard to who sends, and whether that is still allowed."""
        view = self._inbox.views[0]
        for _ in range(PEER_BATCH):
            if not relay.is_open or sock.fileno() < 0:
                return
            try:
                length, source = sock.recvfrom_into(view)
            except BlockingIOError:
                return
            except OSError:
                self._report_errors(sock, relay.local)
                continue
            self.received += 1
            flow = relay.flow_of(source)
            now = self._wakeups.now()
            if flow is None or now >= flow.expires:
                self._punt(relay, bytes(view[:length]), source)
                continue
            meter = flow.meter
            if not meter.take(length, now):
                continue
            meter.usage.packets_to_client += 1
            meter.usage.octets_to_client += length
            self.to_clients += 1
            header = CHANNEL.pack(flow.channel, length)
            flow.listener.outbox.add(header + bytes(view[:length]), flow.name)
            if flow.sock is None:
                flow.packets += 1
                if flow.packets >= BUSY:
                    self._promote(flow, now)

    def _punt(self, relay: Relay, data: bytes, source: SockAddr) -> None:
        packet = Received(data, from_sockaddr(source), relay.local)
        self._hand_over(packet, self._wakeups.now())

    def _hand_over(self, packet: Received, now: Instant) -> None:
        """Give a datagram to the machine."""
        core, self._wakeups.asked = self._core, True
        core.machine.receive(packet, now)
        core.pump()
        if self._observe is not None:
            self._observe(self._wakeups.now() - now)

    def _report_errors(self, sock: socket.socket, local: Address) -> None:
        if sock.fileno() < 0:
            return
        errors = read_errors(sock)
        if not errors:  # none was kept, but one may be pending: it would wake us again and again
            sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        for error in errors:
            self._wakeups.asked = True
            self._overheard.tell(Undeliverable(local, *error))

    def _heard(self, event: SocketEvent) -> None:
        if self._fast is not None and isinstance(event, Undeliverable) and event.info:
            self._fast.too_big(event.local, event.destination, event.info)

    # What the machine sends. ----------------------------------------------------------------------

    def send(self, transmit: Transmit) -> None:
        """Send, now or at the next :meth:`flush`.  Never raises: what cannot be sent is counted."""
        port = self._from.get(transmit.source)
        if type(port) is Relay:
            self._successive.add(transmit, port)
        elif type(port) is Listener:
            self._answer_one(transmit, port)
        else:
            self._wildcards.send(transmit)

    def _answer_one(self, transmit: Transmit, listener: Listener) -> None:
        """Send at once: the client waits, and what the machine does next need not hold it up."""
        destination = transmit.destination
        try:
            listener.sock.sendto(transmit.data, destination)
            listener.outbox.sent += 1
        except (OSError, ValueError, OverflowError):
            # A pending ICMP error, say: it is tried again with what waits, and counted there.
            try:
                listener.outbox.add(transmit.data, pack_name(destination))
            except OSError as error:
                self._refused[error.errno or 0] += 1
            except (ValueError, OverflowError) as error:
                self._counts[f"not sent: {error}"] += 1

    def flush(self) -> None:
        """Send what :meth:`send` has collected."""
        self._successive.flush()
        for listener in self._listeners.values():
            listener.outbox.flush()

    # Counting. ------------------------------------------------------------------------------------

    def counters(self) -> Mapping[str, int]:
        """Return what was received, sent and refused since the start.

        What a faster plane has forwarded was never received or sent here: it is told apart.
        """
        counts = Counter(self._counts)
        if self._fast is not None:
            counts.update(self._fast.counters())
        counts.update(self._wildcards.counters())
        counts["datagrams received"] += self.received
        counts["datagrams sent"] += self._successive.sent + self.to_peers
        counts["forwarded to peers"] += self.to_peers
        counts["forwarded to clients"] += self.to_clients
        for listener in self._listeners.values():
            listener.count(counts)
        for code, count in self._refused.items():
            counts[f"not sent: {why(code)}"] += count
        for words, count in self._successive.faulty.items():
            counts[f"not sent: {words}"] += count
        return counts
