"""``natcheck``: which NAT is here, and whom can I connect to.

Exit codes: 0 classified, 1 inconclusive or no server reachable, 2 wrong usage, 130 interrupted.
Whatever costs time to load is loaded by the command that needs it: ``--help`` answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from stun.command import run as run_program
from stun.command import show_version

if TYPE_CHECKING:
    from rich.console import Console

    from nattype.report import Report
    from nattype.trace import Traced

CLASSIFIED, INCONCLUSIVE = 0, 1
"""Exit codes; the others are :mod:`stun.command`'s."""

_PORT = click.IntRange(1, 65535)


class _Natcheck(click.Group):
    """The diagnosis, with commands beside it: a stray word is most likely meant as a server."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if self.get_command(ctx, name) is None:
            raise click.UsageError(
                f"there is no command {name!r}. To ask a STUN server of your own: "
                f"natcheck --server {name}",
                ctx,
            )
        return super().resolve_command(ctx, args)


def _show_schema(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        import json

        from nattype.jsonform import json_schema

        click.echo(json.dumps(json_schema(), indent=2))
        ctx.exit()


@click.group(
    cls=_Natcheck,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit code: 0 classified, 1 inconclusive or no server reachable, 2 wrong usage.",
)
@click.option(
    "--server",
    "servers",
    metavar="HOST[:PORT]",
    multiple=True,
    help="Ask this STUN server; may be given several times. Two addresses (RFC 5780) tell all.",
)
@click.option("--udp-only", is_flag=True, help="Test UDP only.")
@click.option("--tcp-only", is_flag=True, help="Test TCP only.")
@click.option("-4", "ipv4", is_flag=True, help="Test IPv4 only.")
@click.option("-6", "ipv6", is_flag=True, help="Test IPv6 only.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("--lifetime", is_flag=True, help="Measure how long idle mappings live: minutes.")
@click.option(
    "--timeout",
    metavar="S",
    type=click.FloatRange(min=0, min_open=True),
    help="Give up after this many seconds and report what is known.",
)
@click.option("--explain", is_flag=True, help="Show what each test did, why, and its RFC section.")
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=show_version("natcheck"),
    help="Print the version.",
)  # fmt: skip
@click.option(
    "--json-schema", is_flag=True, is_eager=True, expose_value=False, callback=_show_schema,
    help="Print the JSON Schema of --json.",
)  # fmt: skip
@click.pass_context
def natcheck(
    ctx: click.Context,
    *,
    servers: tuple[str, ...],
    udp_only: bool,
    tcp_only: bool,
    ipv4: bool,
    ipv6: bool,
    as_json: bool,
    lifetime: bool,
    timeout: float | None,
    explain: bool,
) -> int:
    """Find out which NAT this host is behind, and whom it can connect to, over UDP and TCP."""
    for first, second, both in (
        (udp_only, tcp_only, "--udp-only and --tcp-only"),
        (ipv4, ipv6, "-4 and -6"),
        (as_json, explain, "--json and --explain"),
        (lifetime, tcp_only, "--lifetime (which is of UDP) and --tcp-only"),
    ):
        if first and second:
            raise click.UsageError(f"{both} exclude each other: give one of them, or none.")
    if ctx.invoked_subcommand is not None:
        ctx.obj = {"json": as_json}
        return CLASSIFIED
    options: dict[str, Any] = {
        "family": "ipv4" if ipv4 else "ipv6" if ipv6 else None,
        "udp": not tcp_only,
        "tcp": not udp_only,
        "lifetime": lifetime,
    }
    if timeout is not None:
        options["timeout"] = timeout
    packets: list[Traced] = []
    if explain:
        options["on_packet"] = packets.append
    report = _diagnose(servers, options)
    if as_json:
        from nattype.jsonform import dumps

        click.echo(dumps(report))
    else:
        _show(lambda console: _render(report, console, packets if explain else None))
    return CLASSIFIED if report.conclusive else INCONCLUSIVE


def _diagnose(servers: Sequence[str], options: dict[str, Any]) -> Report:
    import nattype
    from stun.errors import StunError, UsageError

    try:
        with _progress() as on_progress:
            return nattype.discover(servers or None, on_progress=on_progress, **options)
    except UsageError as error:
        raise click.UsageError(f"{error}") from None
    except (StunError, OSError) as error:
        raise click.ClickException(
            f"the diagnosis could not be made: {error}. "
            "Check the network and the server's name, or ask another: natcheck --server HOST."
        ) from None


@contextmanager
def _progress() -> Iterator[Callable[[object], None] | None]:
    """Say on a terminal, at stderr, what is being done; say nothing into a pipe."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console

    with Console(stderr=True).status("asking the servers") as status:
        yield lambda progress: status.update(str(progress))


