"""Routes in the kernel: what gets into the maps, when it changes, and that all of it goes again."""

from __future__ import annotations

import errno
import random
from collections import Counter

import pytest

from stun.sansio import SECOND, Address
from tests.unit.turn.kernel_fakes import (
    Clock,
    FakeNetwork,
    FakeProgram,
    key_to_client,
    key_to_peer,
)
from turn.dataplane.base import Route, RouteKey
from turn.dataplane.kernel.layouts import Count, PathUsage
from turn.dataplane.kernel.routes import LEARNED, REMEMBERED, SWEEP, KernelRoutes
from turn.dataplane.kernel.ways import Interface, Way
from turn.meter import Bucket, Meter, Usage, nothing_to_collect
from turn.server.metrics import add_usage

SERVER, RELAY = Address("192.0.2.1", 3478), Address("192.0.2.1", 50000)
CLIENT, PEER = Address("198.51.100.7", 4000), Address("203.0.113.9", 5000)
CHANNEL = 0x4001
MINUTE = 60 * SECOND
TO_PEER = key_to_peer(SERVER, CLIENT, CHANNEL)
TO_CLIENT = key_to_client(RELAY, PEER)


class Scene:
    def __init__(self, **limits: int) -> None:
        self.clock = Clock()
        self.program = FakeProgram(self.clock, **limits)
        self.network = FakeNetwork()
        self.routes = KernelRoutes(self.program, self.network, clock=self.clock)

    def install(self, route: Route, lifetime: int = MINUTE) -> None:
        self.routes.install(route, self.clock.now + lifetime)

    def check_empty(self) -> None:
        """Nothing is left of any route."""
        assert self.program.paths == {}
        assert not +self.program.ports
        assert len(self.routes) == 0


@pytest.fixture
def scene() -> Scene:
    return Scene()


def route(
    meter: Meter | None = None,
    *,
    client: Address = CLIENT,
    channel: int = CHANNEL,
    relay: Address = RELAY,
    peer: Address = PEER,
    server: Address = SERVER,
) -> Route:
    return Route(RouteKey(client, server, channel), relay, peer, meter or Meter())


def test_a_route_is_a_path_each_way(scene: Scene) -> None:
    scene.network.ways[RELAY.host, PEER.host] = Way(5, 1400, "192.0.2.254")
    scene.network.ways[SERVER.host, CLIENT.host] = Way(6, 9000)
    scene.install(route())
    paths = scene.program.paths
    assert paths.keys() == {TO_PEER, TO_CLIENT}
    out, back = paths[TO_PEER], paths[TO_CLIENT]
    assert (out.source, out.destination, out.channel) == (RELAY, PEER, 0)
    assert (back.source, back.destination, back.channel) == (SERVER, CLIENT, CHANNEL)
    assert (out.ifindex, out.mtu, out.next_hop) == (5, 1400, "192.0.2.254")
    assert (back.ifindex, back.mtu, back.next_hop) == (6, 9000, CLIENT.host)
    assert out.expires == back.expires == scene.clock.now + MINUTE
    assert out.usage != back.usage
    assert out.buckets == back.buckets == (0, 0)
    assert +scene.program.ports == Counter([SERVER.port, RELAY.port])
    scene.routes.remove(route().key)
    scene.check_empty()


def test_removing_what_is_gone_does_nothing(scene: Scene) -> None:
    scene.install(route())
    for _ in range(2):
        scene.routes.remove(RouteKey(CLIENT, SERVER, CHANNEL))
    scene.check_empty()


def test_another_end_changes_nothing_else_and_asks_nobody(scene: Scene) -> None:
    one = route()
    scene.install(one)
    before, asked = dict(scene.program.paths), len(scene.network.asked)
    scene.install(one, SECOND)
    for key, path in scene.program.paths.items():
        assert path.serial != before[key].serial
        assert path == before[key]._replace(expires=scene.clock.now + SECOND, serial=path.serial)
    assert len(scene.network.asked) == asked
    assert +scene.program.ports == Counter([SERVER.port, RELAY.port])


def test_a_key_with_another_peer_leaves_nothing_of_the_old_one(scene: Scene) -> None:
    scene.install(route())
    other = Address("203.0.113.10", 5001)
    scene.install(route(peer=other))
    assert scene.program.paths.keys() == {TO_PEER, key_to_client(RELAY, other)}
    assert scene.program.paths[TO_PEER].destination == other
    scene.routes.remove(RouteKey(CLIENT, SERVER, CHANNEL))
    scene.check_empty()


