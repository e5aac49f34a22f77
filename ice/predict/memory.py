"""What worked before, by network: so that the next connection begins with it.

Theory of operation.  A small JSON file in the user's cache directory has one entry for each network
that this host was in: how its NATs behaved, and by which strategy peers of each sort were reached.
It is a cache in every sense.  Nothing in it is needed, entries expire, the oldest give way beyond
:data:`MOST_NETWORKS`, and a file that cannot be read is a file with nothing in it, with a note that
is counted (:attr:`Memory.notes`).  Writing replaces the file as a whole, so that a reader, or a
crash, never sees half of one; of two programs that write at once the later one wins.

No address is stored in clear.  The network is named by a slow hash (scrypt) of its gateway's
addresses and of the interface, salted per file; there are too many combinations of an IP and a MAC
address to try them all at that price.  The peer is known by how its NATs behave alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from ice.predict.steps import Strategy
from ice.predict.summary import (
    FamilySummary,
    NatSummary,
    PathSummary,
    SummaryError,
    Transport,
)

VERSION: Final = 1
MOST_NETWORKS: Final = 64
MOST_PEERS: Final = 32
"""Sorts of peers remembered for one network."""
MOST_OCTETS: Final = 1 << 20
EXPIRES: Final = 30 * 86_400.0
"""Seconds after which what worked is forgotten."""
SUMMARY_EXPIRES: Final = 86_400.0
"""Seconds after which a network's NATs are to be measured again in any case."""

_SALT_OCTETS: Final = 16


@dataclass(frozen=True, slots=True)
class Network:
    """What tells one network from another.  Empty strings where a thing is not known."""

    gateway: str = ""
    """The gateway's IP address."""
    hardware: str = ""
    """The gateway's MAC address."""
    interface: str = ""

    @property
    def is_known(self) -> bool:
        """Whether there is enough to know it again by."""
        return bool(self.gateway or self.hardware)


def this_network(proc: Path = Path("/proc/net")) -> Network:
    """Return the network that the default route leads through, as far as the system tells (Linux).

    Reads two small files of the kernel's; never raises.
    """
    for fields in _table(proc / "route"):
        # Destination and mask 0, and the flag RTF_GATEWAY; addresses are in host byte order.
        if len(fields) > 7 and fields[1] == fields[7] == "00000000" and _hex(fields[3]) & 2:
            octets = _hex(fields[2]).to_bytes(4, "little" if _LITTLE else "big")
            gateway = ".".join(map(str, octets))
            for entry in _table(proc / "arp"):
                if len(entry) > 5 and entry[0] == gateway and entry[5] == fields[0]:
                    return Network(gateway, entry[3], fields[0])
            return Network(gateway, "", fields[0])
    return Network()


_LITTLE: Final = memoryview(b"\1\0").cast("H")[0] == 1


def _table(path: Path) -> list[list[str]]:
    try:
        return [line.split() for line in path.read_text().splitlines()[1:]]
    except (OSError, ValueError):
        return []


def _hex(text: str) -> int:
    try:
        return int(text, 16) & 0xFFFF_FFFF
    except ValueError:
        return 0


def default_path(environment: Mapping[str, str] = os.environ) -> Path:
    """Return where the memory is kept: XDG_CACHE_HOME, or what stands for it."""
    base = environment.get("XDG_CACHE_HOME", "")
    # The XDG specification: "All paths [...] must be absolute", others are to be ignored.
    cache = Path(base) if base.startswith("/") else Path.home() / ".cache"
    return cache / "natkit" / "paths.json"


