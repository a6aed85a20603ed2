"""The command `opportune`: one file of this folder per group of commands, each with `register(app)`."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from typing import Annotated, NoReturn

import structlog
import typer

from engine import __version__
from engine.cli._saying import log_lines, stop_saying
from engine.errors import ContentError, OpportuneError

app = typer.Typer(
    name="opportune",
    help="Real-time scenario marketing: location pings and app-usage events in, fitting offers out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _tell_version(is_asked: bool) -> None:
    if is_asked:
        print(f"opportune {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Say which version this is.")
    ] = False,
) -> None:
    """Take the options that stand before a command; the application's own help says more than this line."""


def main() -> None:
    """Run the command line; what is wrong is told in a line, without a traceback, with exit status 2."""
    try:
        for group in sorted(one.name for one in pkgutil.iter_modules(__path__) if not one.name.startswith("_")):
            importlib.import_module(f"engine.cli.{group}").register(app)
        _configure_logs()
        # Not standalone, because typer would draw a box around its errors.
        status = app(standalone_mode=False)
    except typer.Abort:
        _fail("aborted", 1)
    except typer.TyperException as error:
        _fail_usage(error)
    except ContentError as error:
        print(f"The content cannot be used, {len(error.faults)} faults:\n{error}", file=sys.stderr)
        sys.exit(2)
    except OpportuneError as error:
        _fail(str(error))
    except ModuleNotFoundError as error:
        if (error.name or "engine").partition(".")[0] == "engine":
            raise
        _fail(f"the package {error.name} is not installed; bring the environment up to date: make setup")
    except BrokenPipeError:
        # Whoever reads has seen enough; nor may Python complain when it flushes at the end.
        stop_saying()
        sys.exit(1)
    except OSError as error:
        if error.filename is None:
            raise
        _fail(f"{error.filename}: {error.strerror}")
    sys.exit(status if isinstance(status, int) else 0)


def _fail_usage(error: typer.TyperException) -> NoReturn:
    """Tell what is wrong with the command as it was typed, and where help is."""
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        sys.exit(2)  # the help it speaks of was printed when it was made
    told = error.format_message() if hasattr(error, "format_message") else str(error)
    hint = f"; see {context.command_path} --help" if context is not None else ""
    _fail(" ".join(told.split()).replace("Value error, ", "").rstrip(".") + hint)


def _fail(told: str, status: int = 2) -> NoReturn:
    print(f"opportune: {told}", file=sys.stderr)
    sys.exit(status)


def _configure_logs() -> None:
    """Write logs to stderr. Tracebacks are plain: the pretty ones print local variables, and so what events hold."""
    renderer = structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
    )
    processors = [*structlog.get_config()["processors"][:-1], renderer]
    structlog.configure(processors=processors, logger_factory=log_lines)
