"""Records, URLs, and the loader between a machine and a database that may be down."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from stun.credentials import Profile, long_term_key, userhash
from stun.errors import UsageError
from stun.registry import PasswordAlgorithm
from stun.users import Gap, Password, StoredKeys
from turn.server.events import Drained, LookUp
from turn.users.base import (
    AHEAD,
    AHEAD_AT_ONCE,
    AT_ONCE,
    BackendError,
    BadRecord,
    Loader,
    UserRecord,
    Where,
    redacted,
    where,
)
from turn.users.cache import CachedUsers

NOW = 1_700_000_000
REALM = "example.org"
ALICE = (Password("pass"),)


class Database:
    """A database in memory, which can be down, slow, or changed."""

    def __init__(self):
        self.users = {"alice": ALICE}
        self.asked = []
        self.down = self.bad = False
        self.is_changed = False
        self.gate = asyncio.Event()
        self.gate.set()
        self.gates = {}
        self.down_for = set()
        self.inside = self.most = 0
        self.closed = False

    async def answer(self, question, value):
        self.asked.append(question)
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            await self.gates.get(question, self.gate).wait()
        finally:
            self.inside -= 1
        if self.down or question in self.down_for:
            raise BackendError("the database sleeps: wake it")
        if self.bad:
            raise BadRecord("what is this?")
        return value

    async def get(self, username):
        return await self.answer(username, self.users.get(username))

    async def by_userhash(self, value):
        names = {userhash(name, REALM): name for name in self.users}
        return await self.answer(value, names.get(value))

    async def changed(self):
        was, self.is_changed = self.is_changed, False
        return await self.answer("changed?", was)

    async def close(self):
        self.closed = True


class Service:
    """A loader with its cache, its database, and what it told."""

    def __init__(self, **options):
        self.users = CachedUsers()
        self.database = Database()
        self.answered, self.reports = [], []
        self.some = asyncio.Event()
        self.loader = Loader(
            self.users, self.database, self.on_answer, report=self.reports.append, **options
        )

    def on_answer(self, lookup):
        self.answered.append(lookup)
        self.some.set()

    async def settle(self):
        while self.loader._asking:
            self.some.clear()
            await self.some.wait()

    def secrets(self, name):
        return tuple(self.users.secrets(name, NOW))


async def until(condition):
    for _ in range(100_000):
        if condition():
            return
        await asyncio.sleep(0)
    pytest.fail("it did not come to that")


def test_a_user_is_looked_up():
    async def body():
        service = Service()
        service.loader.take(LookUp("alice"))
        service.loader.take(LookUp("nobody"))
        service.loader.take(Drained())
        await service.settle()
        assert set(service.answered) == {LookUp("alice"), LookUp("nobody")}
        assert service.secrets("alice") == ALICE
        assert service.secrets("nobody") == ()
        assert (service.loader.lookups, service.loader.failures) == (2, 0)

    asyncio.run(body())


def test_a_hash_is_looked_up_with_its_user():
    async def body():
        service = Service()
        known, unknown = userhash("alice", REALM), bytes(32)
        service.loader.take(LookUp("", known))
        service.loader.take(LookUp("", unknown))
        await service.settle()
        assert service.users.by_userhash(known, NOW) == "alice"
        assert service.secrets("alice") == ALICE
        assert service.users.by_userhash(unknown, NOW) is None

    asyncio.run(body())


@pytest.mark.parametrize("lookup", [LookUp("alice"), LookUp("", userhash("alice", REALM))])
def test_one_bad_record_is_not_a_database_that_is_down(lookup):
    async def body():
        complaints = []
        service = Service(complain=complaints.append)
        service.database.bad = True
        service.loader.take(lookup)
        await service.settle()
        assert service.answered == [lookup]
        assert complaints == ["what is this?"]
        assert (service.loader.bad_records, service.loader.failures) == (1, 0)
        assert service.users.reachable
        assert not service.reports
        if lookup.username:
            assert service.secrets("alice") == ()
        else:
            assert service.users.by_userhash(lookup.userhash, NOW) is None

    asyncio.run(body())


def test_one_question_at_a_time_for_one_name_and_so_many_for_all():
    async def body():
        service = Service()
        service.database.gate.clear()
        for number in range(3 * AT_ONCE):
            for _ in range(2):
                service.loader.take(LookUp(f"user{number}"))
        await until(lambda: service.database.inside >= AT_ONCE)
        service.database.gate.set()
        await service.settle()
        assert service.database.most == AT_ONCE
        assert len(service.database.asked) == len(service.answered) == 3 * AT_ONCE

    asyncio.run(body())


def test_a_database_that_is_down():
    async def body():
        service = Service(watch=0, backoff=[0])
        service.loader.take(LookUp("alice"))
        await service.settle()
        service.users.invalidate()
        service.database.down = True
        service.loader.take(LookUp("bob"))
        await service.settle()
        # Whoever waits is told so, and is answered 500.
        assert service.answered[-1] == LookUp("bob")
        assert service.secrets("bob") == (Gap.UNAVAILABLE,)
        assert service.secrets("alice") == (*ALICE, Gap.UNAVAILABLE)
        assert service.reports == ["the database sleeps: wake it"]
        running = asyncio.create_task(service.loader.run())
        await until(lambda: service.loader.failures >= 4)
        assert len(service.reports) == 1  # once, not for each attempt
        service.database.down = False
        await until(lambda: service.users.reachable)
        assert service.reports[1:] == [None]
        # What it was like before it was down is not believed.
        assert service.secrets("alice") == service.secrets("bob") == (Gap.NOT_YET,)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(body())


def test_a_database_that_takes_too_long():
    async def body():
        service = Service(patience=0.001)
        service.database.gate.clear()
        service.loader.take(LookUp("alice"))
        await service.settle()
        assert service.secrets("alice") == (Gap.UNAVAILABLE,)
        assert service.reports == ["the users' database takes too long to answer"]

    asyncio.run(body())


def test_changes_are_seen():
    async def body():
        service = Service(watch=0)
        service.loader.take(LookUp("alice"))
        await service.settle()
        running = asyncio.create_task(service.loader.run())
        await until(lambda: service.database.asked.count("changed?") >= 3)
        assert service.secrets("alice") == ALICE
        service.database.is_changed = True
        await until(lambda: service.secrets("alice") != ALICE)
        assert service.secrets("alice") == (Gap.NOT_YET,)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(body())


def test_a_change_that_overtakes_an_answer():
    async def body():
        service = Service()
        service.database.gate.clear()
        service.loader.take(LookUp("alice"))
        await until(lambda: service.database.inside)
        service.users.invalidate()
        service.database.gate.set()
        await service.settle()
        # The machine asks once more.
        assert service.secrets("alice") == (Gap.NOT_YET,)
        service.loader.take(LookUp("alice"))
        await service.settle()
        assert service.secrets("alice") == ALICE

    asyncio.run(body())


def test_a_failure_is_noticed_without_waiting_for_the_next_look():
    async def body():
        service = Service(watch=3600, backoff=[0])
        running = asyncio.create_task(service.loader.run())
        await asyncio.sleep(0)
        service.database.down = True
        service.loader.take(LookUp("alice"))
        await service.settle()
        service.database.down = False
        await until(lambda: service.users.reachable)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(body())


def test_close_ends_what_is_asked():
    async def body():
        service = Service()
        service.database.gate.clear()
        service.loader.take(LookUp("alice"))
        await until(lambda: service.database.inside)
        await service.loader.close()
        assert service.database.closed
        assert service.answered == []
        assert not service.loader._asking

    asyncio.run(body())


class TestAheadOfTime:
    """A service with a clock: the test is it."""

    def service(self, names=("alice",), **options):
        service = Service(clock=lambda: service.now, watch=0, backoff=[0], **options)
        service.now = NOW
        service.database.users = dict.fromkeys(names, ALICE)
        return service

    async def known(self, service, names=("alice",)):
        """Have the users looked up whom requests have asked for."""
        for name in names:
            service.loader.take(LookUp(name))
        await service.settle()
        for name in names:
            assert self.secrets(service, name) == ALICE

    def secrets(self, service, name="alice"):
        return tuple(service.users.secrets(name, service.now))

    async def look(self, service, times=1):
        """Have the loader look at the database so often."""
        before = service.database.asked.count("changed?")
        await until(lambda: service.database.asked.count("changed?") >= before + times)

    @asynccontextmanager
    async def running(self, service):
        running = asyncio.create_task(service.loader.run())
        yield
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await service.loader.close()

    def test_a_client_that_comes_back_every_four_minutes_never_waits(self):
        async def body():
            service = self.service()
            await self.known(service)
            async with self.running(service):
                for second in range(1, 1201):
                    service.now += 1
                    await self.look(service, 2)
                    if second % 240 == 0:
                        assert self.secrets(service) == ALICE
            # Each answer serves for 45 seconds, not for one.
            assert 20 <= service.database.asked.count("alice") <= 28

        asyncio.run(body())

    def test_it_is_one_question_and_what_is_known_serves_meanwhile(self):
        async def body():
            service = self.service()
            await self.known(service)
            async with self.running(service):
                service.now += 45
                service.database.gates["alice"] = asyncio.Event()
                await until(lambda: service.loader._asking)
                await self.look(service, 3)
                assert self.secrets(service) == ALICE
                # A request that comes to need the answer waits for the same one.
                service.now += 15
                assert self.secrets(service) == (Gap.NOT_YET,)
                service.answered.clear()
                service.loader.take(LookUp("alice"))
                await self.look(service, 3)
                assert service.database.asked.count("alice") == 2
                service.database.gates["alice"].set()
                await service.settle()
                assert service.answered == [LookUp("alice")]
                assert self.secrets(service) == ALICE
                # It is as old as the question.
                service.now += 45
                assert self.secrets(service) == (Gap.NOT_YET,)

        asyncio.run(body())

    def test_who_is_disabled_is_noticed_in_time_and_at_once_where_it_is_asked_ahead(self):
        async def body():
            service = self.service()
            await self.known(service)
            del service.database.users["alice"]
            async with self.running(service):
                service.now += 44
                await self.look(service, 2)
                assert self.secrets(service) == ALICE
                service.now += 1
                await self.look(service, 2)
                await service.settle()
                assert self.secrets(service) == ()

        asyncio.run(body())

    @pytest.mark.parametrize("slow", [False, True])
    def test_a_database_that_fails_changes_nothing_of_what_is_known(self, slow):
        async def body():
            service = self.service(patience=0.001 if slow else 3)
            await self.known(service)
            service.now += 45
            async with self.running(service):
                if slow:
                    service.database.gates["alice"] = asyncio.Event()
                else:
                    service.database.down_for = {"alice"}
                await until(lambda: service.reports)
                assert self.secrets(service) == ALICE
                await until(lambda: service.users.reachable)
                await self.look(service, 3)
                # It was asked ahead of time once, and is asked again when somebody waits.
                assert service.database.asked.count("alice") == 2
                service.now += 14
                service.users.generation = 0  # as though it had not been away
                assert self.secrets(service) == ALICE
                service.now += 1
                assert self.secrets(service) == (Gap.NOT_YET,)

        asyncio.run(body())

    def test_so_many_at_once_and_so_many_between_two_looks(self):
        async def body():
            names = [f"user{number}" for number in range(3 * AHEAD)]
            service = self.service(names)
            await self.known(service, names)
            service.loader._watch = 3600
            service.now += 45
            service.database.asked.clear()
            service.database.most = 0
            service.database.gates = {name: asyncio.Event() for name in names}
            async with self.running(service):
                await until(lambda: service.database.inside == AHEAD_AT_ONCE)
                for gate in service.database.gates.values():
                    gate.set()
                await until(lambda: len(service.database.asked) > AHEAD)
                await service.settle()
                assert service.database.asked == ["changed?", *names[:AHEAD]]
                assert service.database.most == AHEAD_AT_ONCE

        asyncio.run(body())

    def test_closing_asks_nothing_more(self):
        async def body():
            names = [f"user{number}" for number in range(AHEAD)]
            service = self.service(names)
            await self.known(service, names)
            service.now += 45
            service.answered.clear()
            async with self.running(service):
                service.database.gates |= {name: asyncio.Event() for name in names}
                await until(lambda: len(service.loader._asking) == AHEAD_AT_ONCE)
            assert not service.loader._asking
            assert service.answered == []

        asyncio.run(body())


class TestRecord:
    def test_a_password(self):
        user = UserRecord.make("alice", "pass", REALM)
        assert (user.name, user.alias) == ("alice", None)
        assert user.userhash == userhash("alice", REALM)
        assert user.secrets() == ALICE
        assert "pass" not in repr(user).replace("password", "")

    def test_keys_only(self):
        user = UserRecord.make("alice", "pass", REALM, keys_only=True)
        md5 = long_term_key("alice", REALM, "pass")
        sha256 = long_term_key("alice", REALM, "pass", PasswordAlgorithm.SHA256)
        assert user.password is None
        assert user.secrets() == (StoredKeys(md5, sha256),)

    def test_what_the_two_preparations_make_of_it(self):
        user = UserRecord.make("\u2168", "M\u00aatr\u2168", REALM, keys_only=True)
        assert (user.name, user.alias) == ("\u2168", "IX")
        legacy = long_term_key("\u2168", REALM, "M\u00aatr\u2168", profile=Profile.SASLPREP)
        assert StoredKeys(legacy) in user.secrets()
        assert len(user.secrets()) == 2

    @pytest.mark.parametrize(("name", "password"), [("", "p"), ("x", ""), ("x" * 509, "p")])
    def test_usage(self, name, password):
        with pytest.raises(UsageError):
            UserRecord.make(name, password, REALM)


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("sqlite:///var/lib/turnd/users.db", Where.SQLITE),
        ("redis://localhost", Where.REDIS),
        ("REDISS://host:1/0", Where.REDIS),
        ("unix:///run/redis.sock", Where.REDIS),
    ],
)
def test_kinds_of_databases(url, kind):
    assert where(url) is kind


@pytest.mark.parametrize(
    "url", ["", "users.db", "redis:host", "postgres://u:secret@h/db", "x://[u:secret@h"]
)
def test_no_database(url):
    with pytest.raises(UsageError, match="sqlite:///PATH") as caught:
        where(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("redis://:secret@host/0", "redis://:***@host/0"),
        ("rediss://me:se%40cret@[::1]:1/0", "rediss://me:***@[::1]:1/0"),
        ("redis://me@host", "redis://me@host"),
        ("unix:///run/redis.sock?db=1&password=secret", "unix:///run/redis.sock?db=1&password=***"),
        ("redis://:p@ss:w%2Frd@host", "redis://:***@host"),
        ("sqlite:///a/b.db", "sqlite:///a/b.db"),
        ("sqlite:///a:b@c.db", "sqlite:///a:b@c.db"),
    ],
)
def test_passwords_of_urls_are_not_shown(url, shown):
    assert redacted(url) == shown
