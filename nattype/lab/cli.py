"""``natlab``: real NATs on this machine, made of network namespaces.

Exit codes: the command's own; 2 wrong usage; 125 the laboratory could not be built (as env(1),
timeout(1) and docker do), 126 and 127 the command could not be started or found.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

if TYPE_CHECKING:
    from nattype.lab.kernel.spec import LabSpec
    from nattype.model import Kind

LAB_FAILED = 125
_Command = TypeVar("_Command", bound=Callable[..., Any])


class _KindType(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """The name of a kind; a wrong one is answered with the right ones."""

    name = "kind"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Kind:
        """Return the kind that ``value`` names."""
        from nattype.model import kind

        try:
            return kind(value)
        except ValueError as error:
            self.fail(f"{error}. See: natlab kinds", param, ctx)

    def shell_complete(
        self,
        ctx: click.Context,  # noqa: ARG002
        param: click.Parameter,  # noqa: ARG002
        incomplete: str,
    ) -> list[Any]:
        """Offer the named kinds."""
        from click.shell_completion import CompletionItem

        from nattype.model import NAMED_KINDS

        return [
            CompletionItem(k.name, help=k.summary)
            for k in NAMED_KINDS
            if k.name.startswith(incomplete)
        ]


_KIND = _KindType()
_SECONDS = click.FloatRange(min=0, min_open=True)

_LAB_OPTIONS = (
    click.option("--hairpin", is_flag=True, help="The NATs turn packets round for their hosts."),
    click.option(
        "--tcp-unsolicited",
        type=click.Choice(["drop", "rst", "icmp", "open"]),
        help="What an uninvited SYN meets; by default what the kind says.",
    ),
    click.option(
        "--loss",
        metavar="PERCENT",
        type=click.FloatRange(0, 100),
        default=0.0,
        help="Packets lost on the access link, each way.",
    ),
    click.option(
        "--delay",
        metavar="MS",
        type=click.FloatRange(0, 60_000),
        default=0.0,
        help="Delay of the access link, one way.",
    ),
    click.option(
        "--jitter",
        metavar="MS",
        type=click.FloatRange(0, 60_000),
        default=0.0,
        help="Random addition to the delay; packets may overtake each other.",
    ),
    click.option(
        "--mtu",
        type=click.IntRange(1280, 9000),
        default=1500,
        show_default=True,
        help="MTU of the access link.",
    ),
    click.option(
        "--udp-timeout",
        metavar="S",
        type=_SECONDS,
        help="Seconds a mapping lives after a single exchange.  [default: 30]",
    ),
    click.option(
        "--udp-stream-timeout",
        metavar="S",
        type=_SECONDS,
        help="Seconds it lives once packets went both ways for two.  [default: 120]",
    ),
    click.option(
        "--ipv6",
        type=click.Choice(["nat", "routed", "off"]),
        default="nat",
        show_default=True,
        help="IPv6: NAT66 of the same behaviour, a firewall without NAT, or none.",
    ),
    click.option("--no-ipv6", "ipv6", flag_value="off", help="The same as --ipv6 off."),
    click.option(
        "--server-command",
        metavar="COMMAND",
        help="Run this as the STUN server; {A} {B} {A6} {B6} {port} are filled in.",
    ),
    click.option("--no-server", is_flag=True, help="Run no STUN server."),
    click.option(
        "--server-wait",
        metavar="S",
        type=click.FloatRange(min=0),
        default=10.0,
        help="How long the STUN server may take to answer; 0 does not wait.",
    ),
    click.option("--seed", type=int, help="Decides which ports NATs give out.  [default: random]"),
)


def _lab_options(command: _Command) -> _Command:
    for option in reversed(_LAB_OPTIONS):
        command = option(command)
    return command


def _spec(
    *sites: tuple[str, Kind],
    ipv6: str,
    server_command: str | None,
    no_server: bool,
    server_wait: float,
    seed: int | None,
    loss: float,
    delay: float,
    jitter: float,
    hairpin: bool,
    **behaviour: Any,
) -> LabSpec:
    from nattype.lab.kernel.spec import LabSpec, site

    alone = len(sites) == 1
    return LabSpec(
        sites=tuple(
            site(
                kind,
                name="" if alone else name,
                hosts=(name,),
                loss=loss / 100,
                delay=delay / 1000,
                jitter=jitter / 1000,
                hairpin=hairpin or None,
                **behaviour,
            )
            for name, kind in sites
        ),
        ipv6=ipv6,
        server_command=() if no_server else tuple(shlex.split(server_command or "")) or None,
        server_wait=server_wait,
        seed=_random_seed() if seed is None else seed,
    )


def _random_seed() -> int:
    import os

    return int.from_bytes(os.urandom(4), "big")


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Start with: natlab run --nat symmetric -- natcheck",
)
def natlab() -> None:
    """Real NATs on this machine: what you run behind them meets what it would meet outside.

    Everything is built in namespaces that end with the command. Nothing of this machine is touched,
    and no special rights are needed where ordinary users may make namespaces (natlab doctor).
    """


@natlab.command(
    context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False}
)
@click.option("--nat", "kind", metavar="KIND", type=_KIND, required=True, help="See: natlab kinds")
@_lab_options
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(kind: Kind, command: tuple[str, ...], **options: Any) -> int:
    """Run COMMAND on a host behind a NAT of this kind.

    The environment variable NATLAB_STUN names a STUN server (RFC 5780) on the public network, and
    NATLAB_STUN6 the same over IPv6. Signals and the exit code pass through.

    \b
    natlab run --nat symmetric -- natcheck
    natlab run --nat full-cone --loss 10 -- python3 my_test.py
    """  # noqa: D301
    from nattype.lab.kernel.commands import run as run_command

    return run_command(_spec(("host", kind), **options), command)


@natlab.command()
@click.option("--nat", "kind", metavar="KIND", type=_KIND, required=True, help="See: natlab kinds")
@_lab_options
def shell(kind: Kind, **options: Any) -> int:
    """Open a shell on a host behind a NAT of this kind.

    There, `ip netns exec box1 nft list ruleset` shows how the NAT is made, and `ip netns exec
    server COMMAND` runs something on the public server.
    """
    from nattype.lab.kernel.commands import shell as run_shell

    spec = _spec(("host", kind), **options)
    names = ["host", *(f"box{n}" for n in range(1, len(kind.boxes) + 1)), "internet", "server"]
    click.echo(f"natlab: behind {kind.name}: {kind.summary}.", err=True)
    click.echo(f"natlab: ip netns exec NAME COMMAND, NAME one of {', '.join(names)}", err=True)
    return run_shell(spec)


@natlab.command(context_settings={"allow_interspersed_args": False})
@click.option("--a", "kind_a", metavar="KIND", type=_KIND, required=True, help="What a is behind.")
@click.option("--b", "kind_b", metavar="KIND", type=_KIND, required=True, help="What b is behind.")
@click.option("--run-a", metavar="COMMAND", help="What to run on a, as one shell command.")
@click.option("--run-b", metavar="COMMAND", help="What to run on b, as one shell command.")
@click.option("--server", metavar="COMMAND", help="What to run on the public server besides.")
@_lab_options
@click.argument("commands", nargs=-1, type=click.UNPROCESSED, metavar="[COMMAND_A ::: COMMAND_B]")
def pair(
    *,
    kind_a: Kind,
    kind_b: Kind,
    run_a: str | None,
    run_b: str | None,
    server: str | None,
    commands: tuple[str, ...],
    **options: Any,
) -> int:
    """Run two commands on two hosts, each behind a NAT of its own, a public server between them.

    Every line of output begins with who said it. The exit code is 0 only if both commands succeed.
    The environment holds NATLAB_STUN, and the addresses of both hosts in their own networks as
    NATLAB_A_IPV4, NATLAB_B_IPV4 and so on.

    \b
    natlab pair --a symmetric --b full-cone -- ./peer --call ::: ./peer --answer
    natlab pair --a cgnat --b cgnat --server ./relay --run-a './peer a' --run-b './peer b'
    """  # noqa: D301
    from nattype.lab.kernel.commands import pair as run_pair

    sides = _sides(commands, run_a, run_b)
    beside = ("/bin/sh", "-c", server) if server else None
    spec = _spec(("a", kind_a), ("b", kind_b), **options)
    return run_pair(spec, list(zip(("a", "b"), sides, strict=True)), beside)


def _sides(
    commands: Sequence[str], run_a: str | None, run_b: str | None
) -> tuple[Sequence[str], Sequence[str]]:
    if run_a and run_b and not commands:
        return ("/bin/sh", "-c", run_a), ("/bin/sh", "-c", run_b)
    if commands and not (run_a or run_b):
        count = list(commands).count(":::")
        if count == 1:
            middle = commands.index(":::")
            if 0 < middle < len(commands) - 1:
                return commands[:middle], commands[middle + 1 :]
    raise click.UsageError(
        "give both commands, either as: -- COMMAND_A ::: COMMAND_B, "
        "or as: --run-a '...' --run-b '...'"
    )


@natlab.command()
@click.option("--json", "as_json", is_flag=True, help="Print them as JSON.")
@click.option("--grid", is_flag=True, help="All combinations of mapping, filtering, allocation.")
def kinds(as_json: bool, grid: bool) -> int:
    """List the kinds of NAT, and what a correct diagnosis says of each."""
    from nattype.model import NAMED_KINDS
    from nattype.model import grid as all_points

    shown = all_points() if grid else NAMED_KINDS
    if as_json:
        import json
        from dataclasses import asdict

        document = [{**asdict(kind), "expected": asdict(kind.expected)} for kind in shown]
        click.echo(json.dumps(document, indent=2))
        return 0
    width = max(len(kind.name) for kind in shown)
    for kind in shown:
        click.echo(f"{kind.name:<{width}}  {kind.summary}")
    if not grid:
        click.echo(
            "\nAlso every point of the grid, such as adm+eif+random: natlab kinds --grid\n"
            "With --hairpin, --tcp-unsolicited, --loss, --delay, ... on top: natlab run --help"
        )
    return 0


@natlab.command()
def doctor() -> int:
    """Say whether this machine can build NATs, and if not, what to run."""
    from nattype.lab.doctor import examine

    findings = examine()
    for finding in findings:
        mark = "ok " if finding.good else "no "
        click.echo(f"{mark} {finding.what}")
        if finding.fix:
            click.echo(f"    run: {finding.fix}")
    return 0 if all(finding.good for finding in findings) else 1


def run_cli(args: Sequence[str] | None = None) -> int:
    """Run ``natlab`` and return its status: an exit code, or minus the number of a signal."""
    try:
        status = natlab.main(args, prog_name="natlab", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        return 130
    except Exception as error:
        from nattype.lab.kernel.errors import LabError

        if not isinstance(error, LabError):
            raise
        click.echo(f"natlab: {error}", err=True)
        return LAB_FAILED
    return int(status or 0)


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run ``natlab`` and end as the command in it ended."""
    status = run_cli(args)
    if status >= 0:
        sys.exit(status)
    from nattype.lab.kernel.enclosure import exit_like

    exit_like(status)


if __name__ == "__main__":
    main()
