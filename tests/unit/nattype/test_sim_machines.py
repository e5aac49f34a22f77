"""The two small machines, without any network."""

from __future__ import annotations

from nattype.lab.sim.machines import Puppet, Reflector
from stun.sansio import (
    Accepted,
    Address,
    Arrived,
    Cause,
    Closed,
    Connected,
    Dial,
    Listen,
    OpenUdp,
    Received,
    Shut,
    SocketEvent,
    Transmit,
    Write,
)

HERE, THERE, THIRD = (Address("192.0.2.1", port) for port in (1, 2, 3))


def drain(machine: Puppet | Reflector) -> list[object]:
    outputs: list[object] = []
    while (output := machine.poll()) is not None:
        outputs.append(output)
    return outputs


def test_a_puppet_does_what_it_is_told() -> None:
    puppet = Puppet()
    assert [puppet.bind(HERE), puppet.listen(HERE, silent=True), puppet.dial(HERE, THERE)] == [
        1,
        2,
        3,
    ]
    puppet.send(HERE, THERE, b"x")
    puppet.write(3, b"y")
    puppet.shut(3, reset=True)
    assert drain(puppet) == [
        OpenUdp(1, HERE),
        Listen(2, HERE, True),
        Dial(3, HERE, THERE),
        Transmit(b"x", THERE, HERE),
        Write(3, b"y"),
        Shut(3, True),
    ]
    assert puppet.deadline() is None


def test_a_puppet_tells_what_it_is_given() -> None:
    puppet = Puppet()
    packet = Received(b"x", THERE, HERE)
    happened: list[SocketEvent] = [
        Connected(3, HERE, THERE),
        Arrived(3, b"ab"),
        Arrived(4, b"no"),
        Arrived(3, b"c"),
        Accepted(2, -1, HERE, THERE),
        Closed(3, Cause.RESET),
    ]
    puppet.receive(packet, 5)
    for event in happened:
        puppet.on_socket(event, 6)
    puppet.on_deadline(7)
    assert drain(puppet) == [packet, *happened]
    assert puppet.log[0] == (5, packet)
    assert puppet.received() == [packet]
    assert puppet.stream(3) == b"abc"
    assert puppet.connected(3)
    assert not puppet.connected(4)
    assert puppet.closed(3) is Cause.RESET
    assert puppet.closed(4) is None
    assert puppet.accepted() == [Accepted(2, -1, HERE, THERE)]


def test_a_reflector_answers_datagrams() -> None:
    reflector = Reflector(HERE)
    assert drain(reflector) == [OpenUdp(1, HERE), Listen(2, HERE)]
    for data, source, destination in (
        (b"", HERE, THERE),
        (b"\xff\x00", HERE, THERE),
        (b"via 192.0.2.1 3", THIRD, THERE),
        (b"to 192.0.2.1 3", HERE, THIRD),
        (b"to 192.0.2.1 x", HERE, THERE),
    ):
        reflector.receive(Received(data, THERE, HERE), 0)
        assert drain(reflector) == [Transmit(b"192.0.2.1 2", destination, source)], data


def test_a_reflector_answers_streams() -> None:
    reflector = Reflector()
    reflector.on_socket(Accepted(2, -1, HERE, THERE), 0)
    reflector.on_socket(Arrived(-1, b"?"), 0)
    reflector.on_socket(Closed(-1, Cause.END_OF_STREAM), 0)
    reflector.on_socket(Arrived(-1, b"?"), 0)
    reflector.close(-1)
    reflector.on_deadline(0)
    assert drain(reflector) == [Write(-1, b"192.0.2.1 2"), Shut(-1)]
    assert reflector.deadline() is None
