"""What natkit's command lines share: which release they are, how they end, and with which code.

Nothing is loaded here but click, so that ``--help`` answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Final

import click

DONE: Final = 0
FAILED: Final = 1
"""What was to be done could not be."""
WRONG: Final = 2
"""Wrong usage or configuration; what click answers, too."""
INTERRUPTED: Final = 130


def version() -> str:
    """Return the version of the distribution."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed("natkit")
    except PackageNotFoundError:
        return "(not installed)"


def show_version(name: str) -> Callable[[click.Context, click.Parameter, bool], None]:
    """Return what answers ``--version`` of a command."""

    def show(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
        if wanted:
            click.echo(f"{name} {version()}")
            ctx.exit()

    return show


def run(command: click.Command, name: str, args: Sequence[str] | None = None) -> int:
    """Run a command with these arguments, by default the program's; return its exit code.

    What goes wrong is one line for each thing on standard error, and no traceback.
    """
    from stun.errors import StunError, UsageError

    try:
        code = command.main(args, prog_name=name, standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
    except (click.Abort, KeyboardInterrupt):
        click.echo(f"{name}: interrupted", err=True)
        return INTERRUPTED
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except StunError as error:
        for line in str(error).splitlines():
            click.echo(f"{name}: {line}", err=True)
        return WRONG if isinstance(error, UsageError) else FAILED
    except SystemExit as end:
        return int(end.code or DONE)
    except BrokenPipeError:
        # The reader of our output has gone; Python would complain again when it flushes at exit.
        _discard_output()
        return FAILED
    except OSError as error:
        # Commands answer for what they read and ask; what is left is writing, to a full disk.
        _discard_output()
        click.echo(f"{name}: the output cannot be written: {error.strerror}", err=True)
        return FAILED
    return int(code or DONE)


def _discard_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
