"""What others named is shown as it stands: no markup, no escape sequence, whatever it looks like."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text

from engine.console.terminal import Terminal

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = ("[/]", "[/red]", "[bold]x[/bold]", "[link=http://evil.example]y", ":smile:", "[@click=x]z", "会员[1]")


def drawn(*what: object, is_terminal: bool = True) -> str:
    out = io.StringIO()
    terminal = Terminal(file=out, force_terminal=is_terminal, width=80, color_system=None)
    for one in what:
        terminal.print(one)
    return out.getvalue()


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_that_looks_like_markup_is_shown_as_it_is(name: str) -> None:
    table = Table("user", title=name)
    table.add_row(name)
    said = drawn(f"decisions about {name}", table, Text(name))
    assert said.count(name) == 4


@pytest.mark.parametrize("code", ["\x1b]0;owned\x07", "\x1b[2J", "\x9b31m", "\u202egnp", "\r", "\x00"])
def test_a_control_character_of_a_text_never_reaches_the_terminal(code: str) -> None:
    table = Table("user")
    table.add_row(f"a{code}b")
    said = drawn(f"a{code}b", table, Text(f"a{code}b"))
    assert not any(one in said for one in code if not one.isprintable())
    assert said.count("a" + "".join(one for one in code if one.isprintable()) + "b") == 3


def test_lines_and_colours_of_the_command_itself_remain() -> None:
    out = io.StringIO()
    Terminal(file=out, force_terminal=True, color_system="standard", width=80).print("one\ntwo", style="red")
    assert out.getvalue() == "\x1b[31mone\x1b[0m\n\x1b[31mtwo\x1b[0m\n"


def test_a_command_typed_wrongly_is_told_in_one_line_with_the_way_to_help() -> None:
    typed = {
        "nosuch": "No such command 'nosuch'; see opportune --help",
        "serve --prot 3": "No such option: --prot (Possible options: --host, --port); see opportune serve --help",
        "serve --clock x": "Invalid value for --clock: log or events; see opportune serve --help",
        "serve --port abc": "Invalid value for '--port': Input should be a valid integer",
        "serve --port 99999": "settings (opportune.toml or OPPORTUNE_*):",
        "claim show": "Missing argument 'link'; see opportune claim show --help",
        "pause": "Invalid value: name one scenario, or give --all; see opportune pause --help",
        "replay /nonexistent": "Invalid value for 'files': path '/nonexistent' does not exist",
        "replay pyproject.toml --decisions /nonexistent/x": "/nonexistent/x: No such file or directory",
        "replay pyproject.toml --decisions pyproject.toml": "pyproject.toml is to be read and written at once",
    }
    code = (
        "import sys\nfrom engine.cli import main\nfor line in sys.stdin:\n    sys.argv = ['opportune', *line.split()]\n"
        "    try:\n        main()\n    except SystemExit as end:\n        print(end.code, file=sys.stderr)\n"
    )
    before = (ROOT / "pyproject.toml").read_bytes()
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, input="\n".join(typed), capture_output=True, text=True
    )
    assert "─" not in done.stderr
    told = done.stderr.replace("\n  port:", " port:").splitlines()
    assert told[1::2] == ["2"] * len(typed)
    for line, (command, expected) in zip(told[::2], typed.items(), strict=True):
        assert line.startswith(f"opportune: {expected}"), command
    assert (ROOT / "pyproject.toml").read_bytes() == before
