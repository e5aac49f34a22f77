from stun.sansio import Address, Timers


def test_address_text_brackets_ipv6_only() -> None:
    assert str(Address("192.0.2.1", 3478)) == "192.0.2.1:3478"
    assert str(Address("2001:db8::1", 3478)) == "[2001:db8::1]:3478"


def test_timers_expire_earliest_first_and_once() -> None:
    timers: Timers[str] = Timers()
    timers.set("late", 30)
    timers.set("early", 10)
    timers.set("never", 99)
    assert timers.next() == 10
    assert list(timers.expired(9)) == []
    assert list(timers.expired(30)) == ["early", "late"]
    assert list(timers.expired(30)) == []
    assert timers.next() == 99


def test_setting_a_timer_again_moves_it() -> None:
    timers: Timers[str] = Timers()
    timers.set("a", 10)
    timers.set("a", 50)
    assert list(timers.expired(20)) == []
    assert timers.next() == 50


def test_a_timer_cancelled_or_moved_while_others_expire_is_not_given() -> None:
    timers: Timers[str] = Timers()
    for key in ("a", "b", "c"):
        timers.set(key, 10)
    seen = []
    for key in timers.expired(10):
        seen.append(key)
        timers.cancel("b")
        timers.set("c", 20)
    assert seen == ["a"]
    assert timers.next() == 20


def test_a_timer_set_while_expiring_waits_for_the_next_call() -> None:
    timers: Timers[int] = Timers()
    timers.set(0, 1)
    for key in timers.expired(5):
        timers.set(key, 1)
    assert list(timers.expired(5)) == [0]


def test_cancel_of_an_unarmed_timer_is_nothing() -> None:
    timers: Timers[str] = Timers()
    timers.cancel("x")
    assert timers.next() is None
    assert "x" not in timers
    assert len(timers) == 0
