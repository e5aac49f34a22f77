"""The tables, against IANA's."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from stun.attributes import BY_CODE
from stun.registry import (
    AttributeType,
    Class,
    ErrorCode,
    Family,
    Method,
    OpenEnum,
    PasswordAlgorithm,
    SecurityFeature,
    Status,
    comprehension_required,
    default_reason,
)

IANA = Path(__file__).resolve().parents[3] / "rfc-vectors" / "iana"


def table(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((IANA / f"{name}.json").read_text())
    return document


def assigned(name: str) -> dict[int, dict[str, Any]]:
    return {row["first"]: row for row in table(name)["entries"] if row["status"] == "assigned"}


TABLES = [
    (Method, "stun-methods"),
    (AttributeType, "stun-attributes"),
    (ErrorCode, "stun-error-codes"),
    (PasswordAlgorithm, "stun-password-algorithms"),
]
IDS = [name for _, name in TABLES]


@pytest.mark.parametrize(("ours", "name"), TABLES, ids=IDS)
def test_all_that_iana_assigns_is_here_and_nothing_else_says_so(
    ours: type[OpenEnum], name: str
) -> None:
    theirs = {number: row["name"] for number, row in assigned(name).items()}
    assert {int(row): row.label for row in ours if row.status is Status.ASSIGNED} == theirs


@pytest.mark.parametrize(("ours", "name"), TABLES, ids=IDS)
def test_the_sections_name_iana_s_reference(ours: type[OpenEnum], name: str) -> None:
    for number, row in assigned(name).items():
        section = ours(number).section
        if row["rfc"].startswith("person:"):
            assert section == "IANA, " + row["rfc"].removeprefix("person:").replace("_", " ")
        else:
            # BINDING is in RFC 8489; its table entry and ours name the same document.
            assert section.startswith(row["rfc"].replace("RFC", "RFC ") + " section "), number


@pytest.mark.parametrize(("ours", "name"), TABLES, ids=IDS)
def test_what_iana_does_not_assign_has_a_status_that_says_why(
    ours: type[OpenEnum], name: str
) -> None:
    rows = table(name)["entries"]
    for row in ours:
        if row.status is Status.ASSIGNED:
            continue
        (theirs,) = (r for r in rows if r["first"] <= row <= r["last"])
        expected = {
            "reserved": {Status.HISTORIC, Status.IN_USE},
            "unassigned": {Status.UNREGISTERED, Status.NATKIT, Status.HISTORIC},
        }
        assert row.status in expected[theirs["status"]], row


def test_historic_names_are_those_that_iana_gives() -> None:
    for number, name in table("stun-attributes")["historic_rfc3489"].items():
        assert AttributeType(int(number, 16)).label == name
    for number, name in table("stun-error-codes")["historic_rfc3489"].items():
        row = ErrorCode(int(number))
        assert (row.label, row.status) == (name, Status.HISTORIC)


def test_change_request_is_in_use_although_reserved() -> None:
    assert int(AttributeType.CHANGE_REQUEST) == 0x0003
    assert AttributeType.CHANGE_REQUEST.status is Status.IN_USE
    assert (
        int(AttributeType.OTHER_ADDRESS) == 0x802C
    )  # errata 2939: not the number of CHANGED-ADDRESS


def test_natkit_s_own_attributes_are_optional_and_unassigned() -> None:
    own = [row for row in AttributeType if row.status is Status.NATKIT]
    assert own == [0xF4A0, 0xF4A1]
    for row in own:
        assert not comprehension_required(row)
        assert row >= 0xC000, "Expert Review, not IETF Review"


def test_every_attribute_has_a_codec() -> None:
    assert set(BY_CODE) == {int(row) for row in AttributeType}


@pytest.mark.parametrize(
    ("enum", "last"), [(Method, 0xFFF), (AttributeType, 0xFFFF), (ErrorCode, 699)]
)
def test_unknown_numbers_are_members(enum: type[OpenEnum], last: int) -> None:
    known = {int(row) for row in enum}
    before = len(enum)
    for number in range(last + 1):
        row = enum.make(number)
        assert int(row) == number == row.value
        assert row.is_known is (number in known)
        if not row.is_known:
            assert row.name == f"UNKNOWN_{number:#06x}"
            assert row == enum.make(number)
            assert hash(row) == hash(number)
    assert len(enum) == before, "unknown numbers must not be kept"
    for outside in (-1, last + 1):
        with pytest.raises(ValueError, match=str(outside)):
            enum.make(outside)


def test_a_method_is_no_number_of_another_kind() -> None:
    with pytest.raises(ValueError, match="x"):
        Method("x")  # type: ignore[arg-type]


def test_members_survive_copying_and_pickling() -> None:
    for row in (Method.BINDING, Method.make(0x123)):
        assert copy.deepcopy(row) == row
        assert pickle.loads(pickle.dumps(row)) == row


def test_comprehension() -> None:
    rows = {row["first"]: row["comprehension"] for row in table("stun-attributes")["entries"]}
    for number, comprehension in rows.items():
        assert comprehension_required(number) is (comprehension == "required")


def test_default_reasons() -> None:
    assert default_reason(401) == "Unauthenticated"
    assert default_reason(499) == ""
    assert default_reason(1000) == ""


def test_closed_enums() -> None:
    assert [(row.name, row.value) for row in Class] == [
        ("REQUEST", 0),
        ("INDICATION", 1),
        ("SUCCESS", 2),
        ("ERROR", 3),
    ]
    assert [int(family) for family in Family] == [1, 2]
    features = {row["first"]: row["name"] for row in table("stun-security-features")["entries"]}
    assert features[SecurityFeature.PASSWORD_ALGORITHMS] == "Password algorithms"
    assert features[SecurityFeature.USERNAME_ANONYMITY] == "Username anonymity"
