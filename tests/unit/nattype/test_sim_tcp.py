"""TCP as a machine sees it: opening, closing, refusing, crossing, losing."""

from __future__ import annotations

import pytest

from nattype.lab.sim import SERVER_A, SERVER_A6, Fate, Scenario, behind
from nattype.lab.sim.machines import Puppet
from nattype.lab.sim.tcp import PENDING_LIMIT, PENDING_MARK, WINDOW
from nattype.lab.sim.wire import ACK, RST, SYN, TCP, Segment
from nattype.model import Link
from stun import tcp
from stun.sansio import (
    MILLISECOND,
    SECOND,
    Address,
    Cause,
    Closed,
    Congested,
    Connected,
    Dial,
    Listen,
    Relieved,
)

PORT = 3478


class Ends:
    """A dialling host and a serving host with nothing but a link in between."""

    def __init__(self, seed: int, link: Link = Link(), *, ipv6: bool = False) -> None:  # noqa: B008
        self.scenario: Scenario = behind("open", seed=seed, link=link, trace=True)
        self.world = self.scenario.world
        self.client, self.server = Puppet(), Puppet()
        self.client_side = self.world.attach(self.client, self.scenario.host)
        self.server_side = self.world.attach(self.server, self.scenario.server)
        self.here = Address(self.scenario.host.address(ipv6=ipv6), 5000)
        self.there = Address(SERVER_A6 if ipv6 else SERVER_A, PORT)

    def open(self) -> tuple[int, int]:
        """Return the dialled and the accepted handle of a new connection."""
        if not self.server.told():
            self.server.listen(self.there)
        handle = self.client.dial(self.here, self.there)
        before = len(self.server.accepted())
        self.run(until_accepted=before + 1)
        return handle, self.server.accepted()[-1].handle

    def run(self, *, until_accepted: int) -> None:
        assert self.world.run(
            until=lambda: (
                len(self.server.accepted()) == until_accepted
                and isinstance(self.client.told()[-1], Connected)
            ),
            max_time=300,
        )

    def flags(self) -> list[str]:
        """Return the flags of each TCP segment sent, in order."""
        return [
            entry.detail.split()[0]
            for entry in self.world.trace
            if entry.happening == "sent" and entry.protocol == TCP
        ]


@pytest.mark.parametrize("ipv6", [False, True])
def test_bytes_go_both_ways_and_the_end_is_told(ipv6: bool, seed: int) -> None:
    ends = Ends(seed, ipv6=ipv6)
    ours, theirs = ends.open()
    assert ends.flags() == ["SYN", "SYN+ACK", "ACK"]
    ends.client.write(ours, b"to the server")
    ends.server.write(theirs, b"to the client")
    ends.world.run()
    assert ends.server.stream(theirs) == b"to the server"
    assert ends.client.stream(ours) == b"to the client"
    ends.client.shut(ours)
    ends.world.run()
    assert ends.server.closed(theirs) is Cause.END_OF_STREAM
    assert ends.client.closed(ours) is None, "no event follows a Shut"


def test_what_was_written_before_shut_arrives(seed: int) -> None:
    ends = Ends(seed)
    ours, theirs = ends.open()
    data = bytes(range(256)) * 1000  # several windows
    assert len(data) > 2 * WINDOW
    ends.client.write(ours, data)
    ends.client.shut(ours)
    ends.world.run()
    assert ends.server.stream(theirs) == data
    assert ends.server.closed(theirs) is Cause.END_OF_STREAM


def test_reset(seed: int) -> None:
    ends = Ends(seed)
    ours, theirs = ends.open()
    ends.client.shut(ours, reset=True)
    ends.world.run()
    assert ends.server.closed(theirs) is Cause.RESET


def test_bytes_that_cross_the_end_hurt_nobody(seed: int) -> None:
    ends = Ends(seed, Link(delay=0.1))
    ours, theirs = ends.open()
    ends.client.write(ours, b"last words")
    ends.client.shut(ours)
    ends.server.write(theirs, b"crosses the FIN")
    ends.world.run()
    assert "RST" not in "".join(ends.flags())
    assert ends.client.stream(ours) == b""
    assert ends.server.stream(theirs) == b"last words"
    assert ends.server.closed(theirs) is Cause.END_OF_STREAM


