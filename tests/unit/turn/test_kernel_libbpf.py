"""The binding of libbpf where there is none, or half of one, and what is made of its words."""

from __future__ import annotations

import ctypes
import errno
import sys
from collections.abc import Iterator

import pytest

from turn.dataplane.kernel import libbpf

VERIFIER = """\
func#0 @0
0: R1=ctx() R10=fp0
; int relay(struct __sk_buff *skb) @ relay.bpf.c:471
40: (0f) r2 += r3
R2 has pointer with unsupported alu operation, pointer arithmetic with it prohibited for !root
verification time 120 usec
stack depth 0
processed 41 insns (limit 1000000) max_states_per_insn 0 total_states 2 peak_states 2 mark_read 0
"""


@pytest.fixture
def forgotten() -> Iterator[None]:
    """The library is looked for anew."""
    libbpf.library.cache_clear()
    yield
    libbpf.library.cache_clear()


@pytest.mark.usefixtures("forgotten")
def test_there_is_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libbpf, "SONAME", "libnatkit-none.so.1")
    with pytest.raises(OSError, match=r"libnatkit-none\.so\.1") as raised:
        libbpf.library()
    assert raised.value.errno != errno.ENOSYS
    # Nothing is remembered of it: it may be installed meanwhile.
    assert libbpf.library.cache_info().currsize == 0


@pytest.mark.skipif(sys.platform != "linux", reason="the C library has another name elsewhere")
@pytest.mark.usefixtures("forgotten")
def test_a_library_without_the_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libbpf, "SONAME", "libm.so.6")
    with pytest.raises(OSError, match=r"libm\.so\.6 has no libbpf_version_string") as raised:
        libbpf.library()
    assert raised.value.errno == errno.ENOSYS


def test_the_verifiers_reason_is_its_last_word() -> None:
    assert libbpf._last_words(VERIFIER) == (
        "R2 has pointer with unsupported alu operation, pointer arithmetic with it prohibited "
        "for !root"
    )


@pytest.mark.parametrize("log", ["", "\n\n", "processed 3 insns (limit 1000000)\n"])
def test_a_verifier_that_gave_no_reason(log: str) -> None:
    assert libbpf._last_words(log) == ""


def test_structures_are_laid_out_as_the_kernels_are() -> None:
    """Offsets that <linux/bpf.h> and <bpf/bpf.h> fix for good on machines of 64 bits."""
    context = libbpf._Context
    assert (context.ifindex.offset, context.gso_segs.offset, context.gso_size.offset) == (
        40,
        164,
        176,
    )
    assert ctypes.sizeof(context) == 192
    assert libbpf._LinkInfo.ifindex.offset == 16
    run = libbpf._TestRun
    assert (run.data_size_in.offset, run.ctx_in.offset, run.retval.offset) == (24, 32, 56)
    assert ctypes.sizeof(run) == 80


def test_errors_have_the_kernels_number_and_words() -> None:
    with pytest.raises(libbpf.BpfError, match="it could not be: No such device") as raised:
        libbpf._checked(-errno.ENODEV, "it could not be")
    assert raised.value.errno == errno.ENODEV
    assert raised.value.detail == ""
    assert libbpf._checked(7, "it could not be") == 7
