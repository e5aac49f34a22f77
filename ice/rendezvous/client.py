"""A WebSocket to a rendezvous: its protocol's values go in and come out, and it has a clock.

Everything that the server says is its claim, and bounded.  Proxies are used as the environment says
(:func:`proxy_for`).
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import ssl as tls
import time
import urllib.request
from typing import Final
from urllib.parse import SplitResult, urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from ice.rendezvous.clock import ServerClock
from ice.rendezvous.errors import (
    Refused,
    RendezvousError,
    RendezvousLost,
    RendezvousUnreachable,
)
from ice.rendezvous.protocol import (
    MAX_TEXT,
    BadMessage,
    ClientMessage,
    Error,
    ErrorCode,
    Gone,
    Joined,
    Leave,
    Message,
    Peer,
    Time,
    TimeAnswer,
    Unknown,
    Welcome,
    from_server,
)
from ice.rendezvous.unreachable import port_of, why_unreachable, without_password
from stun.errors import UsageError

ATTEMPT_DELAY: Final = 0.25
"""Seconds until a name's next address is tried: RFC 8305 section 8."""
PING: Final = 20.0
"""Seconds between two pings, and those that an answer may take."""
FAREWELL: Final = 1.0
"""Seconds that leaving may take."""
MOST_QUEUED: Final = 16
"""Messages that wait in the WebSocket for whoever receives; beyond that nothing is read."""


class Client:
    """A connection to a rendezvous, from its welcome on.  Made by :meth:`connect`."""

    def __init__(
        self, socket: ClientConnection, url: str, welcome: Welcome, clock: ServerClock
    ) -> None:
        self._socket = socket
        self.url = url
        """Where it is, without a password."""
        self.welcome = welcome
        self.clock = clock

    @classmethod
    async def connect(
        cls,
        url: str,
        *,
        ssl: tls.SSLContext | None = None,
        timeout: float = 10.0,  # noqa: ASYNC109
    ) -> Client:
        """Connect to ``ws://HOST[:PORT]`` or ``wss://HOST[:PORT]`` and wait for the welcome.

        ``ssl``: whom to trust, instead of the system's authorities.  ``timeout``: seconds for all
        of it.  Raises :class:`~ice.rendezvous.errors.RendezvousUnreachable`,
        :class:`~ice.rendezvous.errors.Refused`, and :class:`stun.errors.UsageError` for a URL that
        is none.
        """
        parts = _parts(url)
        proxy = proxy_for(parts)
        try:
            async with asyncio.timeout(timeout):
                return await cls._greeted(url, parts, proxy, ssl)
        except RendezvousError:
            raise
        except TimeoutError:
            raise RendezvousUnreachable(
                f"the rendezvous at {without_password(parts)} does not answer within {timeout:g} "
                "s: a firewall may drop what is sent there, or the address is another one"
            ) from None
        except Exception as error:
            why = why_unreachable(error, parts, proxy)
            if why is None:
                raise
            raise RendezvousUnreachable(why) from error

    @classmethod
    async def _greeted(
        cls, url: str, parts: SplitResult, proxy: str | None, ssl: tls.SSLContext | None
    ) -> Client:
        shown = without_password(parts)
        started = time.monotonic()
        socket = await _dial(url, parts, proxy, ssl)
        try:
            said = from_server(await socket.recv())
            received = time.monotonic()
            if isinstance(said, Error):
                raise Refused(said.code, f"the rendezvous at {shown} refuses: {said.text}")
            if not isinstance(said, Welcome):
                raise BadMessage(ErrorCode.MALFORMED, "it does not greet")
        except BadMessage as error:
            socket.transport.abort()
            kind = "" if error.code is ErrorCode.VERSION else ", but no rendezvous"
            raise RendezvousUnreachable(
                f"what answers at {shown} is a WebSocket{kind}: {error}"
            ) from None
        except BaseException:
            socket.transport.abort()
            raise
        return cls(socket, shown, said, ServerClock(started, received, said.time))

    async def send(self, message: ClientMessage) -> None:
        """Send; in the order of the calls.  Raises :class:`RendezvousLost`."""
        try:
            await self._socket.send(message.encode())
        except ConnectionClosed as error:
            raise self._lost(error) from None

    async def receive(self) -> Joined | Peer | Message | Gone:
        """Return what comes next, once.  May be cancelled, and called again.

        Raises :class:`~ice.rendezvous.errors.Refused` when the server says that it does, and
        :class:`~ice.rendezvous.errors.RendezvousLost`.
        """
        while True:
            try:
                message = from_server(await self._socket.recv())
            except ConnectionClosed as error:
                raise self._lost(error) from None
            except BadMessage as error:
                raise RendezvousLost(
                    f"the rendezvous at {self.url} does not keep to its protocol: {error}"
                ) from None
            match message:
                case TimeAnswer(number, theirs):
                    following = self.clock.answered(number, theirs, time.monotonic())
                    if following is not None:
                        await self._ask_time(following)
                case Error(code, text):
                    raise Refused(code, f"the rendezvous at {self.url} refuses: {text}")
                case Unknown():
                    pass
                case Welcome():
                    raise RendezvousLost(
                        f"the rendezvous at {self.url} does not keep to its protocol: it greets "
                        "twice"
                    )
                case _:
                    return message

    async def measure_clock(self) -> None:
        """Ask for the time, a few times; the answers are taken while :meth:`receive` is awaited."""
        number = self.clock.burst(time.monotonic())
        if number is not None:
            await self._ask_time(number)

    async def _ask_time(self, number: float) -> None:
        # The server may have said why it has closed the connection: receive() is to tell.
        with contextlib.suppress(RendezvousLost):
            await self.send(Time(number))

    async def close(self) -> None:
        """Leave, as far as that takes no longer than a moment."""
        try:
            with contextlib.suppress(ConnectionClosed, TimeoutError):
                async with asyncio.timeout(FAREWELL):
                    await self._socket.send(Leave().encode())
                    await self._socket.close()
        finally:
            self._socket.transport.abort()

    def _lost(self, error: ConnectionClosed) -> RendezvousLost:
        theirs, ours = error.rcvd, error.sent
        if theirs is not None and (ours is None or error.rcvd_then_sent):
            said = "".join(one if one.isprintable() else "?" for one in theirs.reason)
            why = f"has closed the connection ({theirs.code}{': ' if said else ''}{said})"
        elif ours is not None and "keepalive" in ours.reason:
            why = "does not answer any more"
        elif ours is not None and ours.code != 1000:
            why = f"does not keep to the WebSocket protocol ({ours.code}: {ours.reason})"
        else:
            why = "is gone: the connection broke"
        return RendezvousLost(f"the rendezvous at {self.url} {why}")