def test_of_two_routes_to_one_peer_the_last_word_counts(scene: Scene) -> None:
    first, second = route(), route(channel=CHANNEL + 1)
    scene.install(first)
    scene.install(second)
    assert scene.program.paths[TO_CLIENT].channel == CHANNEL + 1
    # The first one's going takes nothing of the other's.
    scene.routes.remove(first.key)
    assert scene.program.paths.keys() == {TO_CLIENT, key_to_peer(SERVER, CLIENT, CHANNEL + 1)}
    scene.routes.remove(second.key)
    scene.check_empty()


def test_ports_are_served_as_long_as_any_path_begins_there(scene: Scene) -> None:
    one, two = (
        route(),
        route(client=Address("198.51.100.8", 4000), relay=Address(RELAY.host, 50001)),
    )
    scene.install(one)
    scene.install(two)
    assert +scene.program.ports == Counter({SERVER.port: 2, 50000: 1, 50001: 1})
    scene.routes.remove(one.key)
    assert +scene.program.ports == Counter({SERVER.port: 1, 50001: 1})


# Ways. --------------------------------------------------------------------------------------------


def test_without_a_way_one_direction_stays_with_the_sockets(scene: Scene) -> None:
    scene.network.ways[RELAY.host, PEER.host] = None
    scene.install(route())
    assert scene.program.paths.keys() == {TO_CLIENT}
    assert +scene.program.ports == Counter([RELAY.port])
    # It appears.
    del scene.network.ways[RELAY.host, PEER.host]
    scene.network.news = True
    assert scene.routes.changed()
    assert not scene.routes.refresh()
    assert scene.program.paths.keys() == {TO_PEER, TO_CLIENT}
    # And it goes.
    scene.network.usual = None
    scene.network.news = True
    assert scene.routes.changed()
    scene.routes.refresh()
    assert scene.program.paths == {}
    assert not +scene.program.ports
    assert len(scene.routes) == 1
    scene.routes.remove(route().key)
    scene.check_empty()


def test_two_hosts_are_asked_for_once(scene: Scene) -> None:
    for number in range(10):
        scene.install(route(channel=0x4000 + number, peer=Address(PEER.host, 5000 + number)))
    assert sorted(scene.network.asked) == [(SERVER.host, CLIENT.host), (RELAY.host, PEER.host)]


def test_a_change_reaches_every_route_a_few_at_a_time(scene: Scene) -> None:
    for number in range(2 * SWEEP):
        scene.install(
            route(channel=0x4000 + number, peer=Address(f"10.0.{number // 250}.{number % 250}", 9))
        )
    scene.network.usual = Way(7, 1300)
    scene.network.news = True
    assert scene.routes.changed()
    rounds = 1
    while scene.routes.refresh():
        rounds += 1
    assert rounds == 3
    assert {(path.ifindex, path.mtu) for path in scene.program.paths.values()} == {(7, 1300)}
    assert not scene.routes.changed(), "nothing has changed since"


def test_what_goes_during_a_sweep_is_not_put_back(scene: Scene) -> None:
    scene.install(route())
    scene.network.usual = Way(7, 1300)
    scene.network.news = True
    assert scene.routes.changed()
    scene.routes.remove(route().key)
    asked = len(scene.network.asked)
    scene.routes.refresh()
    assert len(scene.network.asked) == asked
    scene.check_empty()


def test_a_smaller_mtu_that_icmp_tells_of_holds_for_all_paths_to_there(scene: Scene) -> None:
    one, other = route(), route(channel=CHANNEL + 1, peer=Address(PEER.host, 5001))
    key = key_to_peer(SERVER, CLIENT, CHANNEL + 1)

    def mtus() -> list[int]:
        return [scene.program.paths[each].mtu for each in (TO_PEER, key, TO_CLIENT)]

    scene.install(one, 20 * MINUTE)
    scene.install(other, 20 * MINUTE)
    scene.routes.too_big(RELAY, other.peer, 1280)
    assert mtus() == [1280, 1280, 1500]
    scene.routes.too_big(RELAY, other.peer, 1400)  # of another day, or another way
    assert mtus() == [1280, 1280, 1500]
    scene.routes.too_big(RELAY, Address("203.0.113.77", 1), 68)  # of nobody here
    # A wildcard listener is told of what it sent from any of its addresses.
    scene.routes.too_big(Address("0.0.0.0", 3478), CLIENT, 1450)
    assert mtus() == [1280, 1280, 1450]
    scene.routes.too_big(Address("::", 3478), Address("2001:db8::1", 1), 1450)
    # The kernel knows better still.
    scene.network.ways[RELAY.host, PEER.host] = Way(2, 1000)
    scene.routes.too_big(RELAY, other.peer, 1280)
    assert mtus() == [1000, 1000, 1450]
    del scene.network.ways[RELAY.host, PEER.host]
    # It is believed for a while, whatever the route is asked for meanwhile.
    scene.clock.now += LEARNED - 1
    scene.install(one, 20 * MINUTE)
    assert mtus() == [1280, 1280, 1450]
    scene.clock.now += REMEMBERED
    scene.install(one, 20 * MINUTE)
    assert mtus() == [1500, 1500, 1500]


