"""``turnd``: the relay server, and the commands for whoever runs it.

Exit codes: 0 served and stopped as told, 1 it could not be served, 2 wrong usage or configuration;
those of the commands are 0 done, 1 not done (``check``: something failed; ``explain-peer``: denied)
and 2 again.
Whatever costs time to load is loaded by the command that needs it: ``--help`` answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from stun.command import run as run_program
from stun.command import show_version, version

if TYPE_CHECKING:
    from turn.daemon.config import Flags
    from turn.daemon.plan import Plan
    from turn.daemon.service import Turnd
    from turn.daemon.settings import Settings

SERVED = 0
DENIED = 1
"""Exit code of ``explain-peer``, as of other commands that find something wanting."""

LIMITS = {
    "allocations": 50_000,
    "allocations_per_user": 200,
    "allocations_per_client": 200,
    "permissions_per_allocation": 64,
    "channels_per_allocation": 64,
    "tcp_connections_per_allocation": 32,
    "octets_per_second_per_user": 12_500_000,
    "octets_per_second_per_client": 12_500_000,
    "packets_per_second_per_user": 25_000,
    "packets_per_second_per_client": 25_000,
    "connections": 10_000,
    "connections_per_client": 200,
    "requests_per_second_per_client": 2_000,
    "unverified_burst": 16_384,
    "unverified_refill": 1_024,
}
"""The keys of ``[limits]`` and their defaults, each with a flag ``--max-...``.  Written out, for
loading the models would make ``--help`` slow; a test compares the two."""

F = TypeVar("F", bound=Callable[..., Any])


class _Turnd(click.Group):
    """The server, with commands beside it."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if self.get_command(ctx, name) is None:
            import difflib

            close = difflib.get_close_matches(name, self.list_commands(ctx), n=1)
            raise click.UsageError(
                f"there is no command {name!r}"
                + (f"; did you mean {close[0]!r}?" if close else "")
                + ("; a configuration is given with --config" if "." in name else ""),
                ctx,
            )
        return super().resolve_command(ctx, args)


# Options that say what the file says. -------------------------------------------------------------

_PATH = click.Path(path_type=Path)

_CONFIGURATION: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("--listen", "listen", {
        "multiple": True, "metavar": "URL",
        "help": "Where clients come to: udp://A:P, tcp, tls or dtls; [v6] in brackets; * is every "
        "address; ?proxy=CIDR for tcp and tls. Default: UDP and TCP 3478 everywhere.",
    }),
    ("--realm", "realm", {"metavar": "NAME", "help": "The realm of the users. Default: natkit."}),
    ("--user", "auth.users", {
        "multiple": True, "metavar": "NAME:PASSWORD",
        "help": "A user. NAME alone: the password is in TURND_PASSWORD or in the file, where `ps` "
        "does not show it.",
    }),
    ("--secret", "auth.secrets", {
        "multiple": True, "metavar": "TEXT",
        "help": "A secret of time-limited credentials (TURN REST).",
    }),
    ("--secret-file", "auth.secrets", {
        "multiple": True, "metavar": "PATH", "help": "The same, the first line of a file.",
    }),
    ("--user-store", "auth.store", {
        "metavar": "URL", "help": "A database of users: sqlite:///PATH or redis://HOST:PORT/N.",
    }),
    ("--relay-address", "relay.addresses", {
        "multiple": True, "metavar": "A[=PUBLIC]",
        "help": "An address to relay from, and what peers see behind a one-to-one NAT.",
    }),
    ("--relay-ports", "relay.ports", {
        "metavar": "LO-HI", "help": "Ports to relay from. Default: 49152-65535.",
    }),
    ("--workers", "workers", {
        "type": int, "metavar": "N",
        "help": "Relay in N processes, one for each processor say. Default: 1.",
    }),
    ("--dataplane", "dataplane", {
        "metavar": "auto|kernel|sockets",
        "help": "Relay in the kernel (Linux 6.6, privileges): where that can be, or not start, or "
        "never. Default: auto.",
    }),
    ("--allow-peer", "peers.allow", {
        "multiple": True, "metavar": "CIDR", "help": "Peers that may be relayed to all the same.",
    }),
    ("--deny-peer", "peers.deny", {
        "multiple": True, "metavar": "CIDR", "help": "Peers that may not be relayed to.",
    }),
    ("--cert", "tls.certificate", {
        "metavar": "PEM", "help": "The certificate chain of TLS and DTLS.",
    }),
    ("--key", "tls.key", {"metavar": "PEM", "help": "Its private key, if not in the same file."}),
    ("--alternate-address", "discovery.alternates", {
        "multiple": True, "metavar": "A",
        "help": "A second address of this machine: NAT behaviour discovery (RFC 5780).",
    }),
    ("--alternate-server", "alternate_servers", {
        "multiple": True, "metavar": "A[:P]", "help": "Send new clients there (300 Try Alternate).",
    }),
    ("--with-rendezvous", "rendezvous", {
        "is_flag": True,
        "help": "Serve a rendezvous as well, where `punch` meets; it hands out credentials for "
        "this relay.",
    }),
    ("--rendezvous-listen", "rendezvous.listen", {
        "multiple": True, "metavar": "URL",
        "help": "Where: ws://A:P, or wss://A:P with --cert. Default: ws://*:8080.",
    }),
    ("--metrics", "metrics.listen", {
        "metavar": "A:P", "help": "Serve Prometheus' metrics over HTTP at /metrics.",
    }),
    ("--admin-socket", "admin.socket", {
        "metavar": "PATH", "help": "The socket of `turnd sessions` and the like; \"\" for none.",
    }),
    ("--log-format", "log.format", {"metavar": "text|json", "help": "Default: text."}),
    ("--log-level", "log.level", {
        "metavar": "LEVEL", "help": "debug, info, warning or error. Default: info.",
    }),
)  # fmt: skip