def _render(report: Report, console: Console, packets: list[Traced] | None) -> None:
    from nattype.render import render

    render(report, console, evidence=packets is None)
    if packets is not None:
        from nattype.explain import explain

        console.print()
        explain(report, console, packets)


def _show(draw: Callable[[Console], None]) -> None:
    """Draw on the terminal, or write plain text where stdout is none."""
    if sys.stdout.isatty():
        from rich.console import Console

        draw(Console())
    else:
        from nattype.render import plain

        click.echo(plain(draw), nl=False)


@natcheck.command()
@click.argument("first", metavar="A.JSON", type=click.Path(path_type=Path, allow_dash=True))
@click.argument("second", metavar="B.JSON", type=click.Path(path_type=Path, allow_dash=True))
@click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")
@click.pass_obj
def compare(obj: dict[str, bool], first: Path, second: Path, as_json: bool) -> int:
    """Tell whether and how two people can connect.

    A.JSON and B.JSON are their reports, made with natcheck --json; - stands for standard input.
    """
    from nattype import peers
    from nattype.report import Reach

    comparison = peers.compare(_read(first), _read(second))
    if as_json or obj["json"]:
        import json
        from dataclasses import asdict

        click.echo(json.dumps({"schema": 1} | asdict(comparison), indent=2))
    else:
        from nattype.render import render_comparison

        _show(lambda console: render_comparison(comparison, console))
    return INCONCLUSIVE if comparison.best is Reach.UNKNOWN else CLASSIFIED


def _read(path: Path) -> Report:
    from nattype.jsonform import ReportFormatError, loads

    try:
        text = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
        return loads(text)
    except OSError as error:
        raise click.UsageError(f"cannot read {path}: {error.strerror}.") from None
    except ReportFormatError as error:
        raise click.UsageError(
            f"{path} is no report of natcheck: {error}. Make one with: natcheck --json > {path}"
        ) from None


@natcheck.command()
@click.option(
    "--address",
    "addresses",
    metavar="A",
    multiple=True,
    help="An address of this machine to serve at; two of a family give RFC 5780. Default: every.",
)
@click.option(
    "--port", metavar="PORT", type=_PORT, default=3478, show_default=True, help="The first port."
)
@click.option(
    "--alternate-port", metavar="PORT", type=_PORT, help="The second port; by default the next one."
)
@click.option(
    "--advertise",
    metavar="LOCAL=PUBLIC",
    multiple=True,
    help="Behind a one-to-one NAT: what clients see in place of a local address.",
)
@click.option("--no-connect-back", is_flag=True, help="Do not dial clients for their TCP tests.")
@click.option(
    "--certificate", metavar="PEM", type=click.Path(path_type=Path), help="Serve TLS as well."
)
@click.option(
    "--private-key", metavar="PEM", type=click.Path(path_type=Path), help="Its key, if apart."
)
@click.option(
    "--tls-port",
    metavar="PORT",
    type=_PORT,
    default=5349,
    show_default=True,
    help="The first TLS port.",
)
def serve(
    *,
    addresses: tuple[str, ...],
    port: int,
    alternate_port: int | None,
    advertise: tuple[str, ...],
    no_connect_back: bool,
    certificate: Path | None,
    private_key: Path | None,
    tls_port: int,
) -> int:
    """Run a STUN server with all that natcheck needs.

    That is RFC 5780 over UDP and TCP (two addresses, two ports each), and connecting back over TCP.
    """
    from nattype.serve import run

    pairs = [text.partition("=") for text in advertise]
    for local, equals, public in pairs:
        if not (local and equals and public):
            raise click.UsageError(
                f"--advertise {local}{equals}{public}: give the local and the public address, as "
                "--advertise 10.0.0.5=203.0.113.5"
            )
    return run(
        addresses,
        port,
        alternate_port,
        advertise={local: public for local, _, public in pairs},
        connect_back=not no_connect_back,
        certificate=certificate,
        private_key=private_key,
        tls_port=tls_port,
    )


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run ``natcheck`` and exit with its code."""
    sys.exit(run_command(args))


def run_command(args: Sequence[str] | None = None) -> int:
    """Run ``natcheck`` with these arguments, by default the program's; return its exit code."""
    return run_program(natcheck, "natcheck", args)


if __name__ == "__main__":
    main()