class Memory:
    """What is remembered.  ``path`` ``None``: nothing is, and nothing is read or written.

    Reading happens at the first question, writing at each thing learnt; both are small.  Nothing
    here raises for what is in the file or for what the file system does.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        network: Network | None = None,
        clock: Callable[[], float] = time.time,
        entropy: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self.notes: Counter[str] = Counter()
        """What went wrong with the file, in words, and how often."""
        self._path = path
        self._network = network
        self._clock = clock
        self._entropy = entropy
        self._salt = b""
        self._networks: dict[str, dict[str, Any]] | None = None
        self._names: dict[Network, str] = {}

    # Asking. --------------------------------------------------------------------------------------

    def worked(self, theirs: NatSummary, transport: Transport) -> tuple[Strategy, ...]:
        """Return what reached a peer with such NATs from this network, the latest first."""
        entry = self._entry()
        if entry is None:
            return ()
        kept = entry["worked"].get(_sort_of(theirs, transport), {})
        fresh = [name for name, at in kept.items() if self._is_fresh(at, EXPIRES)]
        fresh.sort(key=lambda name: -float(kept[name]))
        return tuple(Strategy(name) for name in fresh)

    def summary(self) -> NatSummary | None:
        """Return what this network's NATs were like, if that was measured not long ago.

        Without external addresses, for these are not kept.
        """
        entry = self._entry()
        if entry is None or not self._is_fresh(entry["measured"], SUMMARY_EXPIRES):
            return None
        return NatSummary.from_json(entry["nat"])

    # Telling. -------------------------------------------------------------------------------------

    def learn(self, theirs: NatSummary, transport: Transport, strategy: Strategy) -> None:
        """Remember that this side's ``strategy`` reached a peer with such NATs."""
        entry = self._entry(make=True)
        if entry is None:
            return
        peers = entry["worked"]
        sort = _sort_of(theirs, transport)
        peers[sort] = {**peers.pop(sort, {}), strategy.value: round(self._clock())}
        while len(peers) > MOST_PEERS:
            del peers[next(iter(peers))]
        self._write()

    def unlearn(self, theirs: NatSummary, transport: Transport, strategy: Strategy) -> None:
        """Remember no more that it did: it failed."""
        entry = self._entry()
        if entry is None:
            return
        kept = entry["worked"].get(_sort_of(theirs, transport), {})
        if kept.pop(strategy.value, None) is not None:
            self._write()

    def measured(self, summary: NatSummary) -> None:
        """Remember how this network's NATs behave."""
        entry = self._entry(make=True)
        if entry is None:
            return
        entry["nat"] = _anonymous(summary).to_json()
        entry["measured"] = round(self._clock())
        self._write()

    def forget(self) -> None:
        """Forget everything, and remove the file."""
        self._networks = {}
        if self._path is not None:
            try:
                self._path.unlink(missing_ok=True)
            except OSError as error:
                self._note(f"cannot remove {self._path}: {error.strerror}")

    # Inside. --------------------------------------------------------------------------------------

    def _is_fresh(self, at: float, lifetime: float) -> bool:
        # A clock that was set back makes entries from the future: they are as good as old.
        return -86_400.0 < self._clock() - at < lifetime

    def _note(self, text: str) -> None:
        self.notes[text] += 1

    def _entry(self, *, make: bool = False) -> dict[str, Any] | None:
        """Return what is known of this network."""
        if self._path is None:
            return None
        if self._network is None:
            self._network = this_network()
        if not self._network.is_known:
            return None
        if self._networks is None:
            self._networks = self._read()
        name = self._name(self._network)
        entry = self._networks.get(name)
        if entry is None and make:
            entry = {"seen": 0, "measured": 0, "nat": None, "worked": {}}
            self._networks[name] = entry
        if entry is not None:
            entry["seen"] = round(self._clock())
        return entry

    def _name(self, network: Network) -> str:
        name = self._names.get(network)
        if name is None:
            text = "\0".join((network.gateway, network.hardware, network.interface))
            hashed = hashlib.scrypt(text.encode(), salt=self._salt, n=4096, r=8, p=1, dklen=16)
            name = self._names[network] = hashed.hex()
        return name

    def _read(self) -> dict[str, dict[str, Any]]:
        assert self._path is not None
        try:
            with self._path.open("rb") as file:
                text = file.read(MOST_OCTETS + 1)
            if len(text) > MOST_OCTETS:
                raise ValueError("it is too large")
            salt, networks = _checked(json.loads(text))
        except FileNotFoundError:
            salt, networks = b"", {}
        except OSError as error:
            self._note(f"cannot read {self._path}: {error.strerror}")
            salt, networks = b"", {}
        except (ValueError, RecursionError, SummaryError):
            # The next thing learnt replaces it.
            self._note(f"{self._path} is not what it should be and was passed over")
            salt, networks = b"", {}
        self._salt = salt or self._entropy(_SALT_OCTETS)
        return {
            name: entry
            for name, entry in networks.items()
            if self._is_fresh(entry["seen"], EXPIRES)
        }

    def _write(self) -> None:
        networks = self._networks
        assert self._path is not None
        assert networks is not None
        while len(networks) > MOST_NETWORKS:
            del networks[min(networks, key=lambda name: float(networks[name]["seen"]))]
        document = {"v": VERSION, "salt": self._salt.hex(), "networks": networks}
        folder = self._path.parent
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # mkstemp makes a file that nobody else may read.
            handle, name = tempfile.mkstemp(dir=folder, prefix=".paths-")
            try:
                with os.fdopen(handle, "w") as file:
                    json.dump(document, file)
                Path(name).replace(self._path)
            except BaseException:
                with contextlib.suppress(OSError):
                    Path(name).unlink()
                raise
        except OSError as error:
            self._note(f"cannot write {self._path}: {error.strerror}")


