"""Users, nonce secrets and counts in a real Redis, which also goes away and comes back."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from contextlib import asynccontextmanager, closing, suppress

import pytest

from stun import aio
from stun.credentials import long_term_key, userhash
from stun.discovery import Transport
from stun.errors import UsageError
from stun.nonce import NonceMaker, NonceState
from stun.registry import PasswordAlgorithm
from stun.sansio import SECOND, Address
from stun.users import Gap, Password, StoredKeys
from turn.server.config import ListenAt, RelayAddress, ServerConfig
from turn.server.events import LookUp
from turn.server.machine import Server
from turn.server.policy import PeerPolicy
from turn.users import open_backend, open_table
from turn.users.base import BackendError, BadRecord, Loader
from turn.users.cache import CachedUsers
from turn.users.fleet import FleetState
from turn.users.redis import RedisUsers

HOST, REALM = "127.0.0.1", "example.org"
CLIENT = Address("192.0.2.7", 40000)
NOW = 1_700_000_000


async def until(condition, seconds=20.0):
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  (what is waited for is told by nobody)
            await asyncio.sleep(0.01)


def ask(url, *questions, realm=REALM):
    async def body():
        users = open_backend(url, realm)
        try:
            return [await question(users) for question in questions]
        finally:
            await users.close()

    return asyncio.run(body())


def get(name):
    return lambda users: users.get(name)


class TestUsers:
    def test_add_list_remove(self, redis_server):
        with closing(open_table(redis_server.url, REALM)) as table:
            table.add("bob", "b")
            table.add("alice", "pass")
            assert table.names() == ["alice", "bob"]
            found = ask(
                redis_server.url,
                get("alice"),
                get("carol"),
                lambda users: users.by_userhash(userhash("alice", REALM)),
                lambda users: users.by_userhash(bytes(32)),
            )
            assert found == [(Password("pass"),), None, "alice", None]
            assert ask(redis_server.url, get("alice"), realm="other") == [None]
            assert table.remove("alice") is True
            assert table.remove("alice") is False
            assert table.names() == ["bob"]
            assert ask(
                redis_server.url,
                get("alice"),
                lambda users: users.by_userhash(userhash("alice", REALM)),
            ) == [None, None]

    def test_a_user_is_not_replaced_by_accident(self, redis_server):
        with closing(open_table(redis_server.url, REALM)) as table:
            table.add("alice", "one")
            with pytest.raises(UsageError, match="has a user 'alice' already"):
                table.add("alice", "two")
            assert ask(redis_server.url, get("alice")) == [(Password("one"),)]
            table.add("alice", "two", keys_only=True, replace=True)
            md5 = long_term_key("alice", REALM, "two")
            sha256 = long_term_key("alice", REALM, "two", PasswordAlgorithm.SHA256)
            assert ask(redis_server.url, get("alice")) == [(StoredKeys(md5, sha256),)]

    def test_both_names_of_a_user(self, redis_server):
        with closing(open_table(redis_server.url, REALM)) as table:
            table.add("\u2168", "pass")
            assert ask(redis_server.url, get("\u2168"), get("IX")) == [(Password("pass"),)] * 2
            assert table.names() == ["\u2168"]
            assert table.remove("\u2168")
            assert ask(redis_server.url, get("\u2168"), get("IX")) == [None, None]

    @pytest.mark.parametrize("names", [("\u2168", "IX"), ("IX", "\u2168")])
    def test_a_name_comes_before_what_saslprep_makes_of_another(self, redis_server, names):
        with closing(open_table(redis_server.url, REALM)) as table:
            for name in names:
                table.add(name, f"of {name}")
            table.add("\u2168", "changed", replace=True)
            assert ask(redis_server.url, get("IX")) == [(Password("of IX"),)]
            assert ask(redis_server.url, get("\u2168")) == [(Password("changed"),)]
            assert table.remove("\u2168")
            assert ask(redis_server.url, get("IX"), get("\u2168")) == [(Password("of IX"),), None]

    def test_changes_are_seen(self, redis_server):
        async def body():
            users = RedisUsers(redis_server.url, REALM)
            with closing(open_table(redis_server.url, REALM)) as table:
                table.add("bob", "b")
                assert await users.changed() is True
                assert await users.changed() is False
                table.add("alice", "pass")
                assert await users.changed() is True
                table.remove("alice")
                assert await users.changed() is True
                assert await users.changed() is False
            await users.close()

        asyncio.run(body())

    def test_what_is_not_ours_is_named(self, redis_server):
        async def body():
            users = RedisUsers(redis_server.url, REALM)
            await users._redis.set(f"natkit:{{{REALM}}}:user:alice", "a string")
            with pytest.raises(BadRecord, match="user:alice is no user"):
                await users.get("alice")
            hashed = userhash("alice", REALM)
            await users._redis.hset(f"natkit:{{{REALM}}}:userhash:{hashed.hex()}", "a", "hash")
            with pytest.raises(BadRecord, match="userhash:"):
                await users.by_userhash(hashed)
            await users._redis.hset(f"natkit:{{{REALM}}}:changes", "a", "hash")
            with pytest.raises(BackendError, match="keys that begin with natkit:"):
                await users.changed()
            await users._redis.hset(f"natkit:{{{REALM}}}:user:bob", mapping={"md5": "no hex"})
            with pytest.raises(BadRecord, match="user:bob is no user"):
                await users.get("bob")
            await users.close()

        asyncio.run(body())


class TestErrors:
    """Errors name the server without its password, and say what to do."""

    def test_nobody_there(self, redis_server):
        redis_server.stop()
        url = f"{redis_server.url}?password=hidden"
        with pytest.raises(BackendError, match="check that Redis runs there") as caught:
            ask(url, get("alice"))
        assert redis_server.url in str(caught.value)
        assert "hidden" not in str(caught.value)
        with pytest.raises(BackendError, match="check that Redis runs there"):
            open_table(url, REALM)

    def test_a_password(self, redis_server):
        redis_server.stop()
        redis_server.start("--requirepass", "the-right-one")
        for url in (redis_server.url, f"{redis_server.url}?password=a-wrong-one"):
            with pytest.raises(BackendError, match="check the user and password") as caught:
                ask(url, get("alice"))
            assert "a-wrong-one" not in str(caught.value)
        assert ask(f"{redis_server.url}?password=the-right-one", get("alice")) == [None]

    def test_what_a_user_may_not_do(self, redis_server):
        redis_server.stop()
        redis_server.start("--user", "turnd", "on", ">pw", "~other:*", "+@all")
        url = f"{redis_server.url}?username=turnd&password=pw"
        with pytest.raises(BackendError, match="allow its user the keys natkit:"):
            ask(url, get("alice"))


def test_a_machine_is_told_through_an_outage(redis_server):
    """A user who was seen goes on while Redis is away; others are told to come again."""

    async def body():
        users, reports, answers = CachedUsers(), [], []

        def answered(lookup):
            # As a machine does, in the same moment.
            answers.append(tuple(users.secrets(lookup.username, NOW)))

        backend = RedisUsers(redis_server.url, REALM)
        loader = Loader(users, backend, answered, report=reports.append, watch=0.05, backoff=[0.05])
        with closing(open_table(redis_server.url, REALM)) as table:
            table.add("alice", "pass")
            table.add("bob", "b")
        running = asyncio.create_task(loader.run())

        async def look_up(name):
            while True:
                answers.clear()
                loader.take(LookUp(name))
                await until(lambda: answers)
                if answers[-1] != (Gap.NOT_YET,):
                    return answers[-1]

        assert await look_up("alice") == (Password("pass"),)
        await asyncio.to_thread(redis_server.stop)
        await until(lambda: not users.reachable)
        assert len(reports) == 1
        assert "check that Redis runs there" in reports[0]
        assert Password("pass") in users.secrets("alice", NOW)
        assert await look_up("bob") == (Gap.UNAVAILABLE,)
        await asyncio.to_thread(redis_server.start)
        await until(lambda: users.reachable)
        assert reports[1:] == [None]
        # Nothing was saved: Redis is empty now, and that is believed.
        assert users.secrets("alice", NOW) == (Gap.NOT_YET,)
        assert await look_up("alice") == ()
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        await loader.close()

    asyncio.run(body())


class Member:
    """One server of a fleet."""

    def __init__(self, url, **options):
        self.nonces = NonceMaker([os.urandom(32)], lifetime=600)
        self.own = dict[str, int]()
        self.others = dict[str, int]()
        self.told = 0
        self.reports = []
        self.state = FleetState(
            url,
            REALM,
            self.nonces,
            counts=lambda: self.own,
            elsewhere=self.tell,
            report=self.reports.append,
            **options,
        )

    def tell(self, others):
        self.others = dict(others)
        self.told += 1


@asynccontextmanager
async def fleet(url, number, **options):
    members = [Member(url, **options) for _ in range(number)]
    try:
        yield members
    finally:
        for member in members:
            await member.state.close()


def valid(member, nonce, unix_time=NOW):
    return member.nonces.check(nonce, CLIENT, unix_time) is NonceState.VALID


class TestFleet:
    def test_a_nonce_of_one_is_good_at_all(self, redis_server):
        async def body():
            async with fleet(redis_server.url, 3) as members:
                early = [member.nonces.make(CLIENT, NOW) for member in members]
                assert not valid(members[0], early[1])
                for member in members:
                    await member.state.exchange()
                for maker in members:
                    nonce = maker.nonces.make(CLIENT, NOW)
                    assert all(valid(member, nonce) for member in members)
                # Clients that came before Redis was reached are not turned away.
                assert all(map(valid, members, early))

        asyncio.run(body())

    def test_secrets_rotate_without_anybody_noticing(self, redis_server):
        async def body():
            async with fleet(redis_server.url, 2) as (one, two):
                key = f"natkit:{{{REALM}}}:nonce"
                for member in (one, two):
                    await member.state.exchange()
                secrets = one.nonces.secrets[:2]
                for rotations in (1, 2):
                    # Redis's clock cannot be set; the day on which it last happened can.
                    await one.state._redis.hset(key, "since", 0)
                    await one.state.exchange()
                    fresh = one.nonces.make(CLIENT, NOW)
                    assert NonceMaker(secrets[:1]).make(CLIENT, NOW) != fresh
                    # The other one has not looked yet, and knew what was to come.
                    assert valid(two, fresh)
                    assert (secrets[0] in one.nonces.secrets[:3]) is (rotations == 1)
                    await two.state.exchange()
                    assert two.nonces.secrets[:3] == one.nonces.secrets[:3]
                    assert valid(one, two.nonces.make(CLIENT, NOW))
                assert one.nonces.secrets[0] not in secrets  # neither of those there were

        asyncio.run(body())

    def test_only_one_rotates(self, redis_server):
        async def body():
            async with fleet(redis_server.url, 8) as members:
                await asyncio.gather(*(member.state.exchange() for member in members))
                assert len({tuple(member.nonces.secrets[:2]) for member in members}) == 1
                await members[0].state._redis.hset(f"natkit:{{{REALM}}}:nonce", "since", 0)
                await asyncio.gather(*(member.state.exchange() for member in members))
                assert len({tuple(member.nonces.secrets[:3]) for member in members}) == 1

        asyncio.run(body())

    def test_counts(self, redis_server):
        async def body():
            async with fleet(redis_server.url, 3) as members:
                one, two, three = members
                one.own, two.own = {"alice": 2, "\u2168": 1}, {"alice": 3, "bob": 1}
                for _ in range(2):
                    for member in members:
                        await member.state.exchange()
                assert one.others == {"alice": 3, "bob": 1}
                assert two.others == {"alice": 2, "\u2168": 1}
                assert three.others == {"alice": 5, "bob": 1, "\u2168": 1}
                assert one.state.servers == 3
                # What did not change is not told again.
                told = three.told
                for member in members:
                    await member.state.exchange()
                assert three.told == told
                two.own = {}
                await two.state.exchange()
                await three.state.exchange()
                assert three.others == {"alice": 2, "\u2168": 1}
                # One that stops takes its counts along.
                await one.state.close()
                await three.state.exchange()
                assert three.others == {}
                assert three.state.servers == 2

        asyncio.run(body())

    def test_one_that_crashed_is_forgotten(self, redis_server):
        async def body():
            async with fleet(redis_server.url, 2) as (one, two):
                one.own = {"alice": 2}
                await one.state.exchange()
                await two.state.exchange()
                assert two.others == {"alice": 2}
                keys = f"natkit:{{{REALM}}}:count:{one.state._name}"
                assert 0 < await two.state._redis.ttl(keys) <= 6
                await two.state._redis.delete(keys)  # as its time would
                await two.state.exchange()
                assert two.others == {}
                assert await two.state._redis.scard(f"natkit:{{{REALM}}}:servers") == 1
                # It was only slow: the next time all of it is there again.
                await one.state.exchange()
                await one.state.exchange()
                await two.state.exchange()
                assert two.others == {"alice": 2}

        asyncio.run(body())

    def test_realms_are_apart(self, redis_server):
        async def body():
            nonces = NonceMaker([os.urandom(32)])
            other = FleetState(
                redis_server.url, "other", nonces, counts=dict, elsewhere=lambda _: None
            )
            async with fleet(redis_server.url, 1) as (one,):
                await one.state.exchange()
                await other.exchange()
                assert set(nonces.secrets).isdisjoint(one.nonces.secrets)
                assert (one.state.servers, other.servers) == (1, 1)
            await other.close()

        asyncio.run(body())

    def test_through_an_outage(self, redis_server, monkeypatch):
        monkeypatch.setattr("turn.users.fleet.GONE", 1)

        async def body():
            options = {"interval": 0.05, "backoff": [0.05]}
            async with fleet(redis_server.url, 2, **options) as (one, two):
                one.own = {"alice": 2}
                running = [asyncio.create_task(member.state.run()) for member in (one, two)]
                await until(lambda: two.others == {"alice": 2})
                nonce = one.nonces.make(CLIENT, NOW)
                await asyncio.to_thread(redis_server.stop)
                await until(lambda: not two.state.reachable)
                # The secrets stay; the counts do for a while, and then each is by itself.
                assert valid(two, nonce)
                await until(lambda: two.others == {})
                await asyncio.to_thread(redis_server.start)
                await until(lambda: two.others == {"alice": 2})
                assert len(two.reports) == 2
                assert "check that Redis runs there" in two.reports[0]
                assert two.reports[1] is None
                # Redis came back empty, and had its secret from whoever asked first.
                await until(lambda: valid(two, one.nonces.make(CLIENT, NOW)))
                assert valid(one, nonce)
                assert valid(two, nonce)
                for task in running:
                    task.cancel()
                await asyncio.gather(*running, return_exceptions=True)

        asyncio.run(body())

    def test_secrets_that_are_none(self, redis_server):
        async def body():
            async with fleet(redis_server.url, 1) as (one,):
                await one.state._redis.hset(
                    f"natkit:{{{REALM}}}:nonce",
                    mapping={"current": "no hex", "next": "", "since": 2**40},
                )
                with pytest.raises(BackendError, match="delete it"):
                    await one.state.exchange()
                assert len(one.nonces.secrets) == 1

        asyncio.run(body())


class Relay:
    """A server machine with its users in Redis, on a real socket."""

    def __init__(self, url):
        with socket.socket(type=socket.SOCK_DGRAM) as probe:
            probe.bind((HOST, 0))
            self.port = probe.getsockname()[1]
        self.users = CachedUsers()
        self.server = Server(
            ServerConfig(
                (ListenAt(Transport.UDP, Address(HOST, self.port)),),
                (RelayAddress(HOST, HOST),),
                REALM,
                PeerPolicy(allow=["127.0.0.0/8"]),
            ),
            self.users,
            NonceMaker([os.urandom(32)]),
            entropy=os.urandom,
            unix_epoch=int(time.time()) - time.monotonic_ns() // SECOND,
        )
        self.driver = aio.Driver(self.server, on_event=self.take)
        self.loader = Loader(
            self.users, RedisUsers(url, REALM), self.found, watch=0.05, backoff=[0.05]
        )

    def take(self, event):
        self.loader.take(event)

    def found(self, lookup):
        self.server.found(lookup, self.driver.now())
        self.driver.flush()

    @asynccontextmanager
    async def running(self):
        await self.loader._backend.changed()  # as turnd does, so that users do not change at once
        async with self.driver:
            self.server.start(self.driver.now())
            self.driver.flush()
            tasks = [asyncio.create_task(each.run()) for each in (self.driver, self.loader)]
            try:
                yield
            finally:
                self.driver.close()
                tasks[1].cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await self.loader.close()

    async def try_out(self, *options):
        """Let coturn's client relay to itself; return its code and what it said."""
        client = await asyncio.create_subprocess_exec(
            "turnutils_uclient",
            *("-y", "-c", "-n", "1", *options, "-p", str(self.port), HOST),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said, _ = await asyncio.wait_for(client.communicate(), 60)
        return client.returncode, said.decode()


def test_a_relay_with_its_users_in_redis(redis_server, require_peer):
    require_peer("turnutils_uclient", "coturn")

    async def body():
        relay = Relay(redis_server.url)
        with closing(open_table(redis_server.url, REALM)) as table:
            table.add("alice", "pass")
            async with relay.running():
                code, said = await relay.try_out("-u", "alice", "-w", "pass")
                assert code == 0, said
                assert "Total lost packets 0 " in said
                # Three allocations of one user are one question.
                assert relay.loader.lookups == 1
                for who in (("-u", "alice", "-w", "wrong"), ("-u", "bob", "-w", "pass")):
                    code, said = await relay.try_out(*who)
                    assert code != 0, said
                    assert "error 500" not in said
                # A user who is removed is refused as soon as the change was seen.
                table.remove("alice")
                known = (Password("pass"),)
                now = int(time.time())
                await until(lambda: relay.users.secrets("alice", now) != known)
                code, said = await relay.try_out("-u", "alice", "-w", "pass")
                assert code != 0, said
                await asyncio.to_thread(redis_server.stop)
                await until(lambda: not relay.users.reachable)
                code, said = await relay.try_out("-u", "carol", "-w", "pass")
                assert code != 0, said
                assert "error 500" in said

    asyncio.run(body())
