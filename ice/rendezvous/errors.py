"""What can go wrong on the way to the peer: each error says what happened and what to do."""

from __future__ import annotations

from ice.errors import IceError


class RendezvousError(IceError):
    """The root of what can go wrong at a rendezvous.  ``code`` is stable, for programs."""

    code = "rendezvous"


class RendezvousUnreachable(RendezvousError):
    """The server cannot be reached, or what answers is no rendezvous."""

    code = "unreachable"


class RendezvousLost(RendezvousError):
    """The connection to the server is gone."""

    code = "lost"


class Refused(RendezvousError):
    """The server refused: ``code`` as in the protocol (:mod:`ice.rendezvous.protocol`)."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class PeerGone(RendezvousError):
    """The peer has left the rendezvous."""

    code = "peer-gone"


class WrongCode(RendezvousError):
    """The peer does not have the same code word: it was mistyped, or somebody guessed."""

    code = "wrong-code"


class Tampered(RendezvousError):
    """A message was changed, repeated or left out on its way, after the peer was proved."""

    code = "tampered"


class OtherVersion(RendezvousError):
    """The peer's program is of a version with which this one cannot speak."""

    code = "peer-version"


class BadPeer(RendezvousError):
    """The peer, which has the code, sent what is no message."""

    code = "bad-peer"
