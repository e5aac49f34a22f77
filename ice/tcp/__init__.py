"""ICE over TCP (RFC 6544): candidates, connections and simultaneous open, as a part of the hub."""

from __future__ import annotations

from ice.tcp.part import TcpPart

__all__ = ["TcpPart"]
