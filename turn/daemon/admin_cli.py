"""The commands of ``turnd`` that speak to a running one: sessions, disconnect, credentials, ..."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NoReturn

import click

from stun.errors import StunError
from turn.daemon.admin import LONGEST_TTL, ask, default_path

EXIT_FAILED = 1

socket_option = click.option(
    "--admin-socket",
    "socket",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="The admin socket of the turnd that is meant; else TURND_ADMIN_SOCKET names it.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def fail(error: object) -> NoReturn:
    """Say what is wrong on standard error and end with status 1."""
    click.echo(f"turnd: {error}", err=True)
    sys.exit(EXIT_FAILED)


def asked(socket: Path | None, command: str, **arguments: Any) -> Any:
    """Return what turnd answered, or end with its error."""
    try:
        return ask(socket or default_path(), command, **arguments)
    except StunError as error:
        fail(error)


def _print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2))


@click.command()
@socket_option
@json_option
@click.option("--user", metavar="NAME", help="Only the allocations of this user.")
def sessions(socket: Path | None, as_json: bool, user: str | None) -> None:
    """List the allocations of the running turnd."""
    found = asked(socket, "sessions")
    if user is not None:
        found = [one for one in found if one["user"] == user]
    if as_json:
        _print_json(found)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("SESSION", "USER", "CLIENT", "OVER", "RELAYED", "AGE", "EXPIRES", "SENT", "GOT"):
        right = title in {"AGE", "EXPIRES", "SENT", "GOT"}
        table.add_column(title, justify="right" if right else "left", no_wrap=True)
    for one in found:
        table.add_row(
            one["session"],
            one["user"],
            one["client"],
            one["transport"],
            " ".join(one["relayed"]),
            _seconds(one["age"]),
            _seconds(one["expires_in"]),
            _octets(one["octets_from_client"]),
            _octets(one["octets_to_client"]),
        )
    # Piped somewhere, nothing is cut off at the width of a terminal that is not there.
    console = Console(width=None if sys.stdout.isatty() else 240)
    console.print(table if found else "no allocations", highlight=False)


@click.command()
@socket_option
@click.option("--user", metavar="NAME", help="End every allocation of this user.")
@click.argument("session", required=False)
def disconnect(socket: Path | None, user: str | None, session: str | None) -> None:
    """End the allocation SESSION, or those of a user."""
    if (user is None) == (session is None):
        raise click.UsageError("name a session (see `turnd sessions`) or give --user NAME")
    ended = asked(socket, "disconnect", session=session, user=user)["ended"]
    if not ended:
        fail(f"there is no such {'session' if user is None else 'user with an allocation'}")
    click.echo(f"{ended} allocation{'s' * (ended != 1)} ended")


@click.command(short_help="Mint a time-limited credential.")
@socket_option
@json_option
@click.option(
    "--ttl",
    type=click.IntRange(min=1, max=LONGEST_TTL),
    default=3600,
    metavar="SECONDS",
    help="How long it is good. Default: 3600.",
)
@click.argument("name", default="")
def credentials(socket: Path | None, as_json: bool, ttl: int, name: str) -> None:
    """Mint a time-limited credential, for the user NAME, with the running turnd's first secret."""
    minted = asked(socket, "credentials", user=name, ttl=ttl)
    if as_json:
        _print_json(minted)
        return
    for uri in minted["uris"]:
        click.echo(f"uri       {uri}")
    click.echo(f"username  {minted['username']}")
    click.echo(f"password  {minted['password']}")
    click.echo(f"good for  {_seconds(ttl)}")


@click.command(short_help="Take no new allocations; stop after the last one.")
@socket_option
def drain(socket: Path | None) -> None:
    """Have the running turnd take no new allocations, and stop after the last one has ended."""
    left = asked(socket, "drain")["left"]
    click.echo(f"draining: {left} allocation{'s' * (left != 1)} left")


@click.command(short_help="Read the configuration and certificates again.")
@socket_option
def reload(socket: Path | None) -> None:
    """Have the running turnd read its configuration and certificates again."""
    changed = asked(socket, "reload")["changed"]
    for line in changed or ["nothing has changed"]:
        click.echo(line)


@click.command(short_help="Test a TURN server as its clients meet it.")
@socket_option
@json_option
@click.option("--quick", is_flag=True, help="Only whether turnd runs and serves.")
@click.option(
    "--user",
    "login",
    metavar="NAME:PASSWORD",
    help="The credential for URI; without a URI none is needed.",
)
@click.argument("uri", required=False)
def check(
    socket: Path | None, as_json: bool, quick: bool, login: str | None, uri: str | None
) -> None:
    """Test a TURN server as its clients meet it, and say how to mend what is wrong.

    With a URI (turn:host, turns:host) that server is tested, from wherever this runs; without one
    the turnd of this machine, at all that it listens at.  Ends with status 1 if anything failed.
    """
    import asyncio
    import time

    from turn.daemon.checkup import Finding, Level, Login, check_status, check_uri, worst

    findings: list[Finding] = []

    def show(finding: Finding) -> None:
        findings.append(finding)
        if as_json:
            return
        style = {Level.OK: "green", Level.WARNING: "yellow", Level.FAILED: "red"}[finding.level]
        mark = click.style(f"{finding.level.value:<8}", fg=style)
        click.echo(f"{mark} {finding.subject}: {finding.text}")
        if finding.fix:
            click.echo(f"{'':8} -> {finding.fix}")

    async def examine(uris: list[str], who: Login) -> None:
        for one in uris:
            # From inside, the certificate has findings of its own; the other tests go on.
            async for finding in check_uri(one, who, verify=uri is not None):
                show(finding)

    if uri is None:
        status = asked(socket, "status")
        for finding in check_status(status, now=time.time()):
            show(finding)
        uris, who = status["uris"], Login(**status["probe"])
    elif login is None or ":" not in login:
        raise click.UsageError("give the credential for the URI: --user NAME:PASSWORD")
    else:
        # The name of a time-limited credential has a colon itself, a password made of Base64 none.
        uris, who = [uri], Login(*login.rsplit(":", 1))
    if not quick:
        try:
            asyncio.run(examine(uris, who))
        except StunError as error:
            fail(error)
    if as_json:
        _print_json(
            [
                {"level": one.level, "subject": one.subject, "text": one.text, "fix": one.fix}
                for one in findings
            ]
        )
    sys.exit(EXIT_FAILED if worst(findings) is Level.FAILED else 0)


def _seconds(seconds: float) -> str:
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m"


def _octets(octets: int) -> str:
    size = float(octets)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


COMMANDS: tuple[click.Command, ...] = (
    sessions,
    disconnect,
    credentials,
    drain,
    reload,
    check,
)