def test_an_mtu_is_asked_for_again_when_a_route_is_renewed_after_a_while(scene: Scene) -> None:
    one = route()
    scene.network.usual = Way(2, 1280)
    scene.install(one, 10 * MINUTE)
    scene.network.usual = Way(2, 1500)
    scene.clock.now += REMEMBERED - 1
    scene.install(one, 10 * MINUTE)
    assert scene.program.paths[TO_PEER].mtu == 1280
    scene.clock.now += 1
    scene.install(one, 10 * MINUTE)
    assert scene.program.paths[TO_PEER].mtu == scene.program.paths[TO_CLIENT].mtu == 1500


def test_an_mtu_that_the_map_has_no_room_for_is_the_largest(scene: Scene) -> None:
    scene.network.usual = Way(2, 1 << 17)
    scene.install(route())
    assert scene.program.paths[TO_PEER].mtu == 65535


def test_it_is_on_every_interface_that_there_is(scene: Scene) -> None:
    assert scene.program.attached_to == {2}
    assert scene.routes.interfaces == ("eth0",)
    scene.network.links = {
        3: Interface("eth1", 1500, is_port=False),
        4: Interface("eth2", 1500, is_port=False),
    }
    scene.network.news = True
    scene.routes.changed()
    assert scene.program.attached_to == {3, 4}
    assert scene.routes.interfaces == ("eth1", "eth2")


def test_an_interface_that_does_not_take_it_is_told_of_and_tried_again(scene: Scene) -> None:
    scene.program.refuses["attach"] = errno.EINVAL
    scene.network.links = {3: Interface("odd0", 1500, is_port=False)}
    scene.network.news = True
    scene.routes.changed()
    assert scene.routes.refused == ("odd0: Invalid argument",)
    assert scene.routes.interfaces == ()
    scene.program.refuses.clear()
    scene.network.news = True
    scene.routes.changed()
    assert not scene.routes.refused
    assert scene.routes.interfaces == ("odd0",)


def test_news_that_cannot_be_read_are_counted_and_everything_is_asked_for(scene: Scene) -> None:
    scene.install(route())
    scene.network.fails = errno.ENOMEM
    scene.network.usual = Way(9, 1500)
    assert scene.routes.changed()
    scene.routes.refresh()
    assert scene.program.paths[TO_PEER].ifindex == 9
    counts = scene.routes.counters()
    assert counts["changes of the network not read: Cannot allocate memory"] == 1


# What cannot be. ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [
        route(peer=Address("fe80::1%eth0", 5000), relay=Address("fe80::2%eth0", 50000)),
        route(peer=Address("fe80::1", 5000), relay=Address("2001:db8::1", 50000)),
        route(client=Address("fe80::9%2", 4000), server=Address("fe80::1%2", 3478)),
        route(peer=Address(PEER.host, 70000)),
    ],
    ids=["peer", "peer without its zone", "client", "port"],
)
def test_addresses_that_no_path_can_have_are_left_to_the_sockets(scene: Scene, bad: Route) -> None:
    for _ in range(3):
        scene.install(bad)
    scene.check_empty()
    (words,) = [words for words in scene.routes.counters() if words.startswith("routes left")]
    assert scene.routes.counters()[words] == 3
    scene.routes.remove(bad.key)


