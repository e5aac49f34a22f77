"""Users of a database, as far as they are known: a bounded table that a loader fills."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final, TypeVar

from stun.errors import UsageError
from stun.users import Gap, Secret

_K = TypeVar("_K")
_V = TypeVar("_V")

_ASK: Final = (Gap.NOT_YET,)
_DOWN: Final = (Gap.UNAVAILABLE,)


class _Entry:
    __slots__ = ("generation", "secrets", "since")

    def __init__(self, secrets: tuple[Secret, ...], generation: int) -> None:
        self.secrets = secrets
        self.generation = generation
        self.since: int | None = None
        """When it was first used.  A loader has another clock than the machine, so the machine's
        first look at an entry is where its age is counted from; it comes at once."""


class CachedUsers:
    """A :class:`stun.users.UserStore` in front of a database.

    ``capacity``: how many users are kept, and as many names that nobody has.  Those have a table of
    their own, so that somebody who tries names at random pushes out no user.
    ``fresh``: seconds for which a user is taken at its word; then the database is asked again.
    ``absent``: the same for a name that nobody has.
    ``grace``: seconds for which a user who was seen may go on when the database is down.
    """

    __slots__ = (
        "_absent",
        "_capacity",
        "_hashes",
        "_present",
        "_unknown_hashes",
        "absent",
        "fresh",
        "generation",
        "grace",
        "reachable",
    )

    def __init__(
        self, *, capacity: int = 20_000, fresh: int = 60, absent: int = 10, grace: int = 3600
    ) -> None:
        if capacity < 1 or fresh < 1 or absent < 1 or grace < 0:
            raise UsageError("a cache of users needs room, and times of at least a second")
        self.fresh = fresh
        self.absent = absent
        self.grace = grace
        self.reachable = True
        """Whether the database answers; the loader says so."""
        self.generation = 0
        """How often users have changed."""
        self._capacity = capacity
        self._present: OrderedDict[str, _Entry] = OrderedDict()
        self._absent: OrderedDict[str, _Entry] = OrderedDict()
        # A name has one hash for ever: only that nobody has it can become untrue.
        self._hashes: OrderedDict[bytes, str] = OrderedDict()
        self._unknown_hashes: OrderedDict[bytes, _Entry] = OrderedDict()

    # What the machine asks ------------------------------------------------------------------------

    def secrets(self, username: str, unix_time: int) -> Sequence[Secret | Gap]:
        """Return the user's secrets, nothing for nobody, or :attr:`stun.users.Gap.NOT_YET`."""
        entry = self._present.get(username)
        if entry is not None:
            age = self._age(entry, unix_time)
            if entry.generation == self.generation and 0 <= age < self.fresh:
                self._present.move_to_end(username)
                return entry.secrets
            if not self.reachable and 0 <= age < self.grace:
                # Perhaps the password was changed meanwhile: then it is not for us to say 401.
                return (*entry.secrets, Gap.UNAVAILABLE)
        elif self._is_absent(self._absent.get(username), unix_time):
            return ()
        return _ASK if self.reachable else _DOWN

    def by_userhash(self, value: bytes, unix_time: int) -> str | Gap | None:
        """Return the username whose USERHASH this is, or that it must be asked for."""
        name = self._hashes.get(value)
        if name is not None:
            self._hashes.move_to_end(value)
            return name
        if self._is_absent(self._unknown_hashes.get(value), unix_time):
            return None
        return Gap.NOT_YET if self.reachable else Gap.UNAVAILABLE

    def _age(self, entry: _Entry, unix_time: int) -> int:
        if entry.since is None:
            entry.since = unix_time
        return unix_time - entry.since

    def _is_absent(self, entry: _Entry | None, unix_time: int) -> bool:
        return (
            entry is not None
            and entry.generation == self.generation
            and 0 <= self._age(entry, unix_time) < self.absent
        )

    # What the loader tells ------------------------------------------------------------------------

    def put(
        self, username: str, secrets: Sequence[Secret] | None, generation: int | None = None
    ) -> None:
        """Take what the database has of a user; ``None``: there is none of this name.

        ``generation``: what :attr:`generation` was when the database was asked, so that an answer
        which a change has overtaken is not believed; ``None`` for now.
        """
        entry = self._entry(secrets or (), generation)
        if secrets is None:
            self._present.pop(username, None)
            self._keep(self._absent, username, entry)
        else:
            self._absent.pop(username, None)
            self._keep(self._present, username, entry)

    def _entry(self, secrets: Sequence[Secret], generation: int | None) -> _Entry:
        return _Entry(tuple(secrets), self.generation if generation is None else generation)

    def put_userhash(
        self, value: bytes, username: str | None, generation: int | None = None
    ) -> None:
        """Take whose USERHASH this is; ``None``: nobody's."""
        if username is None:
            self._keep(self._unknown_hashes, value, self._entry((), generation))
        else:
            self._unknown_hashes.pop(value, None)
            self._keep(self._hashes, value, username)

    def _keep(self, table: OrderedDict[_K, _V], key: _K, value: _V) -> None:
        table[key] = value
        table.move_to_end(key)
        if len(table) > self._capacity:
            table.popitem(last=False)

    def invalidate(self) -> None:
        """Believe nothing any more that was put before: users have changed."""
        self.generation += 1

    def __len__(self) -> int:
        return len(self._present)
