"""What the cache of a users' database knows, for how long, and what it says otherwise."""

import pytest

from stun.errors import UsageError
from stun.users import Gap, Password
from turn.users.cache import CachedUsers

NOW = 1_700_000_000
SECRETS = (Password("pass"),)
HASH = bytes(32)


@pytest.fixture
def users():
    return CachedUsers(fresh=60, absent=10, grace=3600)


def ask(users, name="user", *, after=0):
    return tuple(users.secrets(name, NOW + after))


def hashed(users, value=HASH, *, after=0):
    return users.by_userhash(value, NOW + after)


def test_what_it_was_not_told_must_be_asked(users):
    assert ask(users) == (Gap.NOT_YET,)
    assert hashed(users) is Gap.NOT_YET


def test_a_user_is_known_for_a_while(users):
    users.put("user", SECRETS)
    for after in (0, 59):
        assert ask(users, after=after) == SECRETS
    assert ask(users, after=60) == (Gap.NOT_YET,)
    users.put("user", SECRETS)
    assert ask(users, after=60) == SECRETS
    assert ask(users, after=119) == SECRETS


def test_a_clock_that_is_set_back_proves_nothing(users):
    users.put("user", SECRETS)
    assert ask(users) == SECRETS
    assert ask(users, after=-1) == (Gap.NOT_YET,)


def test_that_nobody_has_a_name_is_known_for_less(users):
    users.put("user", None)
    assert ask(users) == ask(users, after=9) == ()
    assert ask(users, after=10) == (Gap.NOT_YET,)
    users.put("user", SECRETS)
    assert ask(users) == SECRETS
    users.put("user", None)
    assert ask(users) == ()


def test_hashes(users):
    users.put_userhash(HASH, None)
    assert hashed(users) is hashed(users, after=9) is None
    assert hashed(users, after=10) is Gap.NOT_YET
    users.put_userhash(HASH, "user")
    # A name has one hash for ever; whether the user is there is asked by name.
    assert hashed(users, after=10**6) == "user"


def test_users_that_changed_are_asked_for_again(users):
    users.put("user", SECRETS)
    users.put("nobody", None)
    users.put_userhash(HASH, None)
    users.invalidate()
    assert ask(users) == ask(users, "nobody") == (Gap.NOT_YET,)
    assert hashed(users) is Gap.NOT_YET
    users.put("user", SECRETS)
    assert ask(users) == SECRETS


def test_an_answer_that_a_change_has_overtaken(users):
    before = users.generation
    users.invalidate()
    users.put("user", SECRETS, before)
    users.put("nobody", None, before)
    users.put_userhash(HASH, None, before)
    assert ask(users) == ask(users, "nobody") == (Gap.NOT_YET,)
    assert hashed(users) is Gap.NOT_YET


class TestOutOfReach:
    def test_who_was_seen_goes_on(self, users):
        users.put("user", SECRETS)
        assert ask(users) == SECRETS
        users.reachable = False
        assert ask(users, after=59) == SECRETS
        # A proof that does not fit may be that of a new password: not a reason for 401.
        assert ask(users, after=60) == (*SECRETS, Gap.UNAVAILABLE)
        assert ask(users, after=3599) == (*SECRETS, Gap.UNAVAILABLE)
        assert ask(users, after=3600) == (Gap.UNAVAILABLE,)

    def test_changed_or_not(self, users):
        users.put("user", SECRETS)
        ask(users)
        users.invalidate()
        users.reachable = False
        assert ask(users) == (*SECRETS, Gap.UNAVAILABLE)

    def test_nobody_else_does(self, users):
        users.put("nobody", None)
        users.reachable = False
        assert ask(users, "nobody") == ()
        assert ask(users, "nobody", after=10) == (Gap.UNAVAILABLE,)
        assert ask(users, "stranger") == (Gap.UNAVAILABLE,)
        assert hashed(users) is Gap.UNAVAILABLE
        users.reachable = True
        assert ask(users, "stranger") == (Gap.NOT_YET,)


