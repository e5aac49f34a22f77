"""Whatever happens at its sockets, the server keeps its promises; tools/fuzz/target_server.py."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tools.fuzz.target_server import check_datagram, check_script


def framed(kind: int, body: bytes) -> bytes:
    """Put a header that holds before a body, so that what follows is looked at."""
    body = body[: len(body) & ~3]
    return kind.to_bytes(2) + len(body).to_bytes(2) + b"\x21\x12\xa4\x42" + bytes(12) + body


def with_attributes(attributes: list[tuple[int, bytes]]) -> bytes:
    return framed(
        0x0001,
        b"".join(
            code.to_bytes(2) + len(value).to_bytes(2) + value + bytes(-len(value) & 3)
            for code, value in attributes
        ),
    )


CODES = (0x03, 0x06, 0x08, 0x22, 0x24, 0x26, 0x27, 0x7FFF, 0x8022, 0x8028)
KINDS = (0x0001, 0x0011, 0x0101, 0x0111, 0x0003, 0x0FFF)
LAYOUTS = st.one_of(
    st.binary(max_size=200),
    st.builds(framed, st.sampled_from(KINDS), st.binary(max_size=120)),
    st.builds(
        with_attributes,
        st.lists(st.tuples(st.sampled_from(CODES), st.binary(max_size=12)), max_size=5),
    ),
)


@settings(max_examples=400, deadline=None)
@given(LAYOUTS)
def test_any_datagram_is_answered_or_counted(octets: bytes) -> None:
    check_datagram(octets)


@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=300))
def test_any_course_of_events(script: bytes) -> None:
    check_script(script)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just(2), st.integers(0, 15), st.integers(0, 255)),
            st.tuples(
                st.sampled_from((3, 4)), st.integers(0, 3), st.integers(0, 5), st.integers(0, 1)
            ),
            st.tuples(st.just(5), st.integers(0, 3), st.integers(0, 9)),
            st.tuples(st.just(6), st.integers(0, 3), st.integers(0, 12)),
            st.tuples(st.just(7), st.integers(0, 60)),
        ),
        max_size=60,
    )
)
def test_courses_of_events_that_go_deep(steps: list[tuple[int, ...]]) -> None:
    check_script(bytes(octet for step in steps for octet in step))
