"""Any NAT of the model, one or two in a row, any path: the verdict is right or left open."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nattype.lab.sim.diagnose import diagnose
from nattype.model import (
    Allocation,
    Filtering,
    Kind,
    Link,
    Mapping,
    NatModel,
    NatType,
    Unsolicited,
)

MAPPINGS = (
    Mapping.ENDPOINT_INDEPENDENT,
    Mapping.ADDRESS_DEPENDENT,
    Mapping.ADDRESS_AND_PORT_DEPENDENT,
)
FILTERINGS = (
    Filtering.ENDPOINT_INDEPENDENT,
    Filtering.ADDRESS_DEPENDENT,
    Filtering.ADDRESS_AND_PORT_DEPENDENT,
)
UNDECIDED = {NatType.INCONCLUSIVE, Mapping.UNKNOWN, Filtering.UNKNOWN}


@st.composite
def boxes(draw: st.DrawFn) -> NatModel:
    mapping = draw(st.sampled_from(MAPPINGS))
    allocations = [Allocation.SEQUENTIAL, Allocation.RANDOM]
    if mapping is Mapping.ENDPOINT_INDEPENDENT:
        allocations.append(Allocation.PRESERVED)
    return NatModel(
        mapping=mapping,
        filtering=draw(st.sampled_from(FILTERINGS)),
        allocation=draw(st.sampled_from(allocations)),
        delta=draw(st.sampled_from([1, 2, 4, -1, 7])),
        hairpin=draw(st.booleans()),
        unsolicited_tcp=draw(
            st.sampled_from([Unsolicited.DROP, Unsolicited.RST, Unsolicited.ICMP])
        ),
    )


LINKS = st.builds(
    Link,
    loss=st.sampled_from([0.0, 0.0, 0.05, 0.1]),
    delay=st.sampled_from([0.0, 0.005, 0.04, 0.15]),
    jitter=st.sampled_from([0.0, 0.01, 0.05]),
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(boxes(), min_size=1, max_size=2), LINKS, st.integers(min_value=0, max_value=2**32 - 1)
)
def test_never_wrong(models: list[NatModel], link: Link, seed: int) -> None:
    built = Kind("generated", "generated", tuple(models))
    report = diagnose(built, seed=seed, link=link)
    expected = built.expected
    assert report.udp is not None
    assert report.tcp is not None
    assert report.culprits == ()
    for path, kind in ((report.udp, expected.udp), (report.tcp, expected.tcp)):
        assert path.nat_type in {kind, *UNDECIDED}
        assert path.mapping in {expected.mapping, *UNDECIDED}
        assert path.filtering in {expected.filtering, *UNDECIDED}
    assert report.udp.mapping_stable is not False
    assert report.udp.fragments is not False
    if link.loss == 0.0:
        assert report.udp.nat_type is kind
