"""Why a server cannot be reached, and what to do: from an exception to a sentence for a person."""

from __future__ import annotations

import errno
import socket
import ssl as tls
from urllib.parse import SplitResult

from websockets.exceptions import (
    ConnectionClosed,
    InvalidHandshake,
    InvalidMessage,
    InvalidProxy,
    InvalidProxyMessage,
    InvalidProxyStatus,
    InvalidStatus,
    InvalidUpgrade,
    InvalidURI,
    ProxyError,
    SecurityError,
)

_DEFAULT_PORTS = {"ws": 80, "wss": 443}


def without_password(parts: SplitResult) -> str:
    """Return a URL as it may be shown."""
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def port_of(parts: SplitResult) -> int:
    """Return the port that a URL means."""
    return parts.port or _DEFAULT_PORTS[parts.scheme]


def why_unreachable(error: BaseException, parts: SplitResult, proxy: str | None) -> str | None:
    """Return the sentence, or ``None`` for an exception that says nothing of the kind.

    ``proxy``: the URL of the one that was to be used.
    """
    url, host, port = without_password(parts), parts.hostname or "", port_of(parts)
    of_proxy = isinstance(error, ProxyError | InvalidProxy | ImportError | OSError | ValueError)
    # What TLS says is about the server, behind the proxy.
    if proxy is not None and of_proxy and not isinstance(error, tls.SSLError):
        return _why_proxy(error, url, proxy)
    if isinstance(error, socket.gaierror):
        return (
            f"the rendezvous at {url} cannot be found: the name {host} has no address "
            f"({error.strerror or error}); check its spelling, and this machine's name server"
        )
    if isinstance(error, tls.SSLCertVerificationError):
        return (
            f"the rendezvous at {url} cannot be trusted: its certificate is not good "
            f"({error.verify_message}); give the authority that signed it, or the name that it is "
            "made out for"
        )
    if isinstance(error, tls.SSLError):
        return (
            f"no TLS with the rendezvous at {url}: {_of_tls(error)}; if it has no certificate, "
            f"it is at ws://{parts.netloc.rpartition('@')[2]}"
        )
    if isinstance(error, InvalidStatus):
        return (
            f"what answers at {url} is no rendezvous: HTTP status {error.response.status_code}"
            + {
                401: "; it wants a user name and a password: ws://USER:PASSWORD@HOST",
                403: "; it does not let this machine in",
                404: "; the path in the URL may be another one",
                502: "; the server behind it is not running",
                503: "; the server is not available for the moment",
            }.get(error.response.status_code, "")
        )
    if isinstance(error, SecurityError):
        return f"what answers at {url} sends elsewhere than may be followed: {_words(error)}"
    if isinstance(error, InvalidMessage | EOFError) or _is_reset(error):
        other = "wss" if parts.scheme == "ws" else "ws"
        return (
            f"what answers at {url} is no WebSocket; check the port {port}, and whether it is "
            f"{other}:// there"
        )
    if isinstance(error, InvalidUpgrade | InvalidHandshake | ConnectionClosed):
        return f"what answers at {url} is no rendezvous: {_words(error)}"
    if isinstance(error, InvalidURI):
        return f"what answers at {url} sends elsewhere, which is no URL: {_words(error)}"
    if isinstance(error, OSError):
        return _why_network(error, url, port)
    return None


def _why_network(error: OSError, url: str, port: int) -> str:
    # A name with several addresses gives one exception for all, with their texts alone.
    text = str(error)
    if _has(error, text, errno.ECONNREFUSED):
        return (
            f"nothing listens at {url}: start rendezvousd there (or turnd --with-rendezvous), or "
            f"give its port instead of {port}; both listen at 8080 unless they are told otherwise"
        )
    if _has(error, text, errno.ENETUNREACH) or _has(error, text, errno.EHOSTUNREACH):
        return f"there is no way to {url}: this machine may have no network ({_words(error)})"
    return f"the rendezvous at {url} cannot be reached: {_words(error)}"


def _why_proxy(error: BaseException, url: str, proxy: str) -> str:
    if isinstance(error, ConnectionRefusedError):
        what = "nothing listens there"
    elif isinstance(error, ImportError):
        what = "it is a SOCKS proxy, for which the package python-socks must be installed"
    elif isinstance(error, InvalidProxyStatus):
        what = f"it answers with HTTP status {error.response.status_code}"
    elif isinstance(error, InvalidProxyMessage):
        what = "what answers there is no HTTP proxy"
    else:
        what = _words(error)
    return (
        f"the rendezvous at {url} cannot be reached through the proxy that the environment names "
        f"(HTTPS_PROXY, ALL_PROXY and the like), {_without_password(proxy)}: {what}; NO_PROXY "
        "makes an exception for a host"
    )


def _without_password(proxy: str) -> str:
    scheme, mark, rest = proxy.rpartition("://")
    return f"{scheme}{mark}{rest.rpartition('@')[2]}"


def _is_reset(error: BaseException) -> bool:
    return isinstance(error, ConnectionResetError | BrokenPipeError)


def _has(error: OSError, text: str, number: int) -> bool:
    return error.errno == number or f"[Errno {number}]" in text


def _of_tls(error: tls.SSLError) -> str:
    reason = error.reason or str(error)
    if reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"):
        return "what answers there does not speak it"
    return reason.lower().replace("_", " ")


def _words(error: BaseException) -> str:
    text = str(error) or type(error).__name__
    return "".join(one if one.isprintable() else "?" for one in text[:300])
