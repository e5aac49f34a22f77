"""Records, URLs, and the loader between a machine and a database that may be down."""

import asyncio

import pytest

from stun.credentials import Profile, long_term_key, userhash
from stun.errors import UsageError
from stun.registry import PasswordAlgorithm
from stun.users import Gap, Password, StoredKeys
from turn.server.events import Drained, LookUp
from turn.users.base import (
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
        self.inside = self.most = 0
        self.closed = False

    async def answer(self, question, value):
        self.asked.append(question)
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            await self.gate.wait()
        finally:
            self.inside -= 1
        if self.down:
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