@pytest.mark.parametrize("late", [False, True])
def test_bytes_for_a_closed_socket_are_answered_with_reset(seed: int, late: bool) -> None:
    ends = Ends(seed)
    ours, theirs = ends.open()
    ends.server.hold(theirs)  # so that it does not learn of the end, and goes on
    ends.client.shut(ours)
    ends.world.run(max_time=6 if late else 4)
    ends.server.write(theirs, b"too late")
    ends.world.run(max_time=3)
    assert ("RST+ACK" in ends.flags()) is late
    assert ends.server.closed(theirs) is (Cause.RESET if late else None)


def test_a_closed_port_refuses(seed: int) -> None:
    ends = Ends(seed)
    handle = ends.client.dial(ends.here, ends.there)
    ends.world.run()
    assert ends.client.closed(handle) is Cause.REFUSED
    assert ends.flags() == ["SYN", "RST+ACK"]


def test_a_silent_port_says_nothing_and_the_dial_times_out_after_127_seconds(seed: int) -> None:
    ends = Ends(seed)
    ends.server.listen(ends.there, silent=True)
    handle = ends.client.dial(ends.here, ends.there)
    ends.world.run()
    at = [e.at / SECOND for e in ends.world.trace if e.happening == "sent"]
    assert at == [0, 1, 3, 7, 15, 31, 63]
    assert ends.client.closed(handle) is Cause.TIMED_OUT
    assert ends.client.log[-1][0] == 127 * SECOND
    assert ends.world.dropped[Fate.SILENT] == 7


def test_simultaneous_open(seed: int) -> None:
    """RFC 9293 section 3.5: both sides dial, nobody listens, one connection comes of it."""
    ends = Ends(seed, Link(delay=0.05))
    ours = ends.client.dial(ends.here, ends.there)
    theirs = ends.server.dial(ends.there, ends.here)
    ends.world.run(max_time=0.2)
    assert ends.client.connected(ours), "two trips: the SYNs, then the SYN-ACKs"
    assert ends.server.connected(theirs)
    assert "RST" not in "".join(ends.flags())
    ends.client.write(ours, b"one")
    ends.server.write(theirs, b"connection")
    ends.world.run()
    assert ends.server.stream(theirs) == b"one"
    assert ends.client.stream(ours) == b"connection"


def test_simultaneous_open_from_a_silent_port(seed: int) -> None:
    ends = Ends(seed, Link(delay=0.05))
    ends.server.listen(ends.there, silent=True)
    ours = ends.client.dial(ends.here, ends.there)
    ends.world.run(max_time=0.5)
    theirs = ends.server.dial(ends.there, ends.here)
    ends.world.run(max_time=5)
    assert ends.client.connected(ours)
    assert ends.server.connected(theirs)


def test_two_dials_out_of_step_refuse_each_other(seed: int) -> None:
    # The first SYN meets nobody and is refused before the other side dials.
    ends = Ends(seed, Link(delay=0.05))
    ours = ends.client.dial(ends.here, ends.there)
    ends.world.run(max_time=1)
    theirs = ends.server.dial(ends.there, ends.here)
    ends.world.run(max_time=1)
    assert ends.client.closed(ours) is Cause.REFUSED
    assert ends.server.closed(theirs) is Cause.REFUSED


