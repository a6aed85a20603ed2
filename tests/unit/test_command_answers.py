"""What commands say where a service, a store or a file is not what was meant."""

from __future__ import annotations

import asyncio
import importlib
import io
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from engine import __version__, cli
from engine.cli import addresses, backtest, cluster, codes
from engine.cli.message import _gateway
from engine.cli.serve import NotRunning, call_service, service_url
from engine.console import importing
from engine.console.explain_view import View
from engine.errors import ContentError, OpportuneError, StoreUnavailable
from engine.settings import Settings

NOBODY = "http://127.0.0.1:9"


def answering(monkeypatch: pytest.MonkeyPatch, status: int, body: Any) -> None:
    """Let every call of a service be answered so."""
    content = body if isinstance(body, bytes) else orjson.dumps(body)
    monkeypatch.setattr(httpx, "request", lambda *_, **__: httpx.Response(status, content=content))


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (404, {"error": "unknown_scenario", "detail": "no scenario has the id 'x'"}, "no scenario has the id 'x'"),
        (401, {"error": "unauthorized", "detail": "send a header"}, "missing or wrong; set OPPORTUNE_API_KEY"),
        (502, b"<html>proxy</html>", "http://h:1/v1/x answered 502: <html>proxy</html>"),
        (404, ["other"], 'http://h:1/v1/x answered 404: ["other"]'),
    ],
)
def test_what_a_service_refuses_is_told_as_a_sentence(
    monkeypatch: pytest.MonkeyPatch, status: int, body: Any, told: str
) -> None:
    answering(monkeypatch, status, body)
    with pytest.raises(OpportuneError) as caught:
        call_service("GET", "/v1/x", url="h:1")
    assert str(caught.value).endswith(told)
    assert "{" not in str(caught.value)


def test_an_address_without_a_scheme_is_called_by_http() -> None:
    assert service_url(Settings(), "localhost:8080") == "http://localhost:8080"
    assert service_url(Settings(), "https://a.example/") == "https://a.example"
    with pytest.raises(NotRunning, match=r"no service answers at http://127.0.0.1:9 .ConnectError.; start it"):
        call_service("GET", "/v1/x", url="127.0.0.1:9")


def test_an_import_does_not_wait_for_a_service_that_was_never_there() -> None:
    async def send() -> None:
        async with importing.running_engine(NOBODY, None) as engine:
            await asyncio.wait_for(engine.take(b"{}"), timeout=20)

    with pytest.raises(StoreUnavailable, match=r"no service answers at http://127.0.0.1:9.*--state"):
        asyncio.run(send())


@pytest.mark.parametrize(("app", "asked"), [(addresses.addresses_app, "count"), (codes.codes_app, "list")])
def test_asking_a_folder_that_holds_no_state_makes_none(app: typer.Typer, asked: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [asked, "--state", str(tmp_path / "nowhere")])
    assert isinstance(result.exception, OpportuneError)
    assert "name the state folder by --state" in str(result.exception)
    assert not (tmp_path / "nowhere").exists()


def test_a_gateway_that_is_not_declared_is_told_with_what_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OpportuneError, match=r"no gateway is named 'nope'; opportune.toml declares none"):
        _gateway("nope")


def test_a_package_that_is_missing_is_told_with_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(_: str) -> None:
        raise ModuleNotFoundError("No module named 'new_package'", name="new_package")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    told = "opportune: the package new_package is not installed; bring the environment up to date: make setup\n"
    assert capsys.readouterr().err == told


def test_the_version_is_told() -> None:
    result = CliRunner().invoke(cli.app, ["--version"])
    assert (result.exit_code, result.output) == (0, f"opportune {__version__}\n")


def test_content_is_checked_before_a_cluster_is_asked(tmp_path: Path) -> None:
    result = CliRunner().invoke(cluster.content_app, ["push", str(tmp_path / "nowhere")])
    assert isinstance(result.exception, ContentError)
    assert "no such folder" in str(result.exception)


def test_an_offer_of_a_scenario_in_shadow_is_told_as_not_sent() -> None:
    decision = {"at": 0, "scenario": "national/x", "outcome": "offer", "reason": "granted", "count": 1}
    decision |= {"trigger": {"kind": "usage", "values": {}}, "values": {"shadow": True}, "hand_off": None}
    answer = {"user": "u1", "time_zone": "Asia/Shanghai", "decisions": [decision | {"decision_id": "1"}]}
    out = io.StringIO()
    View(Console(file=out, width=120), answer).decisions(20)
    assert "shadow: not sent" in out.getvalue()


def test_a_backtest_takes_the_files_that_a_pattern_stands_for(tmp_path: Path) -> None:
    """As docs/backtest.md shows it: the shell leaves the first file to --events and the others to nobody."""
    files = [tmp_path / name for name in ("a.ndjson", "b.ndjson")]
    for file in files:
        file.write_bytes(b"not an event\n")
    app = typer.Typer()
    backtest.register(app)
    result = CliRunner().invoke(app, ["--events", *map(str, files)])
    assert isinstance(result.exception, OpportuneError)
    assert f"no event in {files[0]}, {files[1]} could be read" in str(result.exception)
