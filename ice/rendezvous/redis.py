"""The book of any number of processes, kept in Redis: they share one name space.

What is stored, each key with ``natkit:rendezvous:`` before it:

=============  ======  ==========================================================================
``name:NAME``  string  ``MEMBER``, who waits; ``MEMBER MEMBER``, who have met; or ``-``, a one-time
                       name that rests
``hall:HALL``  string  ``1``: the process is alive
=============  ======  ==========================================================================

Everything expires by itself unless its process says every other second that it is still wanted, so
a process that is killed leaves nothing behind.  A hello is not stored: a process that finds who
waits asks the other one's process for it (:mod:`ice.rendezvous.letters`).

Letters go by publish and subscribe, one channel a process.  Whether a process is there is known
from its channel as well: Redis notices at once when its connection ends.  A process that is gone
loses its names to whoever claims them, and the peers of its clients are told.

Theory of operation.  Claims, releases and letters go to Redis in the order in which the hall made
them, as many at a time as there are: one round trip a batch.  When Redis is gone, those who wait
here go on waiting and pairs of this process are not concerned; what would need Redis is refused.
When it is back, what it has forgotten is written anew, and whoever is found to have lost the name
meanwhile meets the one who has it.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final, TypeAlias

from ice.rendezvous.letters import MAX_LETTER, decode_letter, encode_letter
from ice.rendezvous.names import REST, Meets, Member, Outcome, Refusal, Waits, one_time_names
from ice.rendezvous.protocol import ErrorCode, is_one_time
from ice.rendezvous.server import Keeper
from ice.rendezvous.terms import Claim, Post, Release
from stun.errors import StunError
from stun.sansio import SECOND
from turn.users.redis import connect, explained

PREFIX: Final = "natkit:rendezvous:"
TTL: Final = 15
"""Seconds after which Redis forgets what its process has not asked it to keep."""
INTERVAL: Final = 2.0
"""Seconds between two rounds of asking it to."""
GONE: Final = 4.0
"""Seconds for which another process is not there until it counts as gone: after a restart of Redis
all are back within one."""
PATIENCE: Final = 3.0
"""Seconds that a batch may take."""
BATCH: Final = 256
CHUNK: Final = 1000
"""Names in one command of a round."""
MOST_QUEUED: Final = 32 << 20
"""Octets of letters that wait for Redis; beyond it they count as lost."""
DEAF: Final = 10.0
"""Seconds after which a subscription that hears not even its own process is made anew."""
RETRY: Final = 0.5
"""Seconds until another attempt to reach Redis."""

# A process is there if it has said so lately and is subscribed to its channel.
_ALIVE = f"""
local function alive(member)
  local hall = '{PREFIX}hall:' .. string.match(member, '^[^/]+')
  return redis.call('EXISTS', hall) == 1 and redis.call('PUBSUB', 'NUMSUB', hall)[2] > 0
end
"""

# KEYS: the name.  ARGV: member, TTL and rest in milliseconds, whether it is one-time, whether it
# may be written where there is nothing.
_CLAIM = (
    _ALIVE
    + """
local me, one_time, create = ARGV[1], ARGV[4] == '1', ARGV[5] == '1'
local held = redis.call('GET', KEYS[1])
if held == '-' then return {'unknown'} end
if held then
  local first, second = string.match(held, '^(%S+) ?(%S*)$')
  if first == me then
    redis.call('PEXPIRE', KEYS[1], ARGV[2])
    return {'waits'}
  elseif first and alive(first) then
    if second == '' then
      if one_time then
        redis.call('SET', KEYS[1], '-', 'PX', ARGV[3])
      else
        redis.call('SET', KEYS[1], first .. ' ' .. me, 'PX', ARGV[2])
      end
      return {'meets', first}
    elseif alive(second) then
      return {'busy', first, second}
    end
  end
end
if not create then return {'unknown'} end
redis.call('SET', KEYS[1], me, 'PX', ARGV[2])
return {'waits'}
"""
)

# ARGV: member, TTL in milliseconds, names to try.
_MAKE = f"""
for i = 3, #ARGV do
  if redis.call('SET', '{PREFIX}name:' .. ARGV[i], ARGV[1], 'NX', 'PX', ARGV[2]) then
    return ARGV[i]
  end
