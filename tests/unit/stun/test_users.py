"""Where users are: tables, shared secrets, several stores at once."""

from contextlib import suppress

import pytest

from stun.credentials import Profile, long_term_key, mint, rest_credentials, userhash
from stun.errors import UsageError
from stun.registry import PasswordAlgorithm
from stun.strings import StringError
from stun.users import (
    AnyOf,
    Gap,
    Password,
    RestUsers,
    SharedSecret,
    StaticUsers,
    StoredKeys,
)

REALM = "example.org"
NOW = 1_700_000_000
USERS = StaticUsers({"user": "pass"}, REALM)


class Asking:
    """A store that must ask for everybody."""

    def __init__(self, gap=Gap.NOT_YET):
        self.gap = gap

    def secrets(self, username, unix_time):
        return (self.gap,)

    def by_userhash(self, value, unix_time):
        return self.gap


def test_names_are_found_under_both_preparations():
    users = StaticUsers({"\u2168": "pass"}, REALM)
    assert users.secrets("\u2168", 0) == users.secrets("IX", 0) == (Password("pass"),)
    assert users.by_userhash(userhash("\u2168", REALM), 0) == "\u2168"


def test_a_name_for_saslprep_only():
    users = StaticUsers({"a\u00adb": "pass"}, REALM)
    assert users.secrets("ab", 0) == (Password("pass"),)


@pytest.mark.parametrize("names", [("IX", "\u2168"), ("\u2168", "IX")])
def test_a_name_comes_before_what_saslprep_makes_of_another(names):
    users = StaticUsers({name: f"of {name}" for name in names}, REALM)
    assert users.secrets("IX", 0) == (Password("of IX"),)
    assert users.secrets("\u2168", 0) == (Password("of \u2168"),)


def test_passwords_are_prepared_as_each_profile_says():
    made = Password("p\u00aass").keys("user", REALM, PasswordAlgorithm.MD5, modern=False)
    assert made == [
        long_term_key("user", REALM, "p\u00aass", profile=profile) for profile in Profile
    ]
    assert Password("a\u00adb").keys("user", REALM, PasswordAlgorithm.MD5, modern=True) == []
    assert len(Password("a\u00adb").keys("user", REALM, PasswordAlgorithm.MD5, modern=False)) == 1


@pytest.mark.parametrize("realm", ["", "r\u00aalm", "a\u00adb", '"quoted"'])
def test_realms_are_prepared_as_each_profile_says(realm):
    expected = []
    for profile in Profile:
        with suppress(StringError):
            expected.append(long_term_key("user", realm, "pass", profile=profile))
    made = Password("pass").keys("user", realm, PasswordAlgorithm.MD5, modern=False)
    assert made == list(dict.fromkeys(expected))


def test_shared_secrets_stand_for_time_limited_passwords():
    users = RestUsers(["new", b"old"])
    username, password = mint("new", "alice", 100, NOW)
    assert users.secrets(username, NOW + 100) == (SharedSecret("new"), SharedSecret(b"old"))
    assert users.secrets(username, NOW + 101) == ()
    assert users.secrets("alice", NOW) == ()
    assert users.by_userhash(userhash(username, REALM), NOW) is None
    for kind in PasswordAlgorithm.MD5, PasswordAlgorithm.SHA256:
        keys = SharedSecret("new").keys(username, REALM, kind, modern=True)
        assert keys == [long_term_key(username, REALM, password, kind)]


def test_any_of():
    both = AnyOf(RestUsers(["secret"]), USERS)
    mine = rest_credentials("secret", NOW, "alice")
    assert both.secrets("user", NOW) == [Password("pass")]
    assert both.secrets(mine.username, NOW) == [SharedSecret("secret")]
    assert both.secrets("nobody", NOW) == []
    assert both.by_userhash(userhash("user", REALM), NOW) == "user"
    assert both.by_userhash(bytes(32), NOW) is None


def test_any_of_asks_only_where_nobody_knows():
    known = userhash("user", REALM)
    for stores in ((Asking(), USERS), (USERS, Asking())):
        assert AnyOf(*stores).by_userhash(known, NOW) == "user"
        assert AnyOf(*stores).by_userhash(bytes(32), NOW) is Gap.NOT_YET
        assert set(AnyOf(*stores).secrets("user", NOW)) == {Password("pass"), Gap.NOT_YET}
    down = Asking(Gap.UNAVAILABLE)
    assert AnyOf(USERS, down).by_userhash(bytes(32), NOW) is Gap.UNAVAILABLE
    for stores in ((down, Asking()), (Asking(), down)):
        assert AnyOf(*stores).by_userhash(bytes(32), NOW) is Gap.NOT_YET


@pytest.mark.parametrize("secrets", [[], [""], ["secret", b""]])
def test_no_empty_secrets(secrets):
    with pytest.raises(UsageError):
        RestUsers(secrets)


def test_secrets_are_not_shown():
    assert "hidden" not in repr(Password("hidden")) + repr(SharedSecret("hidden"))
    assert "key" not in repr(StoredKeys(md5=b"key", sha256=b"key")).replace("Keys", "")
