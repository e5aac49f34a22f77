import pytest

from nattype.model import Filtering, Mapping, NatType
from nattype.report import Report, TcpReport, UdpReport

CONE = UdpReport(nat_type=NatType.FULL_CONE, mapping=Mapping.ENDPOINT_INDEPENDENT)
VAGUE_UDP = UdpReport(mapping=Mapping.ENDPOINT_INDEPENDENT)
TCP = TcpReport(nat_type=NatType.FULL_CONE, mapping=Mapping.ENDPOINT_INDEPENDENT)
HALF_TCP = TcpReport(mapping=Mapping.ENDPOINT_INDEPENDENT, filtering=Filtering.UNKNOWN)
VAGUE_TCP = TcpReport()


@pytest.mark.parametrize(
    ("udp", "tcp", "conclusive"),
    [
        (CONE, TCP, True),
        (CONE, None, True),
        (None, TCP, True),
        (None, None, False),
        (VAGUE_UDP, TCP, False),
        (VAGUE_UDP, None, False),
        # The server cannot dial back, as most cannot: the mapping of TCP is what it can give.
        (CONE, HALF_TCP, True),
        (None, HALF_TCP, False),
        (CONE, VAGUE_TCP, False),
    ],
)
def test_conclusive(udp: UdpReport | None, tcp: TcpReport | None, conclusive: bool) -> None:
    assert Report("", "ipv4", udp, tcp).conclusive is conclusive
