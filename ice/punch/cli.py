"""``punch``: two people, whatever NATs they are behind, one command each, and a connection.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
Whatever costs time to load is loaded by the command that needs it: ``--help`` answers at once.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from stun.command import run as run_program
from stun.command import show_version

if TYPE_CHECKING:
    from ice.punch.link import Connect, Stream, Work
    from ice.punch.output import Output

_PORT = re.compile(r"(?:(?P<host>\[[^]]+\]|[^:\[\]]*):)?(?P<port>[0-9]{1,5})")
F = TypeVar("F", bound=Callable[..., Any])


class _Punch(click.Group):
    """The commands; a stray word is most likely one of them, mistyped."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if self.get_command(ctx, name) is None:
            import difflib

            close = difflib.get_close_matches(name, self.list_commands(ctx), n=1)
            guess = f"; did you mean {close[0]!r}?" if close else ""
            raise click.UsageError(f"there is no command {name!r}{guess}", ctx)
        return super().resolve_command(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return the commands in the order in which they are explained."""
        return list(self.commands)


def _show_schema(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        import json

        from ice.punch.events import json_schema

        click.echo(json.dumps(json_schema(), indent=2))
        ctx.exit()


@click.group(
    cls=_Punch,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted.",
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=show_version("punch"),
    help="Print the version.",
)  # fmt: skip
@click.option(
    "--json-schema", is_flag=True, is_eager=True, expose_value=False, callback=_show_schema,
    help="Print the JSON Schema of --json.",
)  # fmt: skip
def punch() -> None:
    """Connect two machines, whatever NATs stand between them, by one command on each.

    The first side prints a code and the command that the other side has to type. Octets flow
    through a relay at once, and directly as soon as the network allows; they are encrypted from end
    to end.

    Both sides need the same rendezvous: run `turnd --with-rendezvous` on any machine that both can
    reach, and give its URL with --rendezvous or in PUNCH_RENDEZVOUS.
    """


_OPTIONS = (
    click.option(
        "--rendezvous", metavar="URL", envvar="PUNCH_RENDEZVOUS", show_envvar=True,
        help="Where the two sides meet: ws://HOST:8080 or wss://HOST.",
    ),
    click.option("--no-relay", is_flag=True, help="Connect directly or not at all."),
    click.option("--relay-only", is_flag=True, help="Stay on the relay: the peer sees no address."),
    click.option("--tcp-only", is_flag=True, help="Let nothing but TCP leave this host."),
    click.option("--udp-only", is_flag=True, help="Let nothing but UDP leave this host."),
    click.option("--birthday", is_flag=True, help="Allow probing thousands of ports."),
    click.option("--json", "as_json", is_flag=True, help="Write events as JSON, one a line."),
    click.option("-q", "--quiet", is_flag=True, help="Write nothing but the code and errors."),
    click.option(
        "-v", "--verbose", "--explain", "verbose", is_flag=True,
        help="Tell each attempt, and if there is no way, all that is known of why.",
    ),
)  # fmt: skip


def _common(function: F) -> F:
    """Give a command the options of all."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def _code_option(text: str) -> Callable[[F], F]:
    return click.option("--code", metavar="CODE", help=text)


@punch.command()
@_code_option("NAME-SECRET, agreed upon beforehand. Default: a code that is good once is made.")
@_common
def listen(*, code: str | None, **options: Any) -> int:
    """Join standard input and output to those of `punch connect`."""
    return _join(code, "punch connect {code}", options)


@punch.command()
@click.argument("code")
@_common
def connect(*, code: str, **options: Any) -> int:
    """Join standard input and output to those of `punch listen`."""
    return _join(code, "punch listen --code {code}", options)


def _join(code: str | None, command: str, options: dict[str, Any]) -> int:
    def work(output: Output) -> Work:
        from ice.punch.pipe import join

        async def joined(stream: Stream) -> None:
            await join(stream, output.traffic, _standard(0), _standard(1))

        return joined

    return _run(code, command, work, options)


@punch.command()
@click.argument(
    "files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@_code_option("The code that `punch recv` has printed, or NAME-SECRET. Default: one is made.")
@_common
def send(*, files: tuple[Path, ...], code: str | None, **options: Any) -> int:
    """Send files and directories to `punch recv`."""
    from ice.punch.tree import Missing, find

    try:
        entries = find(files)
    except Missing as error:
        raise click.UsageError(str(error)) from None

    def work(output: Output) -> Work:
        from ice.punch.sending import send_all

        async def sent(stream: Stream) -> None:
            await send_all(stream, entries, output)

        return sent

    return _run(code, "punch recv {code}", work, options)


@punch.command()
@click.argument("code", required=False)
@click.option(
    "-d", "--directory", metavar="DIR", default=Path(), type=click.Path(path_type=Path),
    help="Where to. Default: here.",
)  # fmt: skip
@click.option("-f", "--force", is_flag=True, help="Replace files that exist and differ.")
@click.option("--hidden", is_flag=True, help="Take names that begin with a dot, too.")
@_common
def recv(*, code: str | None, directory: Path, force: bool, hidden: bool, **options: Any) -> int:
    """Receive what `punch send` sends.

    What was interrupted goes on where it ended, in a later run as well.
    """
    if not directory.is_dir():
        raise click.UsageError(f"{directory} is no directory.")

    def work(output: Output) -> Work:
        from ice.punch.receiving import receive_all

        async def received(stream: Stream) -> None:
            await receive_all(stream, directory, output, force=force, hidden=hidden)

        return received

    return _run(code, "punch send FILE --code {code}", work, options)


@punch.command()
@click.argument("local", metavar="[ADDRESS:]LOCAL_PORT")
@click.argument("code", required=False)
@_common
def forward(*, local: str, code: str | None, **options: Any) -> int:
    """Open a port here; connections to it come out at the port of `punch expose`.

    The port is open to this host alone unless an address is given; * is every one.
    """
    host, port = _endpoint(local, "127.0.0.1", least=0)

    def work(output: Output) -> Work:
        from ice.punch import events
        from ice.punch.forward import forward as run
        from ice.punch.forward import listening

        server = listening("" if host == "*" else host, port)
        output.tell(events.Listening(*server.getsockname()[:2]))

        async def forwarded(stream: Stream) -> None:
            await run(stream, output, server)

        return forwarded

    return _run(code, "punch expose PORT {code}", work, options)


@punch.command()
@click.argument("target", metavar="[HOST:]PORT")
@click.argument("code", required=False)
@_common
def expose(*, target: str, code: str | None, **options: Any) -> int:
    """Let `punch forward` reach a TCP port of this host, and nothing else."""
    host, port = _endpoint(target, "localhost", least=1)

    def work(output: Output) -> Work:
        from ice.punch.forward import expose as run

        async def exposed(stream: Stream) -> None:
            await run(stream, output, host, port)

        return exposed

    return _run(code, "punch forward LOCAL_PORT {code}", work, options)


def _endpoint(text: str, default: str, *, least: int) -> tuple[str, int]:
    found = _PORT.fullmatch(text)
    if found is None or not least <= int(found["port"]) <= 65535:
        raise click.UsageError(f"{text!r} is no port and no HOST:PORT ([ADDRESS]:PORT for IPv6).")
    return (found["host"] or default).strip("[]"), int(found["port"])


def _standard(fd: int) -> int | None:
    """Return a descriptor of standard input or output, or None: the shell has closed it."""
    return None if (sys.stdin, sys.stdout)[fd] is None else fd


# What all commands share. -------------------------------------------------------------------------


def _run(
    code: str | None, command: str, work: Callable[[Output], Work], options: dict[str, Any]
) -> int:
    for first, second in (
        ("no_relay", "relay_only"),
        ("tcp_only", "udp_only"),
        ("as_json", "quiet"),
    ):
        if options[first] and options[second]:
            names = [f"--{name.removeprefix('as_').replace('_', '-')}" for name in (first, second)]
            raise click.UsageError(f"{' and '.join(names)} exclude each other.")
    url = options["rendezvous"]
    if not url:
        raise click.UsageError(
            "no rendezvous is known: run `turnd --with-rendezvous` on any machine that both sides "
            "can reach, and give `--rendezvous ws://HOST:8080` (or set PUNCH_RENDEZVOUS) on both."
        )
    from ice.punch import events
    from ice.punch.link import PunchError
    from ice.punch.output import Output
    from ice.punch.running import FAILED, run

    output = Output(
        lambda code: f"{command.format(code=shlex.quote(code))} --rendezvous {shlex.quote(url)}",
        given=code is not None,
        as_json=options["as_json"],
        quiet=options["quiet"],
        verbose=options["verbose"],
    )
    try:
        job = work(output)
    except PunchError as error:
        output.tell(events.Error(error.code, str(error)))
        return FAILED
    return run(_connect(url, options), code, job, output)


def _connect(url: str, options: dict[str, Any]) -> Connect:
    def connecting(code: str | None, on_event: Callable[[Any], None]) -> Any:
        from ice.link.config import LinkConfig
        from ice.link.connect import connect

        config = LinkConfig(
            relay=not options["no_relay"],
            direct=not options["relay_only"],
            tcp=not options["udp_only"],
            udp=not options["tcp_only"],
            birthday=options["birthday"],
        )
        return connect(code, rendezvous=url, config=config, on_event=on_event)

    return connecting


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run ``punch`` and exit with its code."""
    _fill_standard()
    sys.exit(run_command(args))


def _fill_standard() -> None:
    """See that no socket gets the number of a standard file that the shell has closed.

    Python has set ``sys.stdin`` and its like to None then, which is what tells that they were.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None:
        # Whoever has closed it wants to be told nothing.
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115


def run_command(args: Sequence[str] | None = None) -> int:
    """Run ``punch`` with these arguments, by default the program's; return its exit code."""
    return run_program(punch, "punch", args)


if __name__ == "__main__":
    main()
