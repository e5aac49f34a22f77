"""What a laboratory shall be, as plain values, and their way through a pipe to another process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeAlias

from nattype.model import (
    Allocation,
    Filtering,
    Kind,
    Lifetimes,
    Link,
    Mapping,
    NatModel,
    Unsolicited,
)
from nattype.model import kind as kind_named

AnyKind: TypeAlias = str | Kind | NatModel | Sequence[NatModel]
"""A kind by name, by value, or as the boxes that make it, host side first."""

IPV6_NAT, IPV6_ROUTED, IPV6_OFF = "nat", "routed", "off"
IPV6_MODES = (IPV6_NAT, IPV6_ROUTED, IPV6_OFF)


PLAIN = Link()
"""A cable that does nothing to packets."""


@dataclass(frozen=True, slots=True)
class Site:
    """Hosts behind one chain of boxes."""

    kind: Kind
    name: str = ""
    """Comes before the names of its boxes, ``a-box1``; may be empty when there is one site."""
    hosts: tuple[str, ...] = ("host",)
    link: Link = PLAIN
    """The access link, between the outermost box (or the open host) and the internet."""


@dataclass(frozen=True, slots=True)
class LabSpec:
    """Everything that decides about a laboratory."""

    sites: tuple[Site, ...]
    ipv6: str = IPV6_NAT
    """``nat``: NAT66 of the same behaviour, ``routed``: the same filter without NAT, ``off``."""
    server_command: tuple[str, ...] | None = None
    """What runs as the STUN server instead of natkit's; empty for none at all.  ``{A}``, ``{B}``,
    ``{A6}``, ``{B6}`` and ``{port}`` are filled in."""
    server_wait: float = 10.0
    """Seconds to wait for the server's first answer; 0 does not wait."""
    seed: int = 0
    """Decides which external ports the NATs give out."""


def site(
    kind: AnyKind,
    *,
    name: str = "",
    hosts: Sequence[str] = ("host",),
    loss: float = 0.0,
    delay: float = 0.0,
    jitter: float = 0.0,
    mtu: int = 1500,
    hairpin: bool | None = None,
    tcp_unsolicited: str | None = None,
    udp_timeout: float | None = None,
    udp_stream_timeout: float | None = None,
) -> Site:
    """Return a site of this kind with some things changed in all of its boxes.

    ``None`` leaves what the kind says.  Raises ``ValueError``, with a sentence, for an unknown
    kind or a value out of range.
    """
    found = _kind(kind)
    if not 0 <= loss <= 1:
        raise ValueError(f"loss is a probability, 0 to 1, not {loss}")
    if delay < 0 or jitter < 0:
        raise ValueError("delay and jitter are seconds and not negative")
    changes: dict[str, Any] = {}
    if hairpin is not None:
        changes["hairpin"] = hairpin
    if tcp_unsolicited is not None:
        changes["unsolicited_tcp"] = Unsolicited(tcp_unsolicited)
    lifetimes: dict[str, float] = {}
    if udp_timeout is not None:
        lifetimes["udp_one_shot"] = udp_timeout
    if udp_stream_timeout is not None:
        lifetimes["udp_stream"] = udp_stream_timeout
    boxes = tuple(
        replace(box, **changes, lifetimes=replace(box.lifetimes, **lifetimes))
        for box in found.boxes
    )
    link = Link(loss=loss, delay=delay, jitter=jitter, mtu=mtu)
    return Site(replace(found, boxes=boxes), name=name, hosts=tuple(hosts), link=link)


def _kind(kind: AnyKind) -> Kind:
    if isinstance(kind, Kind):
        return kind
    if isinstance(kind, str):
        return kind_named(kind)
    boxes = (kind,) if isinstance(kind, NatModel) else tuple(kind)
    return Kind("custom", "boxes of your own", boxes)


def to_json(spec: LabSpec) -> dict[str, Any]:
    """Return ``spec`` as what ``json.dumps`` takes."""
    return asdict(spec)


def from_json(value: dict[str, Any]) -> LabSpec:
    """Return the specification that :func:`to_json` was given."""
    command = value["server_command"]
    return LabSpec(
        sites=tuple(_site(site) for site in value["sites"]),
        ipv6=value["ipv6"],
        server_command=None if command is None else tuple(command),
        server_wait=value["server_wait"],
        seed=value["seed"],
    )


def _site(value: dict[str, Any]) -> Site:
    kind = value["kind"]
    return Site(
        kind=Kind(kind["name"], kind["summary"], tuple(_model(box) for box in kind["boxes"])),
        name=value["name"],
        hosts=tuple(value["hosts"]),
        link=Link(**value["link"]),
    )


def _model(value: dict[str, Any]) -> NatModel:
    return NatModel(
        **{
            **value,
            "mapping": Mapping(value["mapping"]),
            "filtering": Filtering(value["filtering"]),
            "allocation": Allocation(value["allocation"]),
            "unsolicited_tcp": Unsolicited(value["unsolicited_tcp"]),
            "lifetimes": Lifetimes(**value["lifetimes"]),
        }
    )