class TestAheadOfTime:
    def test_who_is_in_use_is_due_before_it_must_be_asked_for(self, users):
        users.put("user", SECRETS, asked=NOW)
        ask(users)
        assert users.due(NOW + 44, 9) == []
        assert users.due(NOW + 45, 9) == ["user"]
        assert users.due(NOW + 45, 9) == [], "once is enough"
        # What is known serves on meanwhile, and no longer than it would have.
        assert ask(users, after=59) == SECRETS
        assert ask(users, after=60) == (Gap.NOT_YET,)

    def test_an_answer_counts_from_when_it_was_asked_for(self, users):
        users.put("user", SECRETS, asked=NOW)
        ask(users)
        users.put("user", SECRETS, asked=NOW + 45)
        # Nobody looked at it before: it is old all the same.
        assert ask(users, after=104) == SECRETS
        assert ask(users, after=105) == (Gap.NOT_YET,)

    def test_who_has_lost_access_meanwhile_is_nobody(self, users):
        users.put("user", SECRETS, asked=NOW)
        ask(users)
        users.put("user", None, asked=NOW + 45)
        assert ask(users, after=46) == ()
        assert users.due(NOW + 1000, 9) == []

    def test_who_is_not_used_any_more_is_let_alone(self, users):
        asked = []
        users.put("user", SECRETS, asked=NOW)
        ask(users)
        for now in range(NOW, NOW + 1000):
            for name in users.due(now, 9):
                asked.append(now - NOW)
                users.put(name, SECRETS, asked=now)
        assert asked == [45, 90, 135, 180, 225, 270]

    def test_a_use_that_had_to_wait_is_a_use(self, users):
        users.put("user", SECRETS, asked=NOW)
        ask(users, after=290)
        users.put("user", SECRETS, asked=NOW + 290)
        assert users.due(NOW + 335, 9) == ["user"]

    def test_the_most_urgent_come_first_and_so_many_at_once(self, users):
        for number in range(5):
            users.put(f"user{number}", SECRETS, asked=NOW + number)
        users.put("user0", SECRETS, asked=NOW + 5)
        assert users.due(NOW + 50, 0) == []
        assert users.due(NOW + 50, 2) == ["user1", "user2"]
        assert users.due(NOW + 50, 9) == ["user3", "user4", "user0"]

    def test_nobody_is_due_whose_age_is_not_known(self, users):
        users.put("user", SECRETS)
        ask(users)
        assert users.due(NOW + 1000, 9) == []

    def test_a_clock_that_is_set_back(self, users):
        users.put("user", SECRETS, asked=NOW)
        # The machine has not been told yet what time it is, or has been told another.
        assert ask(users, after=-3600) == SECRETS
        assert users.due(NOW - 3600, 9) == ["user"]

    def test_who_has_lost_its_place_is_not_asked_for(self):
        users = CachedUsers(capacity=2)
        for number, name in enumerate("abc"):
            users.put(name, SECRETS, asked=NOW + number)
        # Whom nobody uses keeps its place in the queue, however often it is asked for.
        users.put("b", SECRETS, asked=NOW + 5)
        users.put("d", SECRETS, asked=NOW + 6)
        assert users.due(NOW + 100, 9) == ["c", "d"]
        assert len(users) == 2


class TestBounds:
    def test_the_user_unseen_for_longest_goes_first(self):
        users = CachedUsers(capacity=2)
        for name in ("a", "b"):
            users.put(name, SECRETS)
        ask(users, "a")
        users.put("c", SECRETS)
        assert [ask(users, name) == SECRETS for name in "abc"] == [True, False, True]
        assert len(users) == 2

    def test_names_tried_at_random_push_out_no_user(self):
        users = CachedUsers(capacity=10)
        users.put("user", SECRETS)
        users.put_userhash(HASH, "user")
        for number in range(1000):
            users.put(f"guess{number}", None)
            users.put_userhash(number.to_bytes(32, "big")[::-1] + b"x", None)
        assert ask(users) == SECRETS
        assert hashed(users) == "user"
        assert ask(users, "guess999") == ()
        assert ask(users, "guess0") == (Gap.NOT_YET,)

    @pytest.mark.parametrize("wrong", [{"capacity": 0}, {"fresh": 0}, {"absent": 0}, {"grace": -1}])
    def test_usage(self, wrong):
        with pytest.raises(UsageError):
            CachedUsers(**wrong)
