"""The program in the kernel comes, is on the interfaces that it is put on, and leaves nothing.

It is put on interfaces of network namespaces that nobody else has; frames reach it over cables.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from nattype.lab.kernel.build import offloads_off
from nattype.lab.kernel.namespaces import inside
from stun.sansio import SECOND, Address
from tests.lab import frames
from tests.lab.frames import Datagram
from tests.lab.turnd_world import PATIENCE, Host, require
from turn.dataplane.kernel import layouts, libbpf
from turn.dataplane.kernel.layouts import DRAW, LAYOUTS, Count, Layout, pack_key
from turn.dataplane.kernel.layouts import Path as RelayPath
from turn.dataplane.kernel.program import RelayProgram
from turn.dataplane.kernel.support import KernelUnavailable, object_path, why_not

pytestmark = pytest.mark.lab

ROOT = Path(__file__).parents[2]
SOURCE = object_path().with_name("relay.bpf.c")
CLIENT, SERVER, PEER = "198.18.0.2", "198.18.0.1", "198.18.1.2"
RELAYED = "198.18.1.1"
CHANNEL = 0x4001
FAR = "02:00:00:00:00:77"


@pytest.fixture
def program() -> Iterator[RelayProgram]:
    require("kernel")
    with closing() as load:
        yield load()


@contextmanager
def closing() -> Iterator[type[RelayProgram.load]]:
    """``load()``: a small program, which is closed at the end."""
    with ExitStack() as stack:

        def load() -> RelayProgram:
            program = RelayProgram.load(routes=16, buckets=4)
            stack.callback(program.close)
            return program

        yield load


@pytest.fixture
def server() -> Iterator[Host]:
    """A machine with two cables; the far ends, ``c`` and ``p``, are in the same place."""
    require("kernel")
    host = Host("server")
    for name, address, far, last in (
        ("client", f"{SERVER}/24", "c", 1),
        ("peer", f"{RELAYED}/24", "p", 2),
    ):
        host.ip(f"link add {name} address 02:00:00:00:00:0{last} type veth peer name {far}")
        with inside(host.fd):
            offloads_off(name)
        host.ip(f"address add {address} dev {name}", f"link set {name} up", f"link set {far} up")
    host.ip(f"neighbour add {PEER} lladdr {FAR} dev peer nud permanent")
    yield host
    host.close()


def attach(program: RelayProgram, host: Host, *names: str) -> None:
    with inside(host.fd):
        for name in names:
            program.attach(host.index(name))


def connect(program: RelayProgram, host: Host, client_port: int, buckets: int = 0) -> None:
    """Make a path from a port of the client to the peer; its usage is number 1."""
    path = RelayPath(
        time.monotonic_ns() + 600 * SECOND, Address(RELAYED, 50000), Address(PEER, client_port), 0,
        1500, host.index("peer"), 1, (buckets, 0),
    )  # fmt: skip
    program.set_path(
        pack_key(Address(SERVER, 3478), Address(CLIENT, client_port), CHANNEL), path.pack()
    )
    program.serve_port(3478)


def message(client_port: int, payload: bytes = b"hello", **fields: object) -> Datagram:
    body = struct.pack("!HH", CHANNEL, len(payload)) + payload
    return Datagram(Address(CLIENT, client_port), Address(SERVER, 3478), body, **fields)


class Wires:
    """The far ends of both cables."""

    def __init__(self, host: Host) -> None:
        self._ends = {}
        for name in ("c", "p"):
            self._ends[name] = host.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
            self._ends[name].bind((name, 3))
            self._ends[name].settimeout(PATIENCE)

    def __enter__(self) -> Wires:
        return self

    def __exit__(self, *_: object) -> None:
        for end in self._ends.values():
            end.close()

    def send(self, what: Datagram, **tag: int) -> None:
        (packet,) = frames.packets(what)
        self._ends["c"].send(frames.frame("02:00:00:00:00:01", FAR, packet, **tag))

    def arrives(self) -> Datagram:
        """The next UDP datagram at the peer's."""
        while True:
            octets, (_, _, kind, *_) = self._ends["p"].recvfrom(65536)
            seen = frames.read(octets) if kind != socket.PACKET_OUTGOING else None
            if seen is not None:
                assert octets[:6] == bytes.fromhex(FAR.replace(":", ""))
                assert seen.header_right
                assert seen.checksum_right
                return seen.packet