@pytest.mark.parametrize("limits", [{"usages": 5}, {"usages": 4}])
def test_when_there_is_no_room_the_sockets_have_the_rest(limits: dict[str, int]) -> None:
    scene = Scene(**limits)
    several = [route(channel=0x4000 + n, peer=Address(PEER.host, 5000 + n)) for n in range(3)]
    for one in several:
        scene.install(one)
    assert len(scene.program.paths) == 4
    assert (
        scene.routes.counters()[
            "routes left to the sockets: no room in the kernel for more of them"
        ]
        == 1
    )
    # When one goes there is room for another, which is told when it is renewed.
    scene.routes.remove(several[0].key)
    scene.install(several[2])
    assert len(scene.program.paths) == 4
    for one in several:
        scene.routes.remove(one.key)
    scene.check_empty()


@pytest.mark.parametrize("call", ["set_path", "serve_port"])
def test_a_path_that_the_kernel_refuses_is_counted_and_not_half_there(
    scene: Scene, call: str
) -> None:
    scene.program.refuses[call] = errno.ENOMEM
    one = route()
    scene.install(one)
    assert scene.program.paths == {}
    assert scene.routes.counters()["paths not set: Cannot allocate memory"] == 2
    scene.program.refuses.clear()
    scene.install(one)
    assert len(scene.program.paths) == 2
    scene.routes.remove(one.key)
    scene.check_empty()


def test_an_end_that_cannot_be_told_ends_the_path_at_once(scene: Scene) -> None:
    one = route()
    scene.install(one)
    scene.program.refuses["set_path"] = errno.ENOMEM
    scene.install(one, SECOND)  # a permission was taken back, say: the old end must not hold
    assert scene.program.paths == {}
    scene.program.refuses.clear()
    scene.routes.remove(one.key)
    scene.check_empty()


# Usage. -------------------------------------------------------------------------------------------


def test_usage_is_of_the_allocation_whatever_becomes_of_its_routes(scene: Scene) -> None:
    meter = Meter()
    one, two = route(meter), route(meter, channel=CHANNEL + 1, peer=Address(PEER.host, 5001))
    scene.install(one)
    scene.install(two)
    for octets in (100, 0, 1200):
        assert scene.program.packet(TO_PEER, octets)
    assert scene.program.packet(TO_CLIENT, 160)
    assert scene.program.packet(key_to_peer(SERVER, CLIENT, CHANNEL + 1), 10)
    meter.usage.packets_from_client += 1  # the sockets'
    for _ in range(2):
        usage = meter.collected()
        assert (usage.packets_from_client, usage.octets_from_client) == (5, 1310)
        assert (usage.packets_to_client, usage.octets_to_client) == (1, 160)
    assert scene.program.packet(TO_PEER, 1)
    scene.routes.remove(one.key)
    assert usage.octets_from_client == 1311
    assert scene.program.packet(key_to_peer(SERVER, CLIENT, CHANNEL + 1), 1)
    assert meter.collected().octets_from_client == 1312
    scene.routes.remove(two.key)
    assert meter.collect is nothing_to_collect


def test_what_passes_between_the_end_and_the_last_route_is_in_the_total(scene: Scene) -> None:
    """The machine adds up what an allocation relayed before the plane hears of its end."""
    meter, total = Meter(), Usage()
    one = route(meter)
    scene.install(one)
    scene.program.packet(TO_PEER, 100)
    add_usage(total, meter.collected())
    meter.late = total
    scene.program.packet(TO_PEER, 7)
    scene.program.packet(TO_CLIENT, 20)
    scene.routes.remove(one.key)
    for usage in (total, meter.usage):
        assert (usage.octets_from_client, usage.octets_to_client) == (107, 20)
        assert (usage.packets_from_client, usage.packets_to_client) == (2, 1)


def test_a_new_route_is_not_charged_for_an_old_one(scene: Scene) -> None:
    scene.program.used = [PathUsage(7, 700, 7)] * scene.program.usage_limit
    meter = Meter()
    scene.install(route(meter))
    usage = meter.collected()
    assert (usage.packets_from_client, usage.packets_to_client, usage.dropped) == (0, 0, 0)


def test_the_number_of_a_path_rests_before_another_gets_it(scene: Scene) -> None:
    one = route()
    seen: list[int] = []
    for _ in range(scene.program.usage_limit):
        scene.install(one)
        seen += [path.usage for path in scene.program.paths.values()]
        scene.routes.remove(one.key)
    assert len(set(seen[: scene.program.usage_limit])) == scene.program.usage_limit


