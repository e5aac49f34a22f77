"""What several servers of one realm share through Redis, beside their users.

*Nonce secrets*: every server accepts the nonces of every other, so a client that a load balancer
sends elsewhere is not challenged anew.  There are three, ``next``, ``current`` and ``previous``;
``current`` makes nonces.  When it is old enough, whichever server comes first moves them on, in one
step that Redis does undivided.  The next one is known to all long before it is used.

*How many allocations a user has*, so that a quota holds for the fleet: each server publishes its
own counts and reads those of the others, once a second.  A server that is gone is forgotten after
:data:`GONE` seconds, since its key expires.  A count may be a second old, so a user who asks
several servers at the same moment may get more than the quota, by what one second allows.

What is stored, each key with ``natkit:{realm}:`` before it:

==============  ======  =====================================================================
``nonce``       hash    ``next``, ``current``, ``previous`` (hexadecimal), ``since`` (seconds)
``servers``     set     the names of the servers
``count:NAME``  string  16 characters that change with the counts, then the counts in JSON
==============  ======  =====================================================================

Without Redis a server goes on: with the secrets it has, and after a while without the others'
counts.  It tries again until Redis is back.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from stun.nonce import NonceMaker
from stun.sansio import Entropy
from turn.users.base import BACKOFF, BackendError
from turn.users.redis import connect, explained, key_prefix

INTERVAL = 1.0
"""Seconds between two exchanges."""

GONE = 6
"""Seconds after which a server that was not heard of counts no more."""

ROTATION = 86400
"""Seconds for which a nonce secret is the current one."""

_TAG = 16

# Redis runs a script undivided.  Times are its own, so the servers' clocks play no part.
_SECRETS = """
local now = tonumber(redis.call('TIME')[1])
local since = tonumber(redis.call('HGET', KEYS[1], 'since'))
if not since then
  redis.call('HSET', KEYS[1], 'current', ARGV[1], 'next', ARGV[2], 'since', now)
elseif now - since >= tonumber(ARGV[3]) then
  redis.call('HSET', KEYS[1],
    'previous', redis.call('HGET', KEYS[1], 'current'),
    'current', redis.call('HGET', KEYS[1], 'next'),
    'next', ARGV[2], 'since', now)
