"""The verdict of an explanation, and what could be done: conclusions from what an agent saw.

What NATs do shows in the candidates: two servers that see different ports of one base, or a peer
whose checks come from another port than it told, mean a NAT that gives each destination a mapping
of its own ("address and port-dependent mapping", RFC 4787 section 4.1; "symmetric" of old).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from ipaddress import ip_address
from typing import Final

from ice.candidate import Candidate, CandidateType
from ice.explanation import Outcome
from ice.pair import Pair, PairState
from ice.seen import View
from stun.errors import DropReason
from stun.sansio import MILLISECOND, SECOND, Address, Instant

_HOST, _SERVER_REFLEXIVE, _PEER_REFLEXIVE, _RELAYED = CandidateType
_UNPROVEN: Final = (
    DropReason.BAD_INTEGRITY,
    DropReason.MISSING_INTEGRITY,
)
MOST_NAMED: Final = 3
"""Servers named in one sentence."""


def address(host: str, port: int) -> str:
    """Return a transport address as text."""
    return str(Address(host, port))


# What is seen. ------------------------------------------------------------------------------------


def is_symmetric_here(view: View, pairs: Iterable[Pair]) -> bool:
    """Whether this side's NAT gives each destination another mapping, as far as was seen."""
    seen: dict[tuple[str | None, int | None, str, str], set[tuple[str, int]]] = {}
    candidates = [each.candidate for each in view.local]
    candidates += [pair.mapped for pair in pairs if pair.mapped is not None]
    for one in candidates:
        # RFC 8839 section 5.1: who hides its base gives 0.0.0.0 and port 9, which tells nothing.
        if one.type in {_SERVER_REFLEXIVE, _PEER_REFLEXIVE} and (one.related_port or 9) != 9:
            family = "ipv6" if ":" in one.host else "ipv4"
            base = one.related_address, one.related_port, one.transport, family
            seen.setdefault(base, set()).add((one.host, one.port))
    return any(len(mappings) > 1 for mappings in seen.values())


def is_symmetric_there(view: View) -> bool:
    """Whether the peer's checks came from another port than it told of its NAT."""
    told = {
        (each.candidate.host, each.candidate.transport): each.candidate
        for each in view.remote
        if each.candidate.type is _SERVER_REFLEXIVE
    }
    return any(
        each.learned and (each.candidate.host, each.candidate.transport) in told
        for each in view.remote
    )


def _is_private(candidate: Candidate) -> bool:
    try:
        return not ip_address(candidate.host.partition("%")[0]).is_global
    except ValueError:
        return True  # a .local name stands for an address of the peer's network


def _has(candidates: Iterable[Candidate], kind: CandidateType) -> bool:
    return any(candidate.type is kind for candidate in candidates)


def _kinds(candidates: Iterable[Candidate]) -> str:
    """Name transports and families: what candidates have to share to be paired."""
    return ", ".join(
        sorted(
            {
                f"{each.transport.upper()}{f' {each.tcptype}' if each.tcptype else ''} over "
                + (
                    "mDNS"
                    if each.host.endswith(".local")
                    else "IPv6"
                    if ":" in each.host
                    else "IPv4"
                )
                for each in candidates
            }
        )
    )


# The verdict. -------------------------------------------------------------------------------------


def verdict(view: View, outcome: Outcome, pairs: Sequence[Pair], now: Instant) -> str:
    """Return the answer in one sentence."""
    match outcome:
        case Outcome.CONNECTED:
            return _connected(view)
        case Outcome.DISCONNECTED:
            lost = [pair for pair in pairs if pair.nominated or pair.packets_sent]
            last = lost[0].notes[-1].what if lost and lost[0].notes else "no pair answers any more"
            return f"Disconnected: {last}."
        case Outcome.CHECKING:
            working = sum(1 for pair in pairs if pair.valid)
            ended = sum(1 for pair in pairs if pair.state is PairState.FAILED)
            took = (now - view.started) / SECOND
            return (
                f"Checking, after {took:.1f} s: of {_number(len(pairs), 'pair')} "
                f"{working} {'works' if working == 1 else 'work'}, {ended} failed."
            )
        case Outcome.WAITING:
            return f"Waiting: {_lacking(view) or 'no pair has been made'}."
        case Outcome.FAILED:
            return f"Failed: {_failure(view, pairs)}."


def _connected(view: View) -> str:
    chosen = list(dict.fromkeys(view.selected.values()))
    ways = {_way(pair) for pair in chosen}
    if len(chosen) > 1:
        if len(ways) == 1:
            return f"Connected {ways.pop()}, all {len(chosen)} components."
        return f"Connected, each component its own way: {'; '.join(sorted(ways))}."
    pair = chosen[0]
    local = pair.local if pair.mapped is None else pair.mapped
    rtt = "" if pair.rtt is None else f", {pair.rtt / MILLISECOND:.1f} ms there and back"
    return (
        f"Connected {_way(pair)}: {local.type} {pair.base.address} to "
        f"{pair.remote.type} {pair.remote_address}{rtt}."
    )


def _way(pair: Pair) -> str:
    transport = pair.base.transport.upper()
    if pair.is_direct:
        return f"directly over {transport}"
    if not pair.base.is_relayed:
        return f"over {transport} through the peer's relay"
    if pair.remote.type is _RELAYED:
        return f"over {transport} through both sides' relays ({pair.base.relay} is this side's)"
    return f"over {transport} through the relay {pair.base.relay}"