end
return false
"""

# KEYS: the name.  ARGV: member, rest in milliseconds, whether it is one-time.
_RELEASE = """
local held = redis.call('GET', KEYS[1])
if not held or not string.find(' ' .. held .. ' ', ' ' .. ARGV[1] .. ' ', 1, true) then return 0 end
if ARGV[3] == '1' then
  redis.call('SET', KEYS[1], '-', 'PX', ARGV[2])
else
  redis.call('DEL', KEYS[1])
end
return 1
"""

# KEYS: names.  ARGV: TTL in milliseconds, then the member of each name.  Returns what each is: 1
# for kept, 2 for used up, 0 for gone.
_KEEP = """
local found = {}
for i, key in ipairs(KEYS) do
  local held = redis.call('GET', key)
  if held == '-' then
    found[i] = 2
  elseif held and string.find(' ' .. held .. ' ', ' ' .. ARGV[i + 1] .. ' ', 1, true) then
    redis.call('PEXPIRE', key, ARGV[1])
    found[i] = 1
  else
    found[i] = 0
  end
end
return found
"""

# For each process: whether it is there.
_THERE = (
    _ALIVE
    + """
local found = {}
for i, hall in ipairs(ARGV) do found[i] = alive(hall .. '/') and 1 or 0 end
return found
"""
)

_MILLISECONDS = 1000
_REST_MS = REST // SECOND * _MILLISECONDS

Order: TypeAlias = Claim | Release | Post


class RedisBook:
    """A :class:`ice.rendezvous.server.Book` that other processes write in, too.

    ``report`` is told what is wrong when Redis cannot be used, once, and ``None`` when it is back.
    Raises :class:`stun.errors.UsageError` for a URL that is none, and without the library.
    """

    def __init__(
        self,
        url: str,
        *,
        report: Callable[[str | None], None] = lambda _: None,
        ttl: float = TTL,
        interval: float = INTERVAL,
    ) -> None:
        self._url = url
        self._redis = connect(url)
        self._report = report
        self._ttl = str(round(ttl * _MILLISECONDS))
        self._interval = interval
        self._keeper: Keeper | None = None
        self._queue: deque[tuple[Order, bool]] = deque()
        self._queued = 0
        self._wake = asyncio.Event()
        self._problem: str | None = None
        self._missing: dict[str, float] = {}
        self._used_up: set[int] = set()
        self._heard = 0.0
        self._subscription: Any = None
        self._closing = False

    # A book. --------------------------------------------------------------------------------------

    async def open(self, keeper: Keeper) -> None:
        """Say that this process is there.  Raises :class:`turn.users.base.BackendError`."""
        self._keeper = keeper
        try:
            await self._subscribe()
            with self._asking():
                await self._redis.set(self._channel, "1", px=int(self._ttl))
                await self._there([keeper.hall.name])  # whether scripts may do what they need
        except BaseException:
            await self._disconnect()
            raise

    async def run(self) -> None:
        """Keep what this process has, and hear what others have to say."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._write())
            tasks.create_task(self._listen())
            tasks.create_task(self._tend())

    async def close(self) -> None:
        """Send what waits, give up what this process has, and end."""
        self._closing = True
        with suppress(StunError, TimeoutError):
            async with asyncio.timeout(PATIENCE):
                while self._queue and self._problem is None:
                    await self._write_some()
                with self._asking():
                    await self._redis.delete(self._channel)
        await self._disconnect()

    def claim(self, order: Claim) -> None:
        """Ask for a name, or make one."""
        self._put(order)

    def release(self, order: Release) -> None:
        """Give up a name."""
        self._put(order)

    def post(self, order: Post) -> None:
        """Carry a letter."""
        self._put(order)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Explain what goes wrong; and end a task that was cancelled, whatever became of that.

        The library drops a cancellation that comes at the moment at which an answer does.
        """
        with explained(self._url):
            yield
        task = asyncio.current_task()
        # Whoever closes may have been cancelled, and closes all the same.
        if not self._closing and task is not None and task.cancelling():
            raise asyncio.CancelledError

    @property
    def _hall(self) -> Any:
        assert self._keeper is not None
        return self._keeper.hall

    @property
    def _channel(self) -> str:
        return f"{PREFIX}hall:{self._hall.name}"

    def _put(self, order: Order, *, again: bool = False) -> None:
        if isinstance(order, Post):
            self._queued += _size(order)
            if self._queued > MOST_QUEUED:
                self._queued -= _size(order)
                self._failed([(order, again)])
                return
        self._queue.append((order, again))
        self._wake.set()

    # Writing. -------------------------------------------------------------------------------------

    async def _write(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._queue:
                await self._write_some()

    async def _write_some(self) -> None:
        """Do what has waited longest; whatever fails is told to the hall."""
        batch = [self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))]
        self._queued -= sum(_size(order) for order, _ in batch if isinstance(order, Post))
        try:
            results = await self._commands(batch)
        except StunError as error:
            self._state(str(error))
            self._failed(batch)
            return
        assert self._keeper is not None
        hall, now = self._hall, self._keeper.now()
        for (order, _), result in zip(batch, results, strict=True):
            match order:
                case Claim():
                    hall.claimed(order.client, _outcome(order, result), now)
                case Post() if result == 0:
                    hall.undelivered(order.letter, now)
        self._keeper.flush()

    async def _commands(self, batch: Sequence[tuple[Order, bool]]) -> list[Any]:
        with self._asking():
            async with asyncio.timeout(PATIENCE):
                pipeline = self._redis.pipeline(transaction=False)
                for order, again in batch:
                    self._command(pipeline, order, again)
                return list(await pipeline.execute())

    def _command(self, pipeline: Any, order: Order, again: bool) -> None:
        match order:
            case Post():
                channel = f"{PREFIX}hall:{order.letter.to.hall}"
                pipeline.publish(channel, encode_letter(order.letter))
            case Release(client, name):
                member, one_time = self._member(client), is_one_time(name)
                pipeline.eval(_RELEASE, 1, _key(name), member, _REST_MS, int(one_time))
            case Claim(client, None):
                names = one_time_names(os.urandom)
                pipeline.eval(_MAKE, 0, self._member(client), self._ttl, *names)
            case Claim(client, str(name)):
                member, one_time = self._member(client), is_one_time(name)
                create = again or not one_time
                arguments = (member, self._ttl, _REST_MS, int(one_time), int(create))
                pipeline.eval(_CLAIM, 1, _key(name), *arguments)

    def _failed(self, batch: Sequence[tuple[Order, bool]]) -> None:
        assert self._keeper is not None
        hall, now = self._hall, self._keeper.now()
        for order, again in batch:
            match order:
                case Claim() if not again:
                    hall.claimed(order.client, Refusal(ErrorCode.UNAVAILABLE), now)
                case Post():
                    hall.undelivered(order.letter, now)
        self._keeper.flush()

    def _member(self, client: int) -> str:
        return str(Member(self._hall.name, client))

    # Listening. -----------------------------------------------------------------------------------

    async def _subscribe(self) -> None:
        subscription = self._redis.pubsub()
        try:
            with self._asking():
                async with asyncio.timeout(PATIENCE):
                    await subscription.subscribe(self._channel)
                    # The answer: from here on Redis counts this process as subscribed.
                    await subscription.get_message(timeout=PATIENCE)
        except BaseException:
            with suppress(Exception):
                await subscription.aclose()
            raise
        self._subscription = subscription
        self._heard = asyncio.get_running_loop().time()

    async def _listen(self) -> None:
        while True:
            try:
                if self._subscription is None:
                    await self._subscribe()
                await self._hear()
            except (StunError, TimeoutError) as error:
                self._state(str(error) or "it does not answer")
            subscription, self._subscription = self._subscription, None
            if subscription is not None:
                with suppress(Exception):
                    await subscription.aclose()
            await asyncio.sleep(RETRY)

    async def _hear(self) -> None:
        """Take what others say, until the subscription ends or has become deaf."""
        loop = asyncio.get_running_loop()
        assert self._keeper is not None
        while loop.time() - self._heard < DEAF:
            with self._asking():
                message = await self._subscription.get_message(timeout=1.0)
            if message is None or message["type"] != "message":
                continue
            self._heard = loop.time()
            if not message["data"]:
                continue  # from this very process, to find out whether it hears
            try:
                letter = decode_letter(message["data"][: MAX_LETTER + 1])
            except ValueError:
                self._hall.counts.dropped["a letter that cannot be read"] += 1
                continue
            self._hall.take(letter, self._keeper.now())
            self._keeper.flush()

    # Tending. -------------------------------------------------------------------------------------

    async def _tend(self) -> None:
        while True:
            try:
                async with asyncio.timeout(PATIENCE * 2):
                    await self._round()
            except (StunError, TimeoutError) as error:
                self._state(str(error) or "it does not answer in time")
                await asyncio.sleep(RETRY)
            else:
                if self._subscription is not None:
                    self._state(None)
                await asyncio.sleep(self._interval)

    async def _round(self) -> None:
        hall = self._hall
        with self._asking():
            await self._redis.set(self._channel, "1", px=int(self._ttl))
            await self._redis.publish(self._channel, b"")
        held = [
            (number, name, peer)
            for number, name, peer in hall.holding()
            # A one-time name is used up once two have met.
            if not (peer is not None and is_one_time(name))
        ]
        for start in range(0, len(held), CHUNK):
            await self._keep(held[start : start + CHUNK])
        self._used_up &= {number for number, _, _ in held}
        await self._look_at_others()

    async def _keep(self, held: Sequence[tuple[int, str, Member | None]]) -> None:
        keys = [_key(name) for _, name, _ in held]
        members = [self._member(number) for number, _, _ in held]
        with self._asking():
            found = await self._redis.eval(_KEEP, len(keys), *keys, self._ttl, *members)
        for (number, name, peer), state in zip(held, found, strict=True):
            if state == 2:
                self._on_used_up(number)
                continue
            self._used_up.discard(number)
            if state == 0 and peer is None:
                self._put(Claim(number, name), again=True)
            elif state == 0:
                pair = f"{self._member(number)} {peer}"
                with self._asking():
                    await self._redis.set(_key(name), pair, nx=True, px=int(self._ttl))

    def _on_used_up(self, number: int) -> None:
        """Take note that somebody has met one who still waits: it should have heard of it soon."""
        if number not in self._used_up:
            self._used_up.add(number)
            return
        assert self._keeper is not None
        self._hall.claimed(number, Refusal(ErrorCode.EXPIRED), self._keeper.now())
        self._keeper.flush()

    async def _look_at_others(self) -> None:
        others = sorted(self._hall.peer_halls())
        if not others:
            self._missing.clear()
            return
        with self._asking():
            there = await self._there(others)
        assert self._keeper is not None
        time = asyncio.get_running_loop().time()
        before, self._missing = self._missing, {}
        for hall, is_there in zip(others, there, strict=True):
            if is_there:
                continue
            since = self._missing[hall] = before.get(hall, time)
            if time - since >= GONE:
                self._hall.hall_lost(hall, self._keeper.now())
        self._keeper.flush()

    async def _there(self, halls: Sequence[str]) -> list[int]:
        return list(await self._redis.eval(_THERE, 0, *halls))

    # The state of Redis. --------------------------------------------------------------------------

    def _state(self, problem: str | None) -> None:
        was, self._problem = self._problem, problem
        if (was is None) != (problem is None):
            self._report(problem)

    async def _disconnect(self) -> None:
        for one in (self._subscription, self._redis):
            if one is not None:
                with suppress(Exception):
                    await one.aclose()
        self._subscription = None


def _key(name: str) -> str:
    return f"{PREFIX}name:{name}"


def _size(order: Post) -> int:
    letter = order.letter
    return 256 + len(getattr(letter, "data", b"")) + len(getattr(letter, "hello", b""))


def _outcome(order: Claim, result: Any) -> Outcome:
    """Return what a script's answer means."""
    if order.name is None:
        return Refusal(ErrorCode.UNAVAILABLE) if result is None else Waits(_words(result))
    try:
        match [_words(one) for one in result]:
            case ["waits"]:
                return Waits(order.name)
            case ["meets", other]:
                return Meets(order.name, Member.parse(other))
            case ["busy", first, second]:
                return Refusal(ErrorCode.BUSY, (Member.parse(first), Member.parse(second)))
            case ["unknown"]:
                return Refusal(ErrorCode.UNKNOWN_NAME)
    except ValueError:
        pass  # somebody else has written there
    return Refusal(ErrorCode.UNAVAILABLE)


def _words(octets: bytes | str) -> str:
    return octets if isinstance(octets, str) else octets.decode("ascii", "replace")


__all__ = ["RedisBook"]
