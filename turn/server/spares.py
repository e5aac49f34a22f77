"""Relayed transport addresses that are open before anybody asks for them.

Opening and binding a socket takes about as long as everything else that an Allocate needs.  With
``ServerConfig.spares`` a few are open already: a client gets one of these, and the next one is
opened when its answer is on the way.  Nothing is opened before the first client is served, and
nothing while ports are scarce.
"""

from __future__ import annotations

from typing import Final

from stun.sansio import Address, Cause, Closed, Handle, Instant, Opened, OpenUdp, Shut
from turn.server.config import RelayAddress
from turn.server.core import Core

SCARCE: Final = 256
"""With fewer free ports on a host none is kept back: a pair for EVEN-PORT must still be found."""


class Spares:
    """Sockets for datagrams, each on a port that is as unpredictable as any."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self.wanted: list[tuple[RelayAddress, Instant]] = []
        """Where one is missing, since when."""
        self._ready: dict[RelayAddress, list[tuple[Handle, Address]]] = {}
        self._coming: dict[Handle, tuple[RelayAddress, Address]] = {}

    def __len__(self) -> int:
        return len(self._coming) + sum(map(len, self._ready.values()))

    def take(self, place: RelayAddress) -> tuple[Handle, Address] | None:
        """Return the handle and the address of an open socket, ``None`` when there is none."""
        ready = self._ready.get(place)
        return ready.pop() if ready else None

    def want(self, place: RelayAddress, now: Instant) -> None:
        """Have :meth:`refill` order one, now that a client has got one."""
        if self._core.config.spares:
            self.wanted.append((place, now))

    def refill(self) -> None:
        """Order what replaces those that were taken, and one more each as long as some are missing.

        To be called when everything else is done.
        """
        core, wanted = self._core, self.wanted
        for place, now in wanted:
            coming = sum(one == place for one, _ in self._coming.values())
            missing = core.config.spares - len(self._ready.get(place, ())) - coming
            for _ in range(min(missing, 2)):
                if core.ports.available(place.local) < SCARCE:
                    break
                port = core.ports.pick(place.local, now)
                if port is None:
                    break
                handle, local = core.next_handle(), Address(place.local, port)
                self._coming[handle] = place, local
                core.queue(OpenUdp(handle, local))
        wanted.clear()

    def owns(self, handle: Handle) -> bool:
        """Whether a socket is one of these."""
        return handle in self._coming or any(
            handle == one for ready in self._ready.values() for one, _ in ready
        )

    def opened(self, event: Opened) -> bool:
        """Take note that one is open; say whether it is one of these."""
        coming = self._coming.pop(event.handle, None)
        if coming is None:
            return False
        self._ready.setdefault(coming[0], []).append((event.handle, event.local))
        return True

    def closed(self, event: Closed, now: Instant) -> None:
        """Take note that one could not be had, or failed.

        The next client's request orders anew, and hears what is wrong if there is none for it.
        """
        ports, coming = self._core.ports, self._coming.pop(event.handle, None)
        if coming is not None:
            place, local = coming
            if event.cause is Cause.ADDRESS_IN_USE:
                ports.refused(place.local, local.port, now)
            else:
                ports.give_back(place.local, local.port)
            return
        for place, ready in self._ready.items():
            for one in ready:
                if one[0] == event.handle:
                    ready.remove(one)
                    ports.give_back(place.local, one[1].port)
                    return

    def stop(self) -> None:
        """Shut them all, and free their ports."""
        held = [(place, *one) for place, ready in self._ready.items() for one in ready]
        held += [(place, handle, local) for handle, (place, local) in self._coming.items()]
        for place, handle, local in held:
            # Shut is carried out after the socket was opened, and no event follows it.
            self._core.queue(Shut(handle))
            self._core.ports.give_back(place.local, local.port)
        self.wanted.clear()
        self._ready.clear()
        self._coming.clear()