def _sort_of(theirs: NatSummary, transport: Transport) -> str:
    """Name the sort of peer: how its NATs behave towards connections, and nothing of who it is."""
    parts = []
    for family in ("ipv4", "ipv6"):
        path = theirs.path(transport, family)
        if path is not None:
            parts.append(f"{family}:{path.mapping}/{path.filtering}/{path.allocation}")
    return f"{transport} {' '.join(parts)}"


def _anonymous(summary: NatSummary) -> NatSummary:
    def path(one: PathSummary | None) -> PathSummary | None:
        return None if one is None else replace(one, hosts=())

    def family(one: FamilySummary | None) -> FamilySummary | None:
        return None if one is None else FamilySummary(path(one.udp), path(one.tcp))

    return replace(summary, ipv4=family(summary.ipv4), ipv6=family(summary.ipv6))


def _checked(document: Any) -> tuple[bytes, dict[str, dict[str, Any]]]:
    """Return salt and entries of a document.  Raises ``ValueError`` or ``SummaryError``."""
    if not isinstance(document, dict) or document.get("v") != VERSION:
        raise ValueError("another format")
    salt = bytes.fromhex(_text(document.get("salt")))
    networks = document.get("networks")
    if len(salt) != _SALT_OCTETS or not isinstance(networks, dict):
        raise ValueError("no salt or no networks")
    return salt, {_text(name): _entry(entry) for name, entry in networks.items()}


def _text(raw: Any) -> str:
    if not isinstance(raw, str):
        raise ValueError("not a text")
    return raw


def _time(raw: Any) -> float:
    if not isinstance(raw, int | float) or not 0 <= raw < 1e12:
        raise ValueError("not a time")
    return raw


def _entry(raw: Any) -> dict[str, Any]:
    if not isinstance(raw, dict) or not isinstance(raw.get("worked"), dict):
        raise ValueError("not an entry")
    nat, measured = raw.get("nat"), _time(raw.get("measured"))
    if nat is not None:
        NatSummary.from_json(nat)
    elif measured:
        raise ValueError("measured, but nothing found")
    worked: dict[str, dict[str, float]] = {}
    for sort, strategies in raw["worked"].items():
        if not isinstance(strategies, dict):
            raise ValueError("not strategies")
        worked[sort] = {Strategy(name).value: _time(at) for name, at in strategies.items()}
    return {"seen": _time(raw.get("seen")), "measured": measured, "nat": nat, "worked": worked}
