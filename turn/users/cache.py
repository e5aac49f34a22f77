"""Users of a database, as far as they are known: a bounded table that a loader fills.

Theory of operation.  What was put is believed for a time; then the machine is told to ask, and over
TCP all that a client has sent behind its request waits for the answer, media too.  So a loader that
says when it asked (``asked``) learns from :meth:`CachedUsers.due` for whom it soon has to, and asks
before anybody waits; but only for those whom somebody has used lately, since a client that relays
has something to refresh every few minutes (:data:`IDLE`).

Asking ahead changes nothing of what is promised.  An answer counts from when it was asked for, not
from when it is first used; and where no answer comes, what was known ends when it would have ended.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final, TypeVar

from stun.errors import UsageError
from stun.users import Gap, Secret

_K = TypeVar("_K")
_V = TypeVar("_V")

IDLE: Final = 300
"""Seconds after its last use for which a user is asked for ahead of time.  Clients that have data
relayed come back within them: "the Permission Lifetime MUST be 300 seconds" (RFC 8656 section 9),
and channels need one."""

_ASK: Final = (Gap.NOT_YET,)
_DOWN: Final = (Gap.UNAVAILABLE,)


class _Entry:
    __slots__ = ("generation", "secrets", "seen", "since", "used")

    def __init__(self, secrets: tuple[Secret, ...], generation: int, asked: int | None) -> None:
        self.secrets = secrets
        self.generation = generation
        self.since = asked
        """From when on its age is counted.  A loader may have another clock than the machine: of
        what it says and the machine's first look at the entry, the earlier counts."""
        self.seen = False
        self.used = asked
        """When somebody was last looked up by this name."""

    def age(self, unix_time: int) -> int:
        """Return how old it is, in seconds."""
        if not self.seen:
            self.seen = True
            if self.since is None or unix_time < self.since:
                self.since = unix_time
        assert self.since is not None
        return unix_time - self.since


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
        "_line",
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
        # When users of _present were asked for.  All are believed equally long, so whoever was
        # asked for first is the first here.
        self._line: OrderedDict[str, int] = OrderedDict()
        # A name has one hash for ever: only that nobody has it can become untrue.
        self._hashes: OrderedDict[bytes, str] = OrderedDict()
        self._unknown_hashes: OrderedDict[bytes, _Entry] = OrderedDict()

    # What the machine asks ------------------------------------------------------------------------

    def secrets(self, username: str, unix_time: int) -> Sequence[Secret | Gap]:
        """Return the user's secrets, nothing for nobody, or :attr:`stun.users.Gap.NOT_YET`."""
        entry = self._present.get(username)
        if entry is not None:
            age = entry.age(unix_time)
            entry.used = unix_time
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

    def _is_absent(self, entry: _Entry | None, unix_time: int) -> bool:
        return (
            entry is not None
            and entry.generation == self.generation
            and 0 <= entry.age(unix_time) < self.absent
        )

    # What the loader tells ------------------------------------------------------------------------

    def put(
        self,
        username: str,
        secrets: Sequence[Secret] | None,
        generation: int | None = None,
        asked: int | None = None,
    ) -> None:
        """Take what the database has of a user; ``None``: there is none of this name.

        ``generation``: what :attr:`generation` was when the database was asked, so that an answer
        which a change has overtaken is not believed; ``None`` for now.
        ``asked``: when that was, in seconds since 1970; ``None`` for when it is first used.
        """
        entry = self._entry(secrets or (), generation, asked)
        self._line.pop(username, None)
        if secrets is None:
            self._present.pop(username, None)
            self._keep(self._absent, username, entry)
            return
        self._absent.pop(username, None)
        before = self._present.get(username)
        if before is None:
            gone = self._keep(self._present, username, entry)
            if gone is not None:
                self._line.pop(gone, None)
        else:
            # It keeps its place: that it was asked for does not mean that somebody uses it.
            entry.used = before.used
            self._present[username] = entry
        if asked is not None:
            self._line[username] = asked

    def _entry(
        self, secrets: Sequence[Secret], generation: int | None, asked: int | None
    ) -> _Entry:
        known = self.generation if generation is None else generation
        return _Entry(tuple(secrets), known, asked)

    def put_userhash(
        self,
        value: bytes,
        username: str | None,
        generation: int | None = None,
        asked: int | None = None,
    ) -> None:
        """Take whose USERHASH this is; ``None``: nobody's."""
        if username is None:
            self._keep(self._unknown_hashes, value, self._entry((), generation, asked))
        else:
            self._unknown_hashes.pop(value, None)
            self._keep(self._hashes, value, username)

    def _keep(self, table: OrderedDict[_K, _V], key: _K, value: _V) -> _K | None:
        """Put something at the end of a table; return what has lost its place there."""
        table[key] = value
        table.move_to_end(key)
        return table.popitem(last=False)[0] if len(table) > self._capacity else None

    def due(self, unix_time: int, most: int) -> list[str]:
        """Return up to ``most`` users to ask for before the machine has to, the most urgent first.

        These are in use, and have been believed for three quarters of ``fresh`` or longer.  Each is
        returned once, until it is put again: a database that gave no answer is not asked again
        before somebody waits for it.
        """
        names: list[str] = []
        while self._line and len(names) < most:
            name, asked = next(iter(self._line.items()))
            if 0 <= unix_time - asked < self.fresh - self.fresh // 4:
                break
            del self._line[name]
            used = self._present[name].used
            if used is not None and unix_time - used < IDLE:
                names.append(name)
        return names

    def invalidate(self) -> None:
        """Believe nothing any more that was put before: users have changed."""
        self.generation += 1

    def __len__(self) -> int:
        return len(self._present)