class TestSharedPorts:
    def test_a_listener_and_dials_share_a_port(self, seed: int) -> None:
        ends = Ends(seed)
        ends.client.listen(ends.here)
        handle, _ = ends.open()
        assert ends.client.connected(handle)
        back = ends.server.dial(Address(ends.there.host, 9999), ends.here)
        ends.world.run()
        assert ends.server.connected(back)
        assert ends.client.accepted()[-1].remote == Address(ends.there.host, 9999)

    def test_a_pair_of_endpoints_exists_once(self, seed: int) -> None:
        ends = Ends(seed)
        first, _ = ends.open()
        second = ends.client.dial(ends.here, ends.there)
        ends.world.run()
        assert ends.client.closed(second) is Cause.ADDRESS_IN_USE
        assert ends.client.closed(first) is None

    def test_two_listeners_do_not_share(self, seed: int) -> None:
        ends = Ends(seed)
        ends.server.listen(ends.there)
        second = ends.server.listen(ends.there)
        ends.world.run()
        assert ends.server.closed(second) is Cause.ADDRESS_IN_USE


class TestTimeWait:
    def test_who_closed_first_waits_a_minute(self, seed: int) -> None:
        ends = Ends(seed)
        ours, _ = ends.open()
        ends.client.shut(ours)
        ends.world.run()
        again = ends.client.dial(ends.here, ends.there)
        ends.world.run()
        assert ends.client.closed(again) is Cause.ADDRESS_IN_USE
        ends.world.run(until=ends.world.now + 60 * SECOND)
        later, _ = ends.open()
        assert ends.client.connected(later)

    def test_who_was_closed_does_not(self, seed: int) -> None:
        ends = Ends(seed)
        _, theirs = ends.open()
        ends.server.shut(theirs)
        ends.world.run()
        # The server is in TIME_WAIT, and its listener takes the new SYN all the same.
        again, _ = ends.open()
        assert ends.client.connected(again)

    def test_reset_leaves_nothing_behind(self, seed: int) -> None:
        ends = Ends(seed)
        ours, _ = ends.open()
        ends.client.shut(ours, reset=True)
        again, _ = ends.open()
        assert ends.client.connected(again)

    def test_a_syn_that_meets_time_wait_and_no_listener_gets_through_at_the_second_try(
        self, seed: int
    ) -> None:
        """The ACK that TIME_WAIT answers is unacceptable in SYN_SENT; the RST for it ends both."""
        ends = Ends(seed)
        _, theirs = ends.open()
        ends.server.shut(theirs)
        ends.server.shut(1)
        ends.world.run()
        began = ends.world.now
        again = ends.client.dial(ends.here, ends.there)
        ends.world.run()
        assert ends.flags()[-5:] == ["SYN", "ACK", "RST", "SYN", "RST+ACK"]
        assert ends.client.closed(again) is Cause.REFUSED
        assert SECOND <= ends.world.now - began < 1.1 * SECOND


