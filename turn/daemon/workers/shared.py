"""What workers share, as the server machine of each sees it (:mod:`turn.server.siblings`).

The memory has, from its beginning: the rates, the openings, and each worker's accounts.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from stun.sansio import Address
from turn.daemon.workers import openings, rates
from turn.daemon.workers.accounts import Accounts, region_size
from turn.daemon.workers.memory import Memory
from turn.daemon.workers.openings import Openings
from turn.daemon.workers.rates import Rates
from turn.meter import Bucket
from turn.server.siblings import Held

_ACCOUNTS = -(-(rates.SIZE + openings.SIZE) // 4096) * 4096


def make_memory(workers: int, slots: int) -> Memory:
    """Return memory for so many workers; ``slots`` as :func:`.accounts.slots_for` says."""
    return Memory.make(_ACCOUNTS + workers * region_size(slots))


class Shared:
    """The memory as process ``number`` sees it; the supervisor is 0.

    ``tell`` is called with the local address of a relayed transport address that closed and that
    others forward to.
    """

    def __init__(
        self,
        memory: Memory,
        *,
        workers: int,
        slots: int,
        number: int,
        key: bytes,
        tell: Callable[[Address], None] = lambda _: None,
    ) -> None:
        self.memory = memory
        self._number = number
        self._key = key
        self._tell = tell
        self.accounts = Accounts(memory, _ACCOUNTS, slots, workers, number)
        self.openings = Openings(memory, rates.SIZE, number)
        self._rates = Rates(memory, 0)

    @property
    def number(self) -> int:
        """Which worker this is, from 1 on."""
        return self._number

    @property
    def key(self) -> bytes:
        """What all workers know."""
        return self._key

    def counting(self) -> AbstractContextManager[object]:
        """Let nobody else count meanwhile."""
        return self.memory

    def allocations(self, user: str, client: str | bytes) -> Held:
        """Return how many allocations other workers have: in all, of a user, of a client."""
        accounts = self.accounts
        return Held(accounts.totals()[0], accounts.user(user), accounts.client(client)[0])

    def connections(self, client: str | bytes) -> Held:
        """Return how many connections other workers have: in all, and of a client."""
        accounts = self.accounts
        return Held(accounts.totals()[1], 0, accounts.client(client)[1])

    def note(
        self,
        user: str | None,
        client: str | bytes,
        *,
        of_user: int,
        of_client: tuple[int, int],
        in_all: tuple[int, int],
    ) -> None:
        """Write down what a user and a client have of this worker."""
        accounts = self.accounts
        with self.memory:
            accounts.note_totals(*in_all)
            accounts.note_client(client, *of_client)
            if user is not None:
                accounts.note_user(user, of_user)

    def bucket(self, whose: str, key: str | bytes, rates: tuple[int, int]) -> Bucket:
        """Return a bucket that draws on what all workers share."""
        return self._rates.bucket(whose, key, rates)

    def opened(self, local: Address, *, tcp: bool) -> None:
        """Say that a relayed transport address is open."""
        self.openings.open(local.host, local.port, tcp=tcp)

    def closed(self, local: Address, *, tcp: bool) -> None:
        """Say that it closes, to those that forward there, too."""
        if self.openings.close(local.host, local.port, tcp=tcp):
            self._tell(local)

    def has(self, local: Address, *, tcp: bool) -> bool:
        """Whether another worker has it open."""
        return self.openings.has(local.host, local.port, tcp=tcp)

    def visit(self, local: Address) -> None:
        """Ask to be told when it closes."""
        self.openings.visit(local.host, local.port)
