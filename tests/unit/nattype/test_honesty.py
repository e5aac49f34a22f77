"""What a server may say about itself and about us."""

from __future__ import annotations

import pytest

from nattype.honesty import fault_of_mapped, fault_of_other, is_public, same_host
from nattype.observations import Asked
from stun.sansio import Address

PUBLIC = Address("192.31.196.10", 3478)


@pytest.mark.parametrize(
    ("other", "word"),
    [
        (Address("0.0.0.0", 3479), "nobody's"),
        (Address("192.175.48.10", 0), "nobody's"),
        (Address("192.31.196.10", 3479), "own address"),
        (Address("192.175.48.10", 3478), "same port"),
        (Address("10.0.0.2", 3479), "private"),
        (Address("192.168.1.1", 3479), "private"),
        (Address("172.16.3.4", 3479), "private"),
        (Address("127.0.0.1", 3479), "private"),
        (Address("100.64.0.9", 3479), "private"),
        (Address("2620:4f:8000:b::10", 3479), "another family"),
    ],
)
def test_second_addresses_that_cannot_be_used(other: Address, word: str) -> None:
    fault = fault_of_other(PUBLIC, other)
    assert fault is not None
    assert word in fault


@pytest.mark.parametrize(
    ("server", "other"),
    [
        (PUBLIC, Address("192.175.48.10", 3479)),
        (Address("192.168.1.1", 3478), Address("192.168.1.2", 3479)),
        (Address("2620:4f:8000:a::10", 3478), Address("2620:4f:8000:b::10", 3479)),
    ],
)
def test_second_addresses_that_can(server: Address, other: Address) -> None:
    assert fault_of_other(server, other) is None


def test_one_address_in_two_forms_is_the_same() -> None:
    assert same_host("2620:4f:8000:a::10", "2620:004f:8000:000a:0:0:0:10")
    assert fault_of_other(
        Address("2620:4f:8000:a::10", 3478), Address("2620:4f:8000:a:0:0:0:10", 3479)
    )
    assert same_host("fe80::1%eth0", "fe80::1")


@pytest.mark.parametrize(
    ("mapped", "word"),
    [
        (None, "without a mapped address"),
        (Address("0.0.0.0", 4000), "0.0.0.0"),
        (Address("192.52.193.2", 0), ":0"),
        (Address("2620:4f:8000:1::2", 4000), "another family"),
        (Address("192.52.193.2", 4000), None),
    ],
)
def test_mapped_addresses(mapped: Address | None, word: str | None) -> None:
    fault = fault_of_mapped(Asked(Address("192.168.1.2", 5), PUBLIC, mapped=mapped))
    assert (fault is None) == (word is None)
    assert word is None or word in str(fault)


def test_public() -> None:
    assert is_public("192.31.196.10")
    assert not is_public("10.1.2.3")
    assert not is_public("fe80::1%eth0")