class TestLoss:
    def test_duplicate_acknowledgments_repair_a_hole_at_once(self, seed: int) -> None:
        ends = Ends(seed, Link(delay=0.05))
        ours, theirs = ends.open()
        interface = ends.scenario.host.interface(ends.here.host)
        for number in range(5):
            interface.set_link(Link(loss=float(number == 0), delay=0.05))
            ends.client.write(ours, b"%d" % number)
            ends.world.run(until=ends.world.now + MILLISECOND)
        # Sent at 0 ms, found missing at 104, repaired at 154; the timer would ring at 200.
        ends.world.run(max_time=0.18)
        assert ends.server.stream(theirs) == b"01234"
        assert ends.world.run()

    @pytest.mark.parametrize("loss", [0.1, 0.3])
    def test_a_stream_survives(self, loss: float, seed: int) -> None:
        ends = Ends(seed, Link(loss=loss, delay=0.02, jitter=0.03))
        ours, theirs = ends.open()
        data = bytes(range(256)) * 200
        ends.client.write(ours, data)
        ends.server.write(theirs, data[::-1])
        ends.world.run(max_time=3600)
        assert ends.server.stream(theirs) == data
        assert ends.client.stream(ours) == data[::-1]

    def test_a_cut_line_is_noticed_by_who_sends(self, seed: int) -> None:
        ends = Ends(seed)
        ours, theirs = ends.open()
        ends.scenario.host.interface(ends.here.host).set_link(Link(loss=1.0))
        ends.client.write(ours, b"hello?")
        assert ends.world.run()
        assert ends.client.closed(ours) is Cause.TIMED_OUT
        assert ends.server.closed(theirs) is None

    def test_a_lost_syn_ack_is_sent_again(self, seed: int) -> None:
        ends = Ends(seed)
        ends.server.listen(ends.there)
        handle = ends.client.dial(ends.here, ends.there)
        ends.world.run(until=lambda: ends.flags() == ["SYN"])
        interface = ends.scenario.host.interface(ends.here.host)
        interface.set_link(Link(loss=1.0))  # the SYN is past the link, its answer is not
        ends.world.run(max_time=0.5)
        interface.set_link(Link())
        ends.world.run(max_time=0.4)
        assert not ends.client.connected(handle)
        ends.world.run(max_time=0.2)
        assert ends.client.connected(handle)
        assert ends.world.dropped[Fate.LOST] == 1

    def test_no_ack_of_the_handshake_is_needed_if_data_follow(self, seed: int) -> None:
        for offset in range(5):
            ends = Ends(seed + offset, Link(loss=0.5))
            ends.server.listen(ends.there)
            handle = ends.client.dial(ends.here, ends.there)
            ends.world.run(until=lambda e=ends: bool(e.client.told()))  # type: ignore[misc]
            if not ends.client.connected(handle):
                assert ends.client.closed(handle) is Cause.TIMED_OUT
                continue
            ends.client.write(handle, b"data")
            ends.world.run()
            accepted = ends.server.accepted()
            delivered = accepted and ends.server.stream(accepted[0].handle) == b"data"
            assert delivered or ends.client.closed(handle) is not None


class TestInjection:
    """RFC 5961: what an attacker sends who does not know the sequence numbers."""

    @pytest.mark.parametrize("offset", [1, -1, 1000])
    def test_a_blind_reset_is_ignored(self, offset: int, seed: int) -> None:
        ends = Ends(seed)
        ours, theirs = ends.open()
        ends.server.write(theirs, b"x")
        ends.world.run()
        [sent] = [e for e in ends.world.trace if e.happening == "sent" and e.data == b"x"]
        following = int(sent.detail.split("seq=")[1].split()[0]) + 1
        ends.scenario.host.receive(Segment(ends.there, ends.here, RST, following + offset))
        assert ends.client.closed(ours) is None
        ends.scenario.host.receive(Segment(ends.there, ends.here, RST, following))
        assert ends.client.closed(ours) is Cause.RESET

    def test_an_acknowledgment_of_nothing_does_not_open_a_connection(self, seed: int) -> None:
        ends = Ends(seed)
        ends.server.listen(ends.there)
        ends.world.run()
        ends.scenario.server.receive(Segment(ends.here, ends.there, SYN, 100))
        ends.scenario.server.receive(
            Segment(ends.here, ends.there, ACK, 101, acknowledgment=4_000_000_000)
        )
        assert ends.server.accepted() == []
        assert ends.flags()[-1] == "RST"

    def test_a_syn_in_a_connection_is_challenged(self, seed: int) -> None:
        ends = Ends(seed)
        ours, theirs = ends.open()
        ends.scenario.host.receive(Segment(ends.there, ends.here, SYN, 12345))
        ends.world.run()
        assert ends.flags()[-1] == "ACK"
        ends.client.write(ours, b"unmoved")
        ends.world.run()
        assert ends.server.stream(theirs) == b"unmoved"