end
return redis.call('HMGET', KEYS[1], 'current', 'next', 'previous')
"""


def encode_counts(counts: Mapping[str, int]) -> bytes:
    """Return counts as they are published."""
    text = json.dumps(counts, separators=(",", ":"), sort_keys=True, ensure_ascii=False).encode(
        errors="replace"
    )
    return hashlib.blake2b(text, digest_size=_TAG // 2).hexdigest().encode() + text


def decode_counts(published: bytes) -> dict[str, int]:
    """Return published counts; what is none counts nothing."""
    try:
        counts = json.loads(published[_TAG:])
    except ValueError:
        return {}
    if not isinstance(counts, dict):
        return {}
    return {name: n for name, n in counts.items() if type(n) is int and n > 0}


class FleetState:
    """Shares nonce secrets and counts with the other servers of the realm.

    ``nonces``: the server's; its secrets are rotated (:meth:`stun.nonce.NonceMaker.rotate`).
    ``counts``: what this server holds, allocations by username; called once a second.
    ``elsewhere``: told what all others hold together, when that has changed.
    ``report``: told when Redis is out of reach, with the reason, and ``None`` when it is back.
    """

    def __init__(
        self,
        url: str,
        realm: str,
        nonces: NonceMaker,
        *,
        counts: Callable[[], Mapping[str, int]],
        elsewhere: Callable[[Mapping[str, int]], None],
        report: Callable[[str | None], None] = lambda _: None,
        entropy: Entropy = os.urandom,
        interval: float = INTERVAL,
        rotation: int = ROTATION,
        backoff: Sequence[float] = BACKOFF,
    ) -> None:
        self._url = url
        self._prefix = key_prefix(realm)
        self._redis = connect(url)
        self._nonces = nonces
        self._counts = counts
        self._elsewhere = elsewhere
        self._report = report
        self._entropy = entropy
        self._interval = interval
        # A secret must be accepted for as long as a nonce made with it lives.
        self._rotation = max(rotation, nonces.lifetime)
        self._backoff = backoff
        self._name = entropy(8).hex()
        self._own = tuple(nonces.secrets)
        self._own_until: float | None = None
        self._published = b""
        self._others: dict[str, tuple[bytes, dict[str, int]]] = {}
        self._heard = time.monotonic()
        self.reachable = True
        """Whether the last exchange succeeded."""

    @property
    def servers(self) -> int:
        """How many servers of the realm are known, this one included."""
        return 1 + len(self._others)

    async def exchange(self) -> None:
        """Publish and read once; raises :class:`turn.users.base.BackendError`.

        Called before the server starts, it has the fleet's secrets from the first nonce on.
        """
        with explained(self._url):
            await self._share_secrets()
            await self._share_counts()
        self._heard = time.monotonic()

    async def _share_secrets(self) -> None:
        # Where there is none, ours is the first: then no nonce becomes invalid by a Redis that lost
        # what it had.
        ours, fresh = self._nonces.secrets[0].hex(), self._entropy(32).hex()
        found = await self._redis.eval(
            _SECRETS, 1, f"{self._prefix}nonce", ours, fresh, str(self._rotation)
        )
        try:
            shared = [bytes.fromhex(value.decode()) for value in found if value is not None]
        except ValueError:
            shared = []
        if not shared or any(len(secret) < 16 for secret in shared):
            raise BackendError(
                f"the key {self._prefix}nonce in Redis holds no secrets: delete it, and the next "
                "server makes new ones"
            )
        if self._own_until is None:
            # Clients may hold nonces of the time before Redis was reached.
            self._own_until = time.monotonic() + self._nonces.lifetime
        if time.monotonic() < self._own_until:
            shared += self._own
        if tuple(shared) != tuple(self._nonces.secrets):
            self._nonces.rotate(shared)

    async def _share_counts(self) -> None:
        own, servers = f"{self._prefix}count:{self._name}", f"{self._prefix}servers"
        published = encode_counts(self._counts())
        async with self._redis.pipeline(transaction=False) as work:
            if published == self._published:
                work.expire(own, GONE)
            else:
                work.set(own, published, ex=GONE)
            work.sadd(servers, self._name)
            work.smembers(servers)
            still_there, _, members = await work.execute()
        # Away for so long that the others forgot us: the whole is sent the next time.
        self._published = published if still_there else b""
        names = sorted({str(name, "ascii", "replace") for name in members} - {self._name})
        async with self._redis.pipeline(transaction=False) as work:
            for name in names:
                work.getrange(f"{self._prefix}count:{name}", 0, _TAG - 1)
            tags = dict(zip(names, await work.execute(), strict=True)) if names else {}
        gone = [name for name, tag in tags.items() if not tag]
        if gone:
            await self._redis.srem(servers, *gone)
        changed = [n for n, tag in tags.items() if tag and self._others.get(n, (b"",))[0] != tag]
        found = []
        if changed:
            found = await self._redis.mget([f"{self._prefix}count:{name}" for name in changed])
        lost = [name for name in self._others if not tags.get(name)]
        for name in lost:
            del self._others[name]
        for name, counts in zip(changed, found, strict=True):
            if counts is not None:
                self._others[name] = (counts[:_TAG], decode_counts(counts))
        if lost or changed:
            self._tell()

    def _tell(self) -> None:
        together: Counter[str] = Counter()
        for _, counts in self._others.values():
            together.update(counts)
        self._elsewhere(dict(together))

    async def run(self) -> None:
        """Exchange once a second, until cancelled."""
        attempt = 0
        while True:
            try:
                await self.exchange()
            except BackendError as error:
                self._failed(error)
                await asyncio.sleep(self._backoff[min(attempt, len(self._backoff) - 1)])
                attempt += 1
                continue
            attempt = 0
            if not self.reachable:
                self.reachable = True
                self._report(None)
            await asyncio.sleep(self._interval)

    def _failed(self, error: BackendError) -> None:
        if self.reachable:
            self.reachable = False
            self._report(str(error))
        if self._others and time.monotonic() - self._heard > GONE:
            # Better each server by itself than to refuse users for what may be long gone.
            self._others.clear()
            self._tell()

    async def close(self) -> None:
        """Take this server's counts away, so that the others need not wait, and disconnect."""
        with suppress(BackendError), explained(self._url):
            await self._redis.srem(f"{self._prefix}servers", self._name)
            await self._redis.delete(f"{self._prefix}count:{self._name}")
        await self._redis.aclose()