async def _dial(
    url: str, parts: SplitResult, proxy: str | None, ssl: tls.SSLContext | None
) -> ClientConnection:
    options: dict[str, object] = {}
    if parts.scheme == "wss" and ssl is not None:
        options["ssl"] = ssl
    # A name may have addresses that lead nowhere.  Other event loops do not know this option.
    if not _is_address(parts.hostname or "") and isinstance(
        asyncio.get_running_loop(), asyncio.BaseEventLoop
    ):
        options["happy_eyeballs_delay"] = ATTEMPT_DELAY
    return await connect(
        url,
        # What is sealed does not get shorter, and what is not is short.
        compression=None,
        proxy=proxy,
        user_agent_header="natkit",
        open_timeout=None,
        ping_interval=PING,
        ping_timeout=PING,
        close_timeout=FAREWELL,
        max_size=MAX_TEXT,
        max_queue=MOST_QUEUED,
        **options,  # type: ignore[arg-type]
    )


def _parts(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        # Reading the port checks it.
        good = parts.scheme in ("ws", "wss") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good or parts.fragment:
        raise UsageError(
            "the rendezvous is given as ws://HOST:PORT or, with TLS, wss://HOST:PORT, not as "
            f"{url[:200]!r}"
        )
    return parts


def proxy_for(parts: SplitResult) -> str | None:
    """Return the URL of the proxy that the environment names for a server, or ``None``.

    The environment is what :func:`urllib.request.getproxies` takes for it: variables such as
    ``https_proxy``, or the system's settings.  RFC 6455 section 4.1: those without a setting of
    their own "are encouraged to use a SOCKS5 proxy for WebSocket connections, if available, or
    failing that, to prefer the proxy configured for HTTPS connections over the proxy configured for
    HTTP connections".  A server on this host needs none, whatever is set.
    """
    host = parts.hostname or ""
    if _is_local(host) or urllib.request.proxy_bypass(f"{host}:{port_of(parts)}"):
        return None
    known = urllib.request.getproxies()
    plain = () if parts.scheme == "wss" else ("http",)
    for kind in (parts.scheme, "socks", "https", *plain, "all"):
        proxy = known.get(kind)
        if proxy:
            # The settings of some systems give every kind of proxy this scheme.
            tunnel = kind == "socks" and proxy.startswith("http://")
            return f"socks5h://{proxy.removeprefix('http://')}" if tunnel else proxy
    return None


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_local(host: str) -> bool:
    if _is_address(host):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost" or host.endswith(".localhost")