def test_drops_are_counted_to_the_allocation(scene: Scene) -> None:
    meter = Meter(Bucket(0, 10))
    scene.install(route(meter))
    passed = sum(scene.program.packet(TO_PEER, 10) is not None for _ in range(100))
    usage = meter.collected()
    assert usage.packets_from_client == passed == 11
    assert usage.dropped == 89


def test_counters_are_in_words_and_outlive_the_program(scene: Scene) -> None:
    scene.install(route())
    scene.program.packet(TO_PEER, 10)
    scene.program.told[Count.FRAGMENT] = 4
    for _ in range(2):
        counts = scene.routes.counters()
        assert counts["forwarded to peers in the kernel"] == 1
        assert counts["forwarded to clients in the kernel"] == 0
        assert counts["passed up: fragment"] == 4
        scene.routes.close()


# The end. -----------------------------------------------------------------------------------------


def test_closing_gives_everything_back(scene: Scene) -> None:
    bucket = Bucket(1_000_000, 0)
    meter = Meter(bucket)
    scene.install(route(meter))
    scene.program.packet(TO_PEER, 10)
    scene.routes.close()
    scene.routes.close()
    assert meter.usage.octets_from_client == 10
    assert bucket.source is None
    assert meter.take(100, scene.clock.now)
    scene.check_empty()
    assert scene.program.closed
    assert scene.network.closed
    # Whoever has not heard of it does no harm.
    scene.install(route())
    scene.routes.remove(route().key)
    scene.routes.too_big(RELAY, PEER, 1280)
    assert len(scene.routes) == 0


def test_whatever_happens_the_maps_are_what_the_routes_say(rng: random.Random) -> None:
    """Anything in any order, with refusals and changing ways, and a model that is recomputed."""
    scene = Scene(usages=24, buckets=6)
    buckets = [Bucket(0, 0), *(Bucket(1000 * n, 0) for n in range(1, 7))]
    meters = [Meter(rng.choice(buckets), rng.choice(buckets)) for _ in range(10)]
    known: dict[RouteKey, tuple[Route, int]] = {}
    for _ in range(3000):
        scene.program.refuses.clear()
        match rng.randrange(6):
            case 0 | 1 | 2:
                n = rng.randrange(12)
                key = RouteKey(CLIENT, SERVER, 0x4000 + n)
                if key in known and rng.random() < 0.6:
                    one = known[key][0]
                else:
                    one = route(
                        rng.choice(meters), channel=0x4000 + n,
                        peer=Address(f"203.0.113.{rng.randrange(5)}", 5000 + n),
                    )  # fmt: skip
                expires = scene.clock.now + rng.randrange(1, MINUTE)
                if rng.random() < 0.1:
                    scene.program.refuses[rng.choice(["set_path", "serve_port", "set_bucket"])] = (
                        errno.ENOMEM
                    )
                scene.routes.install(one, expires)
                known[key] = one, expires
            case 3:
                key = RouteKey(CLIENT, SERVER, 0x4000 + rng.randrange(12))
                scene.routes.remove(key)
                known.pop(key, None)
            case 4:
                hosts = (RELAY.host, f"203.0.113.{rng.randrange(5)}")
                scene.network.ways[hosts] = rng.choice([None, Way(3, 1400), Way(4, 1500)])
                scene.network.news = True
                scene.routes.changed()
                while scene.routes.refresh(rng.randrange(1, 5)):
                    pass
            case _:
                scene.clock.now += rng.randrange(SECOND)
        ports: Counter[int] = Counter()
        for found, path in scene.program.paths.items():
            ports[found.local.port] += 1
            channel = found.channel or path.channel
            one, expires = known[RouteKey(CLIENT, SERVER, channel)]
            assert path.expires == expires
            if found.channel:
                assert (path.source, path.destination) == (one.relay, one.peer)
                way = scene.network.ways.get((RELAY.host, one.peer.host), scene.network.usual)
            else:
                assert (found.local, found.remote) == (one.relay, one.peer)
                assert path.destination == CLIENT
                way = scene.network.usual
            assert way == Way(path.ifindex, path.mtu)
            assert path.next_hop == path.destination.host
            limited = sum(bool(bucket.octet_rate) for bucket in set(one.meter.buckets))
            assert len({*path.buckets} - {0}) == limited
        assert +scene.program.ports == ports
        taken = [path.usage for path in scene.program.paths.values()]
        assert len(set(taken)) == len(taken)
    for key in known:
        scene.routes.remove(key)
    scene.check_empty()
    assert all(bucket.source is None for bucket in buckets)
