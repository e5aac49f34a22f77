"""What a spread is ordered with: the order itself, its pace, its ports."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ice.config import Config
from ice.spread.order import Ended, Progress, Role, Spread
from ice.spread.pace import BURST, TOGETHER, Pace
from ice.spread.ports import in_turn, shuffled
from stun.errors import UsageError
from stun.sansio import MILLISECOND, SECOND, Address


class TestOrders:
    @pytest.mark.parametrize(
        ("wrong", "says"),
        [
            ({"transport": "sctp"}, "udp or tcp"),
            ({"sockets": 0}, "0 sockets"),
            ({"sockets": 1025}, "1025 sockets"),
            ({"rate": 0}, "0 packets a second"),
            ({"rate": 10_001}, "10001 packets a second"),
            ({"packets": 0}, "packets to send"),
            ({"duration": 0}, "time to send them in"),
            ({"again": 99 * MILLISECOND}, "100 ms"),
            ({"ports": (0, 10)}, "range of ports"),
            ({"ports": (20, 10)}, "range of ports"),
            ({"ports": (1, 65536)}, "range of ports"),
            ({"ttl": 0}, "0 hops"),
            ({"ttl": 256}, "256 hops"),
            ({"remotes": (Address("192.0.2.1", 0),)}, "ports 1 to 65535"),
        ],
    )
    def test_what_is_none_is_refused_in_words(self, wrong: dict[str, Any], says: str) -> None:
        with pytest.raises(UsageError, match=says):
            Spread(Role.SOCKETS, **wrong)

    def test_the_default_is_what_the_arithmetic_is_about(self) -> None:
        order = Spread(Role.PROBES)
        assert (order.sockets, order.packets, order.ports) == (256, 2048, (1024, 65535))

    def test_progress_says_how_far_it_is(self) -> None:
        progress = Progress(Spread(Role.PROBES))
        assert "0 sent" in repr(progress)
        assert "going on" in repr(progress)
        progress.ended = Ended.FOUND
        assert "a direct pair works" in repr(progress)

    @pytest.mark.parametrize(
        ("wrong", "says"),
        [
            ({"opening_ttl": 0}, "1 to 255"),
            ({"tcp_attempts": 0}, "1 to"),
            ({"tcp_attempts": 65}, "1 to"),
        ],
    )
    def test_the_configuration_is_checked(self, wrong: dict[str, Any], says: str) -> None:
        with pytest.raises(UsageError, match=says):
            Config(**wrong)


class TestPace:
    def pace(self, **order: Any) -> tuple[Pace, Progress]:
        progress = Progress(Spread(Role.PROBES, **order))
        return Pace(progress, SECOND), progress

    def test_no_more_than_the_rate(self) -> None:
        pace, progress = self.pace(rate=500, packets=10_000)
        now, sent = SECOND, 0
        while now < 2 * SECOND:
            while pace.take(now):
                sent += 1
            assert pace.next(now) > now
            now = pace.next(now)
        assert sent == progress.sent
        assert 490 <= sent <= 501

    @pytest.mark.parametrize("rate", [1, 30, 500, 2000, 5000])
    def test_whoever_wakes_when_told_keeps_the_rate(self, rate: int) -> None:
        pace, progress = self.pace(rate=rate, packets=100_000)
        now = SECOND
        while now < 3 * SECOND:
            while pace.take(now):
                pass
            now = pace.next(now)
        assert 2 * rate * 0.97 <= progress.sent <= 2 * rate * 1.01 + 1

    def test_a_late_timer_is_no_burst(self) -> None:
        pace, _ = self.pace(rate=500)
        assert pace.take(SECOND)
        late = 10 * SECOND
        taken = 0
        while pace.take(late):
            taken += 1
        assert taken <= BURST + 1

    def test_timers_are_no_finer_than_they_can_be(self) -> None:
        pace, _ = self.pace(rate=10_000)
        pace.take(SECOND)
        assert pace.next(SECOND) == SECOND + TOGETHER

    def test_the_budget_and_the_time_end_it(self) -> None:
        pace, progress = self.pace(rate=10_000, packets=3, duration=SECOND)
        now = SECOND
        while not pace.is_spent:
            assert pace.why_over(now) is None
            pace.take(now)
            now = pace.next(now)
        assert not pace.take(now)
        assert progress.sent == 3
        assert pace.why_over(2 * SECOND) is Ended.EXPIRED

    def test_nothing_leaves_when_the_time_is_up(self) -> None:
        pace, _ = self.pace(duration=SECOND)
        assert not pace.take(2 * SECOND)


class TestPorts:
    @given(st.integers(1, 65535), st.integers(0, 300), st.integers())
    def test_each_once(self, first: int, more: int, seed: int) -> None:
        last = min(65535, first + more)
        drawn = list(shuffled(first, last, Random(seed).randbytes))
        assert sorted(drawn) == list(range(first, last + 1))

    def test_all_of_them(self, rng: Random) -> None:
        assert len(set(shuffled(1, 65535, rng.randbytes))) == 65535

    def test_each_is_as_likely_as_the_others(self, rng: Random) -> None:
        """Of 3 ports there are 6 orders: each comes up about as often."""
        orders = Counter(tuple(shuffled(7, 9, rng.randbytes)) for _ in range(6000))
        assert len(orders) == 6
        assert all(800 < number < 1200 for number in orders.values())

    def test_hosts_take_turns(self, rng: Random) -> None:
        drawn = list(in_turn(["192.0.2.1", "192.0.2.2"], (1, 3), rng.randbytes))
        assert [address.host for address in drawn] == ["192.0.2.1", "192.0.2.2"] * 3
        assert len(set(drawn)) == 6