class TestIcmpAndTtl:
    def test_an_error_ends_a_dial(self, seed: int) -> None:
        ends = Ends(seed)
        handle = ends.client.dial(ends.here, Address("192.175.48.77", 80))
        ends.world.run()
        assert ends.client.closed(handle) is Cause.UNREACHABLE

    def test_time_exceeded_ends_a_dial_as_on_linux(self, seed: int) -> None:
        ends = Ends(seed)
        ends.server.listen(ends.there)
        ends.scenario.host.ttl = 1
        handle = ends.client.dial(ends.here, ends.there)
        ends.world.run()
        assert ends.client.closed(handle) is Cause.UNREACHABLE
        assert ends.world.dropped[Fate.TTL_EXPIRED] == 1

    def test_an_error_does_not_end_a_connection(self, seed: int) -> None:
        ends = Ends(seed)
        ours, theirs = ends.open()
        route = ends.world.internet.routes.pop(ends.there.host)
        ends.client.write(ours, b"later")
        ends.world.run(max_time=1)
        ends.world.internet.routes[ends.there.host] = route
        ends.world.run()
        assert ends.server.stream(theirs) == b"later"


def test_segments_fit_the_narrowest_link(seed: int) -> None:
    ends = Ends(seed, Link(mtu=1280))
    ours, theirs = ends.open()
    ends.server.write(theirs, bytes(10_000))
    ends.world.run()
    assert ends.client.stream(ours) == bytes(10_000)
    assert max(entry.size for entry in ends.world.trace) == 1280


def test_dials_that_cannot_be(seed: int) -> None:
    ends = Ends(seed)
    elsewhere = ends.client.dial(Address("192.0.2.1", 5000), ends.there)
    mixed = ends.client.dial(Address(ends.here.host, 0), Address(SERVER_A6, PORT))
    ends.client.do(Dial(99, ends.here, ends.there, "stun.example.org"))
    nowhere = ends.client.listen(Address("192.0.2.1", 5000))
    ends.world.run()
    causes = {e.handle: e.cause for e in ends.client.told() if isinstance(e, Closed)}
    assert causes == {
        elsewhere: Cause.ADDRESS_NOT_AVAILABLE,
        mixed: Cause.UNREACHABLE,
        99: Cause.TLS_FAILED,
        nowhere: Cause.ADDRESS_NOT_AVAILABLE,
    }
    assert ends.world.sent == 0


def test_ephemeral_ports_are_distinct(seed: int) -> None:
    ends = Ends(seed)
    ends.server.listen(ends.there)
    any_port = Address("0.0.0.0", 0)
    handles = [ends.client.dial(any_port, ends.there) for _ in range(50)]
    ends.world.run()
    assert all(ends.client.connected(handle) for handle in handles)
    assert len({event.remote for event in ends.server.accepted()}) == 50
    assert {event.remote.host for event in ends.server.accepted()} == {ends.here.host}


def test_closing_a_listener_leaves_accepted_connections_alone(seed: int) -> None:
    ends = Ends(seed)
    ours, theirs = ends.open()
    ends.server.shut(1)
    refused = ends.client.dial(Address(ends.here.host, 5001), ends.there)
    ends.client.write(ours, b"still here")
    ends.world.run()
    assert ends.server.stream(theirs) == b"still here"
    assert ends.client.closed(refused) is Cause.REFUSED


def test_shutting_a_dial_under_way_leaves_nothing(seed: int) -> None:
    ends = Ends(seed, Link(delay=0.1))
    ends.server.do(Listen(1, ends.there))
    handle = ends.client.dial(ends.here, ends.there)
    ends.world.run(max_time=0.05)
    ends.client.shut(handle)
    ends.world.run()
    assert ends.client.told() == []
    assert ends.server.accepted() == [], "the SYN-ACK was answered with RST"


def test_a_killed_process_closes_its_connections(seed: int) -> None:
    ends = Ends(seed)
    _, theirs = ends.open()
    ends.client_side.detach()
    ends.world.run()
    assert ends.server.closed(theirs) is Cause.END_OF_STREAM
    assert ends.client.told()[-1] == Connected(1, ends.here, ends.there), "it hears nothing more"


def kinds(puppet: Puppet, handle: int) -> list[str]:
    """What a machine was told of a stream, without what came on it."""
    return [
        type(event).__name__
        for event in puppet.told()
        if getattr(event, "handle", None) == handle and isinstance(event, Congested | Relieved)
    ]


