"""``rendezvousd``: where two programs meet before they have a connection.

Exit codes: 0 served and stopped as told, 1 it could not be served, 2 wrong usage.
Whatever costs time to load is loaded when it is needed: ``--help`` answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

import click

from stun.command import run as run_program
from stun.command import show_version, version

if TYPE_CHECKING:
    from ice.rendezvous.access import Minter
    from ice.rendezvous.daemon import Settings
    from stun.sansio import Address

SERVED = 0

DEFAULT_LISTEN: Final = "ws://*:8080"
DEFAULTS: Final = {"wait": 3600, "ttl": 86400, "connections": 20_000, "per_client": 200}
"""Written out, for loading the modules would make ``--help`` slow; a test compares."""

T = TypeVar("T")

_PATH = click.Path(path_type=Path, dir_okay=False)


@click.command(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit code: 0 stopped as told, 1 cannot be served, 2 wrong usage.",
)
@click.option(
    "--listen",
    multiple=True,
    metavar="URL",
    help="Where clients come to: ws://A:P, or wss://A:P with --cert; [v6] in brackets; * is every "
    f"address.  Default: {DEFAULT_LISTEN}, or wss://*:443 with --cert.",
)
@click.option("--cert", type=_PATH, metavar="PEM", help="The certificate chain of wss://.")
@click.option("--key", type=_PATH, metavar="PEM", help="Its private key, if not in the same file.")
@click.option(
    "--turn-url",
    multiple=True,
    metavar="URI",
    help="A relay that clients are told of, as turn:turn.example.org; needs the secret.",
)
@click.option(
    "--turn-secret",
    metavar="TEXT",
    envvar="RENDEZVOUSD_TURN_SECRET",
    help="What turnd has as --secret (coturn: static-auth-secret).  `ps` shows it: better in the "
    "variable RENDEZVOUSD_TURN_SECRET, or in a file.",
)
@click.option(
    "--turn-secret-file", type=_PATH, metavar="PATH", help="The same, the first line of a file."
)
@click.option(
    "--turn-ttl",
    type=click.IntRange(60, 31 * 86400),
    default=DEFAULTS["ttl"],
    show_default=True,
    metavar="SECONDS",
    help="How long a credential for the relay is good.",
)
@click.option(
    "--stun", multiple=True, metavar="URI", help="A STUN server that clients are told of."
)
@click.option(
    "--redis",
    metavar="URL",
    envvar="RENDEZVOUSD_REDIS",
    help="Share the names with other rendezvousd: redis://HOST:PORT/N.",
)
@click.option(
    "--proxy",
    multiple=True,
    metavar="CIDR",
    help="HTTP proxies whose X-Forwarded-For is believed.",
)
@click.option(
    "--wait",
    type=click.IntRange(1, 7 * 86400),
    default=DEFAULTS["wait"],
    show_default=True,
    metavar="SECONDS",
    help="How long a client may wait for its peer.",
)
@click.option(
    "--max-connections",
    type=click.IntRange(min=0),
    default=DEFAULTS["connections"],
    show_default=True,
    metavar="N",
    help="Of all clients; 0 for no limit.",
)
@click.option(
    "--max-connections-per-client",
    type=click.IntRange(min=0),
    default=DEFAULTS["per_client"],
    show_default=True,
    metavar="N",
    help="Of one IPv4 address or IPv6 /64; 0 for no limit.",
)
@click.option("--metrics", metavar="A:P", help="Serve Prometheus' metrics over HTTP at /metrics.")
@click.option(
    "--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False,
    callback=show_version("rendezvousd"), help="Print the version.",
)  # fmt: skip
def rendezvousd(**given: Any) -> int:
    """Run a rendezvous: programs that name the same code word meet here, by WebSocket.

    It reads nothing of what they say to each other: that is encrypted with keys that they make of
    the code word.  It tells them where they come from, and with --turn-url which relay to use.
    """
    import asyncio

    from ice.rendezvous.daemon import Rendezvousd

    settings = make_settings(given)

    async def serve() -> None:
        await Rendezvousd(settings, version=version()).run()

    asyncio.run(serve())
    return SERVED


def make_settings(given: dict[str, Any]) -> Settings:
    """Return what the command line said.  Raises ``click.UsageError``."""
    from ice.rendezvous.daemon import Settings
    from ice.rendezvous.places import Place, by_address
    from ice.rendezvous.terms import Terms
    from stun.sansio import SECOND

    cert, key = given["cert"], given["key"]
    if key is not None and cert is None:
        raise click.UsageError("--key belongs to a certificate: give it with --cert PEM")
    urls = given["listen"] or (DEFAULT_LISTEN if cert is None else "wss://*:443",)
    places = tuple(_usage("--listen", Place.parse, url) for url in urls)
    _usage("--listen", by_address, places)
    for place in places:
        if place.secure and cert is None:
            raise click.UsageError(
                f"--listen {place} needs a certificate: --cert PEM (and --key PEM)"
            )
    metrics = given["metrics"]
    return Settings(
        listen=places,
        certificate=cert,
        key=key,
        minter=_minter(given),
        redis=given["redis"] or None,
        proxies=tuple(_usage("--proxy", _network, one) for one in given["proxy"]),
        metrics=None if metrics is None else _usage("--metrics", _address, metrics),
        terms=Terms(
            wait=given["wait"] * SECOND,
            connections=given["max_connections"],
            connections_per_client=given["max_connections_per_client"],
        ),
        log_format=given["log_format"],
        log_level=given["log_level"],
    )


def _minter(given: dict[str, Any]) -> Minter:
    from ice.rendezvous.access import Minter

    urls, secret, path = given["turn_url"], given["turn_secret"], given["turn_secret_file"]
    for flag, schemes, uris in (
        ("--turn-url", ("turn:", "turns:"), urls),
        ("--stun", ("stun:", "stuns:"), given["stun"]),
    ):
        for uri in uris:
            _usage(flag, _stun_uri, uri)
            if not uri.lower().startswith(schemes):
                raise click.UsageError(f"{flag} {uri}: it begins with {' or '.join(schemes)}")
    if path is not None:
        if secret:
            raise click.UsageError("--turn-secret and --turn-secret-file: give one of them")
        secret = _first_line(path)
    if urls and not secret:
        raise click.UsageError(
            "--turn-url needs the secret that the relay shares with this rendezvous: "
            "--turn-secret-file PATH, the same text as turnd --secret or coturn's "
            "static-auth-secret"
        )
    if secret and not urls:
        raise click.UsageError(
            "there is a secret and no relay that has it: give its URI with --turn-url "
            "turn:HOST (turnd --with-rendezvous does both by itself)"
        )
    return Minter(secret or "", tuple(urls), tuple(given["stun"]), given["turn_ttl"])


def _usage(flag: str, parse: Callable[[Any], T], value: Any) -> T:
    from stun.errors import StunError

    try:
        return parse(value)
    except (StunError, ValueError) as error:
        raise click.UsageError(f"{flag}: {error}") from None


def _stun_uri(text: str) -> object:
    from stun.uri import parse

    return parse(text)


def _network(text: str) -> str:
    import ipaddress

    return str(ipaddress.ip_network(text))


def _address(text: str) -> Address:
    import ipaddress

    from stun.sansio import Address

    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (colon and port.isascii() and port.isdecimal() and 0 < int(port[:6]) < 65536):
        raise ValueError(f"{text!r} is not ADDRESS:PORT, as 127.0.0.1:9642 or [::1]:9642")
    return Address(str(ipaddress.ip_address(host)), int(port))


def _first_line(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            line = file.readline().rstrip("\r\n")
    except OSError as error:
        raise click.UsageError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise click.UsageError(f"{path} is not UTF-8") from None
    if not line:
        raise click.UsageError(f"{path}: its first line is empty, which is no secret")
    return line


# The program. -------------------------------------------------------------------------------------


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run ``rendezvousd`` and exit with its code."""
    sys.exit(run_command(args))


def run_command(args: Sequence[str] | None = None) -> int:
    """Run ``rendezvousd`` with these arguments, by default the program's; return its exit code."""
    return run_program(rendezvousd, "rendezvousd", args)


if __name__ == "__main__":
    main()