# Loading. -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layout", [one for one in LAYOUTS if one is not DRAW], ids=lambda one: one.name
)
def test_the_built_program_has_the_same_layouts(layout: Layout) -> None:
    """What the compiler made of relay.h, from the type information in the object file."""
    require("kernel")
    bpftool = ["bpftool", "--json", "btf", "dump", "file", str(object_path()), "format", "raw"]
    told = subprocess.run(bpftool, capture_output=True, text=True, check=True).stdout
    types = json.loads(told)["types"]
    (found,) = [one for one in types if (one["kind"], one["name"]) == ("STRUCT", layout.name)]
    offsets = {one["name"]: one["bits_offset"] // 8 for one in found["members"]}
    assert found["size"] == layout.size
    assert offsets == {name: at for name, (at, _) in layout.offsets().items()}


def test_the_maps_are_as_large_as_was_asked(program: RelayProgram) -> None:
    assert (program.path_limit, program.usage_limit, program.bucket_limit) == (32, 32, 4)


def test_it_starts_with_nothing(program: RelayProgram) -> None:
    assert program.attached == frozenset()
    assert set(program.counts().values()) == {0}
    assert {program.usage(n) for n in range(program.usage_limit)} == {(0, 0, 0)}


def test_it_says_nothing_on_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    require("kernel")
    with closing() as load:
        load()
    with pytest.raises(KernelUnavailable):
        RelayProgram.load(path=Path(__file__))
    assert capfd.readouterr() == ("", "")


def test_more_paths_than_there_can_be(program: RelayProgram) -> None:
    value = RelayPath(1, Address(SERVER, 1), Address(PEER, 2), 0, 1500, 1, 0).pack()
    keys = [pack_key(Address(SERVER, 1), Address(PEER, n), 0) for n in range(33)]
    for key in keys[:32]:
        program.set_path(key, value)
    with pytest.raises(OSError, match='"paths" is full: it has room for 32 elements') as raised:
        program.set_path(keys[32], value)
    assert raised.value.errno == errno.E2BIG
    # One that is there can be changed, and there is room for another when it is gone.
    program.set_path(keys[0], value)
    assert program.drop_path(keys[0])
    program.set_path(keys[32], value)


def test_octets_of_other_lengths_never_reach_the_kernel(program: RelayProgram) -> None:
    for key, value in ((b"short", bytes(72)), (bytes(40), bytes(71)), (bytes(41), bytes(72))):
        with pytest.raises(ValueError, match='the map "paths" has keys of 40 octets'):
            program.set_path(key, value)
    with pytest.raises(ValueError, match="keys of 40 octets"):
        program.drop_path(b"")


@pytest.mark.parametrize("index", [0, 4, 5000])
def test_buckets_that_are_none(program: RelayProgram, index: int) -> None:
    with pytest.raises(IndexError, match="they are 1 to 3"):
        program.set_bucket(index, 1, 1, 1)
    assert not program.draw(5000, 1, 1)


def test_it_can_be_closed_twice(program: RelayProgram) -> None:
    program.close()
    program.close()


def test_what_is_no_object_file(tmp_path: Path) -> None:
    require("kernel")
    path = tmp_path / "relay.bpf.o"
    path.write_text("program")
    with pytest.raises(KernelUnavailable, match=r"relay\.bpf\.o cannot be opened: .*ELF") as raised:
        RelayProgram.load(path=path)
    assert "\n" not in str(raised.value)


def compiled(
    tmp_path: Path, *changes: tuple[str, str], header: tuple[str, str] | None = None
) -> Path:
    """Return the program built from a changed source."""
    if shutil.which("clang") is None:
        pytest.skip("clang is missing: apt install clang")
    text = SOURCE.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    shared = SOURCE.with_name("relay.h").read_text()
    if header is not None:
        assert header[0] in shared
        shared = shared.replace(*header)
    (tmp_path / "relay.h").write_text(shared)
    (tmp_path / "relay.bpf.c").write_text(text)
    target = tmp_path / "relay.bpf.o"
    make = ["make", "--silent", "-C", str(ROOT), f"KERNEL={tmp_path}", str(target)]
    subprocess.run(make, check=True, capture_output=True)
    return target


def test_a_program_that_the_verifier_refuses(tmp_path: Path) -> None:
    require("kernel")
    path = compiled(tmp_path, ("if ((void *)(wanted + 1) > (void *)(long)skb->data_end)", "if (0)"))
    with pytest.raises(
        KernelUnavailable, match=r"the verifier says: R. offset is outside"
    ) as raised:
        RelayProgram.load(path=path)
    assert "\n" not in str(raised.value)
    # The whole of what it said is there for a log.
    assert "invalid access to packet" in raised.value.detail


def test_a_program_of_another_version(tmp_path: Path) -> None:
    require("kernel")
    for header in (
        ("\t__u64 dropped;", "\t__u64 more, dropped;"),
        ("\tCOUNTS\n", "\tMORE,\n\tCOUNTS\n"),
    ):
        with pytest.raises(KernelUnavailable, match="is of another version of natkit"):
            RelayProgram.load(path=compiled(tmp_path, header=header))


PRIVILEGED = """
import sys
from turn.dataplane.kernel.program import RelayProgram
program = RelayProgram.load(routes=16, buckets=4)
program.set_bucket(1, 1000, 10, 10**9)
print(program.draw(1, 10, 1), program.run(bytes(64))[0])
program.attach(int(sys.argv[1]))
print(sorted(program.attached))
"""


def with_capabilities(host: Host, held: str, *args: str) -> str:
    """Run Python as somebody who has no other capabilities than these."""
    held = f"-all{held}"
    return host.run(
        "setpriv", f"--inh-caps={held}", f"--bounding-set={held}",
        "env", f"PYTHONPATH={ROOT}", sys.executable, "-c", *args,
    )  # fmt: skip


def test_two_capabilities_are_enough(server: Host) -> None:
    index = str(server.index("client"))
    told = with_capabilities(server, ",+bpf,+net_admin", PRIVILEGED, index)
    assert told.splitlines() == ["True -1", f"[{index}]"]


def test_older_systems_have_one_for_bpf(server: Host) -> None:
    # capabilities(7): before CAP_BPF there was CAP_SYS_ADMIN, and it still does.
    index = str(server.index("client"))
    told = with_capabilities(server, ",+sys_admin,+net_admin", PRIVILEGED, index)
    assert told.splitlines() == ["True -1", f"[{index}]"]


WHY = "from turn.dataplane.kernel.support import why_not; print(why_not())"


@pytest.mark.parametrize(
    ("held", "words"),
    [
        ("", "the capabilities CAP_BPF and CAP_NET_ADMIN are missing"),
        (",+net_admin", "the capability CAP_BPF is missing"),
        (",+bpf", "the capability CAP_NET_ADMIN is missing"),
    ],
)
def test_one_capability_is_not(server: Host, held: str, words: str) -> None:
    assert with_capabilities(server, held, WHY).startswith(words)


def test_root_of_a_user_namespace_is_told_why(server: Host) -> None:
    told = server.run(
        "unshare", "--user", "--map-root-user", "--net", "env", f"PYTHONPATH={ROOT}",
        sys.executable, "-c", WHY,
    )  # fmt: skip
    assert told.startswith("the kernel refuses BPF in a user namespace")


def test_asking_leaves_nothing(program: RelayProgram) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(10):
        assert why_not() is None
    assert len(list(Path("/proc/self/fd").iterdir())) == before


# Interfaces. --------------------------------------------------------------------------------------


class Query(ctypes.Structure):
    """``struct bpf_prog_query_opts``."""

    _fields_ = [
        ("size", ctypes.c_size_t),
        ("query_flags", ctypes.c_uint32),
        ("attach_flags", ctypes.c_uint32),
        ("ids", ctypes.c_void_p),
        ("count", ctypes.c_uint32),
        ("each_flags", ctypes.c_void_p),
    ]


def programs_on(host: Host, name: str) -> list[int]:
    """The programs that a packet goes through when it arrives, in this order, by number.

    bpftool tells it only since 7.3.
    """
    found = (ctypes.c_uint32 * 64)()
    query = Query(ctypes.sizeof(Query), ids=ctypes.addressof(found), count=len(found))
    with inside(host.fd):
        result = libbpf.library().bpf_prog_query_opts(
            host.index(name), libbpf.TCX_INGRESS, ctypes.byref(query)
        )
    assert result == 0, os.strerror(-result)
    return list(found[: query.count])


def test_it_is_put_on_and_taken_off(program: RelayProgram, server: Host) -> None:
    client, peer = server.index("client"), server.index("peer")
    attach(program, server, "client", "peer", "client")
    assert program.attached == {client, peer}
    program.detach(client)
    program.detach(client)
    assert program.attached == {peer}
    attach(program, server, "client")
    assert program.attached == {client, peer}
    (number,) = programs_on(server, "client")
    assert programs_on(server, "peer") == [number]
    program.close()
    assert programs_on(server, "client") == programs_on(server, "peer") == []


def test_an_interface_that_does_not_exist(program: RelayProgram) -> None:
    with pytest.raises(OSError, match="no program can be put on interface 99999: No such device"):
        program.attach(99999)
    assert program.attached == frozenset()


def test_an_interface_that_goes_and_comes_back(program: RelayProgram, server: Host) -> None:
    attach(program, server, "client")
    index = server.index("client")
    server.ip("link delete client")
    assert program.attached == frozenset()
    server.ip(f"link add client index {index} type veth peer name c")
    assert program.attached == frozenset()
    attach(program, server, "client")
    assert program.attached == {index}
    assert len(programs_on(server, "client")) == 1


def test_packets_go_from_cable_to_cable(program: RelayProgram, server: Host) -> None:
    attach(program, server, "client")
    connect(program, server, 40000)
    with Wires(server) as wires:
        for n in range(50):
            payload = bytes([n]) * n
            wires.send(message(40000, payload))
            assert wires.arrives().payload == payload
    assert program.usage(1) == (50, sum(range(50)), 0)
    assert program.counts()[Count.TO_PEERS] == 50
    program.clear_usage(1)
    assert program.usage(1) == (0, 0, 0)


def test_a_tag_is_seen_when_the_interface_has_taken_it_off(
    program: RelayProgram, server: Host
) -> None:
    attach(program, server, "client")
    connect(program, server, 40000)
    with Wires(server) as wires:
        wires.send(message(40000, b"tagged"), vlan=5)
        wires.send(message(40000, b"plain"))
        assert wires.arrives().payload == b"plain"
    assert program.counts()[Count.VLAN] == 1
    assert program.counts()[Count.TO_PEERS] == 1


def test_what_was_sent_on_this_machine_is_passed_up(program: RelayProgram, server: Host) -> None:
    """Its checksum is left to a network card, and on a veth there is none."""
    other = Host("client")
    try:
        server.ip(f"link set c netns {other.path}")
        other.ip(f"address add {CLIENT}/24 dev c", "link set c up")
        attach(program, server, "client")
        with other.socket() as sock:
            sock.bind((CLIENT, 0))
            connect(program, server, sock.getsockname()[1])
            with server.socket() as up:
                up.bind((SERVER, 3478))
                up.settimeout(PATIENCE)
                body = message(0, b"from a socket").payload
                sock.sendto(body, (SERVER, 3478))
                assert up.recv(100) == body
        assert program.counts()[Count.UNFINISHED] == 1
    finally:
        other.close()


def test_two_programs_on_an_interface(server: Host) -> None:
    """Each forwards what is its own and passes on the rest, whichever came first."""
    with closing() as load:
        first, second = load(), load()
        for program, port in ((first, 40001), (second, 40002)):
            attach(program, server, "client")
            connect(program, server, port)
        both = programs_on(server, "client")
        assert len(both) == 2
        with Wires(server) as wires:
            for n in range(20):
                port = 40001 + n % 2
                wires.send(message(port, bytes([n])))
                seen = wires.arrives()
                assert (seen.payload, seen.destination.port) == (bytes([n]), port)
            assert [one.usage(1).packets for one in (first, second)] == [10, 10]
            # What is the second's went by the first, which had no path for it.
            assert first.counts()[Count.NO_PATH] == 10
            assert second.counts()[Count.NO_PATH] == 0
            # One ends; the other is as it was.
            first.close()
            wires.send(message(40002, b"still"))
            assert wires.arrives().payload == b"still"
        assert programs_on(server, "client") == both[1:]


KILLED = """
import sys, time
from turn.dataplane.kernel.program import RelayProgram
program = RelayProgram.load(routes=16, buckets=4)
program.attach(int(sys.argv[1]))
program.attach(int(sys.argv[2]))
print("ready", flush=True)
time.sleep(600)
"""


def objects_of(pid: int) -> list[tuple[str, int]]:
    """The programs, maps and links that a process has descriptors of: kind and number."""
    found = set()
    for entry in Path(f"/proc/{pid}/fdinfo").iterdir():
        try:
            text = entry.read_text()
        except FileNotFoundError:
            continue  # of ours, the one by which the folder is read
        for kind in ("link", "prog", "map"):
            if number := re.search(rf"^{kind}_id:\s+(\d+)", text, re.MULTILINE):
                found.add((kind, int(number[1])))
                break
    return sorted(found)


def exists(kind: str, number: int) -> bool:
    shown = subprocess.run(
        ["bpftool", kind, "show", "id", str(number)], capture_output=True, check=False
    )
    return shown.returncode == 0


def test_children_inherit_nothing(program: RelayProgram, server: Host) -> None:
    """What turnd starts, and what may outlive it, does not keep the program where it is."""
    attach(program, server, "client")
    held = objects_of(os.getpid())
    assert len([one for one in held if one[0] == "link"]) == 1
    child = subprocess.Popen(["sleep", "600"], close_fds=False)
    try:
        assert objects_of(child.pid) == []
    finally:
        child.kill()
        child.wait()


def test_a_killed_process_leaves_nothing(server: Host) -> None:
    """No program, no map and no link remain, and packets take the way that they took before."""
    with closing() as load:
        survivor = load()
        attach(survivor, server, "client")
        connect(survivor, server, 40002)
        (own,) = programs_on(server, "client")
        indices = [str(server.index(name)) for name in ("client", "peer")]
        process = server.popen(
            [sys.executable, "-c", KILLED, *indices],
            env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            held = objects_of(process.pid)
            kinds = [kind for kind, _ in held]
            assert [kinds.count(kind) for kind in ("link", "prog", "map")] == [2, 2, 5]
            assert all(exists(*one) for one in held)
            assert programs_on(server, "client")[0] == own
            assert len(programs_on(server, "client")) == 2
            assert len(programs_on(server, "peer")) == 1
        finally:
            process.send_signal(signal.SIGKILL)
            process.communicate()
        end = time.monotonic() + PATIENCE
        # The kernel frees them a moment after the last descriptor is closed.
        while any(exists(*one) for one in held):
            assert time.monotonic() < end, [one for one in held if exists(*one)]
            time.sleep(0.02)
        assert programs_on(server, "client") == [own]
        assert programs_on(server, "peer") == []
        with Wires(server) as wires:
            wires.send(message(40002, b"undisturbed"))
            assert wires.arrives().payload == b"undisturbed"


def test_numbers_of_libbpf_are_those_of_the_kernel() -> None:
    require("kernel")
    text = Path("/usr/include/linux/pkt_cls.h").read_text()
    for name, value in (("TC_ACT_SHOT", libbpf.TC_DROP), ("TC_ACT_REDIRECT", libbpf.TC_REDIRECT)):
        assert re.search(rf"#define {name}\s+{value}\n", text)
    assert layouts.PORT_WORDS == 1024