def test_the_marks_are_those_of_the_real_drivers() -> None:
    assert (PENDING_MARK, PENDING_LIMIT) == (tcp.PENDING_MARK, tcp.PENDING_LIMIT)


@pytest.mark.parametrize("loss", [0.0, 0.1])
def test_a_held_stream_is_not_read_and_loses_nothing(seed: int, loss: float) -> None:
    ends = Ends(seed, Link(delay=0.01))
    ours, theirs = ends.open()
    ends.scenario.host.interface(ends.here.host).set_link(Link(delay=0.01, loss=loss))
    ends.server.hold(theirs)
    data = bytes(range(256)) * 1000
    ends.client.write(ours, data)
    ends.world.run(max_time=600)
    assert ends.server.stream(theirs) == b""
    assert ends.client.closed(ours) is None, "a closed window is no reason to give up"
    assert kinds(ends.client, ours) == ["Congested"]
    ends.client.shut(ours)
    ends.server.hold(theirs, held=False)
    ends.world.run(max_time=2000)
    assert ends.server.stream(theirs) == data
    assert ends.server.closed(theirs) is Cause.END_OF_STREAM


def test_a_held_stream_ends_when_it_is_read(seed: int) -> None:
    ends = Ends(seed)
    ours, theirs = ends.open()
    ends.server.hold(theirs)
    ends.client.write(ours, b"last words")
    ends.client.shut(ours)
    ends.world.run(max_time=10)
    assert ends.server.closed(theirs) is None
    ends.server.hold(theirs, held=False)
    ends.world.run(max_time=10)
    assert ends.server.stream(theirs) == b"last words"
    assert ends.server.closed(theirs) is Cause.END_OF_STREAM


def test_a_slow_reader_congests_and_relieves_the_writer(seed: int) -> None:
    ends = Ends(seed, Link(delay=0.01))
    ours, theirs = ends.open()
    data = bytes(WINDOW + PENDING_MARK)
    ends.client.write(ours, data)
    ends.world.run()
    assert kinds(ends.client, ours) == [], "the mark was reached, not passed"
    ends.client.write(ours, data + bytes(WINDOW))
    ends.world.run()
    assert kinds(ends.client, ours) == ["Congested", "Relieved"]
    assert len(ends.server.stream(theirs)) == 2 * len(data) + WINDOW


def test_who_never_reads_loses_the_stream(seed: int) -> None:
    ends = Ends(seed)
    ours, theirs = ends.open()
    ends.server.hold(theirs)
    for _ in range(2):
        ends.client.write(ours, bytes(WINDOW + PENDING_LIMIT // 2 + 1))
        ends.world.run(max_time=5)
    assert ends.client.closed(ours) is Cause.OTHER
    assert ends.server.closed(theirs) is Cause.RESET


def test_a_client_that_takes_no_answers_is_not_read(seed: int) -> None:
    ends = Ends(seed)
    ours, theirs = ends.open()
    ends.client.hold(ours)
    ends.server.write(theirs, bytes(2 * WINDOW + PENDING_MARK + 1))
    ends.world.run(max_time=5)
    ends.client.write(ours, b"more, please")
    ends.world.run(max_time=5)
    assert kinds(ends.server, theirs) == ["Congested"]
    assert ends.server.stream(theirs) == b""
    ends.client.hold(ours, held=False)
    ends.world.run(max_time=100)
    assert kinds(ends.server, theirs) == ["Congested", "Relieved"]
    assert ends.server.stream(theirs) == b"more, please"


def test_unread_octets_are_lost_without_a_word(seed: int) -> None:
    ends = Ends(seed)
    ours, theirs = ends.open()
    ends.server.hold(theirs)
    ends.client.write(ours, bytes(WINDOW + 1000))  # the window is closed
    ends.world.run(max_time=5)
    ends.server.write(theirs, b"last words")
    ends.server.shut(theirs)
    ends.world.run(max_time=5)
    assert ends.client.stream(ours) == b"last words"
    assert ends.client.closed(ours) is Cause.END_OF_STREAM
    assert "RST" not in "".join(ends.flags())