def _lacking(view: View) -> str:
    """Say what has to be there before anything can be checked."""
    lacking = []
    if not view.has_credentials:
        lacking.append("the peer's username fragment and password have not been given")
    if not view.local:
        more = "no address of this host can be used" if view.is_gathered else "none is found yet"
        lacking.append(f"there is no local candidate ({more})")
    if not view.remote:
        end = ", and has said that it has none" if view.has_all_remote else ""
        lacking.append(f"the peer has told no candidate{end}")
    return "; ".join(lacking)


def _failure(view: View, pairs: Sequence[Pair]) -> str:
    lacking = _lacking(view)
    if lacking:
        return lacking
    local = [each.candidate for each in view.local]
    remote = [each.candidate for each in view.remote]
    if not pairs:
        return (
            f"no candidates that go together: this side has {_kinds(local)}, "
            f"the peer {_kinds(remote)}"
        )
    if any(pair.valid or pair.state is PairState.SUCCEEDED for pair in pairs):
        return view.failure
    unproven = sum(view.drops.get(reason, 0) for reason in _UNPROVEN)
    if unproven:
        return (
            f"the peer is reached, but {_number(unproven, 'message')} did not prove the password: "
            "the two sides have different credentials of each other"
        )
    if any(pair.requests_received for pair in pairs):
        return "the peer's checks arrive here, but none of this side's checks is answered"
    relayed = _has(local, _RELAYED) or _has(remote, _RELAYED)
    here, there = is_symmetric_here(view, pairs), is_symmetric_there(view)
    if not relayed:
        if here and there:
            return (
                "both sides' NATs give each destination another port, so neither can know "
                "where to send, and there is no relay"
            )
        return f"none of {_number(len(pairs), 'pair')} was answered, and there is no relay"
    return f"none of {_number(len(pairs), 'pair')} was answered, not even through a relay"


def _number(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


# Advice. ------------------------------------------------------------------------------------------


def advise(view: View, outcome: Outcome, pairs: Sequence[Pair]) -> Iterator[str]:
    """Say what could be done about it, what helps most first."""
    if outcome is Outcome.CONNECTED:
        yield from _direct_instead(view, pairs)
        return
    if outcome is Outcome.CHECKING and not view.failure:
        return
    yield from _about_credentials(view)
    yield from _about_relays(view, pairs)
    yield from _about_candidates(view)


def _direct_instead(view: View, pairs: Sequence[Pair]) -> Iterator[str]:
    chosen = list(view.selected.values())
    if all(pair.is_direct for pair in chosen) or view.config.policy == "relay":
        return
    direct = [pair for pair in pairs if pair.is_direct]
    if not direct:
        yield "No pair could be direct: see which candidates each side has."
    elif is_symmetric_here(view, pairs) and is_symmetric_there(view):
        yield (
            "Both sides' NATs give each destination another port, so a direct path would take "
            "port prediction; the relay is what works."
        )
    elif not any(pair.valid for pair in direct):
        yield (
            "None of the direct pairs was answered: a NAT or firewall on the way lets nobody in. "
            "natcheck on both sides tells which, and what would help."
        )


def _about_credentials(view: View) -> Iterator[str]:
    unproven = sum(view.drops.get(reason, 0) for reason in _UNPROVEN)
    if unproven:
        yield (
            "Messages came that do not prove the password: check that each side has the other's "
            "username fragment and password of the same offer, the new ones after a restart."
        )
    if not view.has_credentials:
        yield "Give the peer's username fragment and password, which come with its candidates."


def _about_relays(view: View, pairs: Sequence[Pair]) -> Iterator[str]:
    if not pairs and not view.local:
        return
    local = [each.candidate for each in view.local]
    remote = [each.candidate for each in view.remote]
    configured = [server for server in view.servers if server.turn]
    if _has(local, _RELAYED) or _has(remote, _RELAYED):
        if pairs and not any(pair.valid for pair in pairs):
            yield (
                "Not even a relayed pair was answered: see whether the peer can reach anything "
                "over UDP, and whether the relay's policy allows the peer's addresses."
            )
        return
    if not configured:
        both = is_symmetric_here(view, pairs) and is_symmetric_there(view)
        why = "only a relay connects two such NATs" if both else "a relay connects what NATs part"
        yield f"Configure a TURN server on either side: {why}."
    elif view.config.policy == "relay" or view.is_gathered:
        names = ", ".join(server.name for server in configured[:MOST_NAMED])
        reasons = [m.why for m in view.missing if "relayed" in m.what]
        said = f": {reasons[0]}" if reasons else ""
        yield f"No relay was had from {names}{said}. The pairs that need it are missing."


def _about_candidates(view: View) -> Iterator[str]:
    local = [each.candidate for each in view.local]
    remote = [each.candidate for each in view.remote]
    plain = [server for server in view.servers if not server.turn]
    if local and all(c.type is _HOST for c in local) and all(map(_is_private, local)):
        if not view.servers:
            yield (
                "No STUN server is configured, so a peer on another network cannot know where "
                "to send: give at least one."
            )
        elif plain and view.is_gathered:
            names = ", ".join(server.name for server in plain[:MOST_NAMED])
            yield (
                f"None of the servers answered ({names}): UDP seems to be blocked here. "
                "TURN over TCP or TLS (turns:...) passes most such firewalls."
            )
    if remote and all(c.type is _HOST for c in remote) and all(map(_is_private, remote)):
        yield (
            "The peer has told addresses of its own network only: unless it is on this one, it "
            "needs a STUN or TURN server."
        )
    if not remote and view.has_credentials:
        yield "See whether the peer's candidates get here: the signalling has told of none."
    elif not view.has_all_remote:
        yield (
            "The peer has not said that it has told all its candidates: tell the end of them "
            "(add_remote_candidate(None)), so that a failure is known sooner."
        )
