"""The command `opportune`: one file of this folder per group of commands, each with `register(app)`."""

from __future__ import annotations

import importlib
import pkgutil
import sys

import structlog
import typer

from engine.errors import ContentError, OpportuneError

app = typer.Typer(
    name="opportune",
    help="Real-time scenario marketing: location pings and app-usage events in, fitting offers out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line; expected errors are told in a line, with exit status 2."""
    groups = sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))
    for group in groups:
        importlib.import_module(f"engine.cli.{group}").register(app)
    _configure_logs()
    try:
        app()
    except ContentError as error:
        print(f"The content cannot be used, {len(error.faults)} faults:\n{error}", file=sys.stderr)
        sys.exit(2)
    except OpportuneError as error:
        print(f"opportune: {error}", file=sys.stderr)
        sys.exit(2)


def _configure_logs() -> None:
    """Write logs to stderr. Tracebacks are plain: the pretty ones print local variables, and so what events hold."""
    renderer = structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
    )
    processors = [*structlog.get_config()["processors"][:-1], renderer]
    structlog.configure(processors=processors, logger_factory=structlog.PrintLoggerFactory(sys.stderr))