def _dest(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def _absolute(path: str) -> str:
    return str(Path(path).absolute())


def _config(text: str) -> Callable[[F], F]:
    return click.option("--config", "-c", "path", type=_PATH, metavar="TOML", help=text)


def _configuration(*only: str) -> Callable[[F], F]:
    """Return what adds the options that say what the file says, all or ``only`` some."""

    def add(function: F) -> F:
        for flag, _, options in reversed(_CONFIGURATION):
            if not only or flag in only:
                function = click.option(flag, _dest(flag), **options)(function)
        return _config("The configuration; flags override it.")(function)

    return add


def _limits(function: F) -> F:
    for name, default in reversed(LIMITS.items()):
        function = click.option(
            f"--max-{name.replace('_', '-')}",
            type=int,
            metavar="N",
            help=f"0 for no limit. Default: {default}.",
        )(function)
    return function


def make_flags(given: dict[str, Any]) -> Flags:
    """Return what the command line said, in the shape of the file."""
    from turn.daemon.config import Flags

    flags = Flags()
    for flag, path, _ in _CONFIGURATION:
        value = given.get(_dest(flag))
        if value is None or value == ():
            continue
        keys = tuple(path.split("."))
        match flag:
            case "--user":
                flags.users += value
            case "--listen":
                flags.set(keys, [{"url": url} for url in value], flag)
            case "--secret" | "--secret-file":
                before = flags.table.get("auth", {}).get("secrets", [])
                # A path on a command line starts where the command was given.
                more = value if flag == "--secret" else [{"file": _absolute(v)} for v in value]
                flags.set(keys, [*before, *more], flag)
            case "--with-rendezvous":
                if value:
                    flags.set(keys, {}, flag)
            case "--cert" | "--key":
                flags.set(keys, _absolute(value), flag)
            case "--admin-socket":
                flags.set(keys, _absolute(value) if value else False, flag)
            case _:
                flags.set(keys, list(value) if isinstance(value, tuple) else value, flag)
    if given.get("partial"):
        flags.set(("partial",), True, "--partial")
    for name in LIMITS:
        value = given.get(f"max_{name}")
        if value is not None:
            flags.set(("limits", name), value, f"--max-{name.replace('_', '-')}")
    return flags


class Given:
    """What was given before the command, for the commands that need the configuration."""

    def __init__(self, path: Path | None, given: dict[str, Any]) -> None:
        self.path = path
        self.given = given

    def load(self) -> Settings:
        """Read the configuration; raises :class:`turn.daemon.config.ConfigError`."""
        from turn.daemon.config import load

        return load(self.path, make_flags(self.given))

    def beside(self, path: Path | None, given: dict[str, Any]) -> Given:
        """Return this with what was given behind the command, which goes before."""
        more = {key: value for key, value in given.items() if value not in (None, (), False)}
        return Given(path or self.path, self.given | more)


# Commands. ----------------------------------------------------------------------------------------


@click.group(
    cls=_Turnd,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit code: 0 stopped as told, 1 cannot be served, 2 wrong usage or configuration; of "
    "commands 0 done, 1 not done (check: something failed; explain-peer: denied), 2 wrong usage.",
)
@_configuration()
@click.option("--partial", is_flag=True, help="Serve even when some listeners cannot be had.")
@_limits
@click.option(
    "--check-config",
    is_flag=True,
    help="Show the configuration as it would be in force, secrets hidden, and end.",
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=show_version("turnd"),
    help="Print the version.",
)  # fmt: skip
@click.pass_context
def turnd(ctx: click.Context, /, *, path: Path | None, check_config: bool, **given: Any) -> int:
    """Run a TURN server (RFC 8656).

    With nothing configured it serves UDP and TCP on port 3478 of every address of this machine, for
    one user that it makes up and prints.
    """
    ctx.obj = Given(path, given)
    if ctx.invoked_subcommand is not None:
        if check_config:
            raise click.UsageError("--check-config stands alone, without a command")
        if ctx.invoked_subcommand in {command.name for command in COMMANDS}:
            _know_socket(ctx, ctx.obj)
        return SERVED
    return _check_config(ctx.obj) if check_config else _serve(ctx.obj)


def _serve(given: Given) -> int:
    import asyncio

    from turn.aio import new_event_loop
    from turn.daemon.capabilities import take_permitted
    from turn.daemon.service import Turnd

    take_permitted()

    async def serve() -> None:
        running = kind(load, config=given.path, on_ready=_announce, version=version())
        await running.run()

    read = [given.load()]

    def load() -> Settings:
        # Not twice to begin with: a configuration may come through a pipe.
        return read.pop() if read else given.load()

    kind, loop = Turnd, new_event_loop
    if read[0].workers > 1:
        from turn.daemon.workers.supervisor import Supervisor

        # It relays nothing: the loop that every program has does for it.
        kind, loop = Supervisor, asyncio.new_event_loop
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(serve())
    return SERVED


def _announce(running: Turnd) -> bool:
    """Say on standard output where turnd serves, where somebody reads it or must."""
    from turn.daemon.announce import announce

    if running.made_up is None and not sys.stdout.isatty():
        return False
    announce(
        _console(),
        running.plan,
        list(running.serving.values()),
        made_up=running.made_up,
        names=running.certificate_names(),
        rendezvous=_rendezvous(running.settings),
        dataplane=str(running.forwarding),
    )
    sys.stdout.flush()
    return True


def _rendezvous(settings: Settings) -> list[str]:
    wanted = settings.rendezvous
    return [] if wanted is None else [str(place) for place in wanted.listen]


def _console() -> Any:
    from rich.console import Console

    return Console()


def _check_config(given: Given) -> int:
    from turn.daemon.addresses import local_addresses
    from turn.daemon.announce import what_it_relays
    from turn.daemon.config import effective
    from turn.daemon.forwarding import would_relay
    from turn.daemon.plan import make_plan

    settings = given.load()
    plan = make_plan(settings, local_addresses())
    click.echo(effective(settings))
    how = would_relay(settings.dataplane if settings.workers == 1 else "sockets")
    for line in (*_would_listen(plan), what_it_relays(plan), how):
        click.echo(f"# {line}")
    if settings.rendezvous is not None:
        click.echo(f"# rendezvous at {settings.rendezvous}")
    for warning in plan.warnings:
        click.echo(f"# warning: {warning}")
    if settings.tls is not None:
        from turn.daemon.certificate import Certificate

        click.echo(f"# certificate: {Certificate(settings)}")
    return SERVED


def _would_listen(plan: Plan) -> list[str]:
    lines: dict[str, list[str]] = {}
    for at in plan.config.listeners:
        kind = at.transport.value + (
            {"UDP": " and DTLS", "TCP": " and TLS"}[at.transport.value] if at.detect else ""
        )
        lines.setdefault(kind, []).append(str(at.local))
    return [f"serves {kind} at {', '.join(places)}" for kind, places in lines.items()]


@turnd.command("explain-peer", short_help="Say whether clients may relay to ADDRESS, and why.")
@_configuration("--listen", "--relay-address", "--allow-peer", "--deny-peer")
@click.argument("address")
@click.pass_obj
def explain_peer(obj: Given, /, *, address: str, path: Path | None, **given: Any) -> int:
    """Say whether clients may relay to ADDRESS, by which rule, and how to change it.

    The configuration is read as `turnd` would read it now; a running one is not asked.  Ends with
    status 0 if they may, 1 if they may not.
    """
    import ipaddress

    from turn.daemon.addresses import local_addresses
    from turn.daemon.plan import make_plan

    host = address.strip().removeprefix("[").removesuffix("]")
    try:
        ipaddress.ip_address(host)
    except ValueError:
        raise click.UsageError(
            f"{address!r} is not an IP address; give one as 203.0.113.7 or 2001:db8::7, without a "
            "port (names are not looked up: a client asks for addresses)"
        ) from None
    settings = obj.beside(path, given).load()
    policy = make_plan(settings, local_addresses()).config.policy
    for line in policy.explain(host):
        click.echo(line)
    return SERVED if policy.check(host).allowed else DENIED


@turnd.group()
def users() -> None:
    """Add, remove and list the users of a database."""


_STORE = click.option(
    "--user-store",
    metavar="URL",
    help="sqlite:///PATH or redis://HOST:PORT/N. Default: as the configuration says.",
)
_CONFIG = _config("The configuration that names the database and the realm.")
_REALM = click.option(
    "--realm", metavar="NAME", help="The realm of the users. Default: as configured, or natkit."
)


def _table(obj: Given, path: Path | None, given: dict[str, Any]) -> Any:
    from turn.users import open_table

    settings = obj.beside(path, given).load()
    if settings.auth.store is None:
        raise click.UsageError(
            "there is no database: name one with --user-store sqlite:///PATH (or redis://...), or "
            "store in [auth]"
        )
    return open_table(settings.auth.store, settings.realm)


@users.command("add")
@_CONFIG
@_STORE
@_REALM
@click.option("--keys-only", is_flag=True, help="Store the keys of the password, not itself.")
@click.option("--replace", is_flag=True, help="Change the password of a user who is there.")
@click.argument("name")
@click.pass_obj
def users_add(
    obj: Given, /, *, name: str, keys_only: bool, replace: bool, path: Path | None, **given: Any
) -> int:
    """Add the user NAME.  The password comes from TURND_PASSWORD, standard input or a prompt."""
    password = os.environ.get("TURND_PASSWORD") or (
        click.prompt("password", hide_input=True, confirmation_prompt=True, err=True)
        if sys.stdin.isatty()
        else sys.stdin.readline().rstrip("\r\n")
    )
    if not password:
        raise click.UsageError("the password is empty")
    table = _table(obj, path, given)
    try:
        table.add(name, password, keys_only=keys_only, replace=replace)
    finally:
        table.close()
    click.echo(f"{name} may relay from now on")
    return SERVED


@users.command("remove")
@_CONFIG
@_STORE
@_REALM
@click.argument("name")
@click.pass_obj
def users_remove(obj: Given, /, *, name: str, path: Path | None, **given: Any) -> int:
    """Remove the user NAME.  Allocations that there are go on until `turnd disconnect --user`."""
    table = _table(obj, path, given)
    try:
        removed = table.remove(name)
    finally:
        table.close()
    if not removed:
        raise click.ClickException(f"there is no user {name!r}")
    click.echo(f"{name} is removed")
    return SERVED


@users.command("list")
@_CONFIG
@_STORE
@_REALM
@click.pass_obj
def users_list(obj: Given, /, *, path: Path | None, **given: Any) -> int:
    """List the users."""
    table = _table(obj, path, given)
    try:
        for name in table.names():
            click.echo(name)
    finally:
        table.close()
    return SERVED


# Commands that speak to a running turnd. ----------------------------------------------------------

from turn.daemon.admin_cli import COMMANDS  # noqa: E402  (beside the commands that are here)

for _command in COMMANDS:
    turnd.add_command(_command)


def _know_socket(ctx: click.Context, given: Given) -> None:
    """Let those commands find the admin socket that the options before them name."""
    socket = given.given.get("admin_socket")
    if socket is None and given.path is not None:
        from turn.daemon.admin import Signpost, default_path

        # The file may name another one since turnd has read it, or none.
        socket = Signpost(given.path).follow(given.load().admin.socket or default_path())
    if socket:
        ctx.default_map = {str(command.name): {"socket": str(socket)} for command in COMMANDS}


# The program. -------------------------------------------------------------------------------------


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run ``turnd`` and exit with its code."""
    sys.exit(run_command(args))


def run_command(args: Sequence[str] | None = None) -> int:
    """Run ``turnd`` with these arguments, by default the program's; return its exit code."""
    return run_program(turnd, "turnd", args)


if __name__ == "__main__":
    main()
