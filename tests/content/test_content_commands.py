"""`check`, `schema` and `fences` as people and CI call them."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import pytest
import typer
from sets import collection, fence, scenario, write_set
from typer.testing import CliRunner, Result

from engine.cli import content, fences
from engine.console.terminal import Terminal
from engine.content import inspect_content

app = typer.Typer()
content.register(app)
fences.register(app)


def call(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def folders(root: Path, **parts: Any) -> list[str]:
    geofences, scenarios = write_set(root, **parts)
    return ["--geofences", str(geofences), "--scenarios", str(scenarios)]


def test_check_says_what_was_loaded_and_exits_0(tmp_path: Path) -> None:
    result = call("check", *folders(tmp_path))
    assert result.exit_code == 0
    assert "The content is sound. Version " in result.output
    assert "1 fences: 1 mall" in result.output
    assert "national/welcome" in result.output


def test_check_tells_every_fault_and_exits_1(tmp_path: Path) -> None:
    bad = folders(tmp_path, fences=collection(fence(id="x"), fence(name=5)), scenarios=[scenario(mode="on")])
    result = call("check", *bad)
    assert result.exit_code == 1
    assert "$.features[0].properties.id" in result.output
    assert "$.features[1].properties.name" in result.output
    assert "$.mode: found 'on', expected 'draft', 'shadow', 'live' or 'paused'" in result.output


def test_a_channel_that_is_nearly_a_common_one_is_warned_of(tmp_path: Path) -> None:
    offer = {**scenario()["offer"], "channels": ["smss", "wechat"]}
    result = call("check", *folders(tmp_path, scenarios=[scenario(offer=offer)]))
    assert result.exit_code == 0
    assert (
        "$.offer.channels[0]: found 'smss', expected a channel that has a gateway (did you mean 'sms'?" in result.output
    )
    assert "wechat'" not in result.output


def test_too_short_a_list_is_told_in_words_of_the_file(tmp_path: Path) -> None:
    offer = {**scenario()["offer"], "channels": []}
    result = call("check", *folders(tmp_path, scenarios=[scenario(offer=offer)]))
    assert "$.offer.channels: found [], expected at least 1 item\n" in result.output


def test_check_warns_of_a_variable_that_is_no_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPPORTUNE_PROT", "8081")
    result = call("check", *folders(tmp_path))
    assert result.exit_code == 0
    assert "warning: environment: OPPORTUNE_PROT: found a variable that is no setting" in result.output


def test_a_kind_that_no_fence_has_is_told(tmp_path: Path) -> None:
    result = call("fences", "list", "--kind", "mal", *folders(tmp_path))
    assert result.exit_code == 2
    assert "no fence has the kind 'mal'; did you mean 'mall'?" in " ".join(result.output.replace("│", "").split())


def test_check_speaks_json(tmp_path: Path) -> None:
    good = json.loads(call("check", "--json", *folders(tmp_path / "good")).output)
    assert (good["ok"], good["fences"], good["scenarios"], good["faults"]) == (True, 1, 1, [])
    result = call("check", "--json", *folders(tmp_path / "bad", fences=collection(fence(id="x"))))
    bad = json.loads(result.output)
    assert result.exit_code == 1
    assert (bad["ok"], bad["version"]) == (False, None)
    assert set(bad["faults"][0]) == {"severity", "file", "path", "found", "expected", "hint"}


def test_check_warns_of_what_is_over(tmp_path: Path) -> None:
    over = scenario(schedule={"until": "2020-01-01"})
    result = call("check", *folders(tmp_path, fences=collection(fence(valid_until="2020-01-01")), scenarios=[over]))
    assert result.exit_code == 0
    assert "scenarios/s0.yaml: $.schedule.until: found a date that is past" in result.output
    assert "fence beijing/one: found a valid_until that is past" in result.output


def test_a_fault_table_keeps_brackets_and_everything_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    console = Terminal(force_terminal=True, width=200, color_system=None)
    monkeypatch.setattr(content, "Terminal", lambda: console)
    with console.capture() as capture:
        ring = [[39.9, 116.4], [39.9, 116.5], [39.8, 116.5], [39.9, 116.4]]
        bad = collection(fence(geometry={"type": "Polygon", "coordinates": [ring]}))
        content.print_faults(inspect_content(*write_set(tmp_path, fences=bad, scenarios=[])).faults)
    assert "[39.9, 116.4]" in capture.get()
    assert "look swapped" in capture.get()


def test_schema_lists_its_names_and_prints_each() -> None:
    names = [line.split()[0] for line in call("schema").output.splitlines()]
    assert names == ["scenario", "policy", "benefits", "fence", "fences", "event", "transition", "decision"]
    for name in names:
        assert json.loads(call("schema", name).output)["$id"] == f"opportune:{name}:v1"
    assert call("schema", "nothing").exit_code == 2


def test_fences_are_listed_by_kind(tmp_path: Path) -> None:
    given = folders(tmp_path, fences=collection(fence(), fence(id="beijing/two", kind="cinema")))
    lines = call("fences", "list", "--kind", "cinema", *given).output.splitlines()
    assert [line.split("\t")[0] for line in lines] == ["id", "beijing/two"]


def test_an_import_writes_a_file_that_loads(tmp_path: Path) -> None:
    geofences, scenarios = write_set(tmp_path)
    source = tmp_path / "places.csv"
    source.write_text("name,lon,lat,radius_m\n甲,116.4,39.9,50\n乙,116.5,39.9,60\n")
    out = geofences / "more.geojson"
    result = call("fences", "import", source, "--format", "csv", "--kind", "mall", "--tag", "new", "--out", out)
    assert result.exit_code == 0, result.output
    assert "Wrote 2 fences" in result.output
    loaded = inspect_content(geofences, scenarios).content
    assert loaded is not None
    assert sorted(one.name for one in loaded.fences if "new" in one.tags) == ["乙", "甲"]
    again = call("fences", "import", source, "--format", "csv", "--kind", "mall", "--out", out)
    assert again.exit_code == 1
    assert "--force overwrites it" in again.output


def test_an_import_with_a_bad_row_writes_nothing_unless_asked(tmp_path: Path) -> None:
    source, out = tmp_path / "places.csv", tmp_path / "out.geojson"
    source.write_text("name,lon,lat,radius_m\n甲,116.4,39.9,50\n乙,39.9,116.5,60\n")
    words = ["fences", "import", source, "--format", "csv", "--kind", "mall", "--out", out]
    result = call(*words)
    assert result.exit_code == 1
    assert "row 3.geometry" in result.output
    assert "look swapped" in result.output
    assert not out.exists()
    assert call(*words, "--skip-bad").exit_code == 1
    assert len(json.loads(out.read_text())["features"]) == 1


# --- geocoding ------------------------------------------------------------------------------------------------------


class Nominatim(BaseHTTPRequestHandler):
    """Stands in for a Nominatim server: knows two addresses, and fails once where it is told to."""

    asked: ClassVar[list[tuple[float, str, str]]] = []
    failures: ClassVar[list[int]] = []
    known: ClassVar[dict[str, tuple[str, str]]] = {
        "北京市王府井大街1号": ("39.9132000", "116.4050000"),
        "上海市南京东路": ("31.2390000", "121.4790000"),
    }

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = parse_qs(url.query)["q"][0]
        self.asked.append((time.monotonic(), query, self.headers["User-Agent"]))
        status = self.failures.pop() if self.failures else 200
        found = self.known.get(query)
        body = [{"lat": found[0], "lon": found[1], "display_name": query, "place_id": 1}] if found else []
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def nominatim() -> Iterator[str]:
    Nominatim.asked.clear()
    Nominatim.failures.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Nominatim) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def geocode(root: Path, domain: str, text: str, *more: object) -> Result:
    source = root / "addresses.txt"
    source.write_text(text)
    words = ["--domain", domain, "--kind", "mall", "--owner", "demo", "--radius-m", 80, "--out", root / "out.geojson"]
    return call("fences", "geocode", source, *words, *more)


def test_addresses_become_circles(tmp_path: Path, nominatim: str) -> None:
    text = "# ours\n王府井店\t北京市王府井大街1号\n\n上海市南京东路\n"
    result = geocode(tmp_path, nominatim, text, "--pause-s", 0.2)
    assert result.exit_code == 0, result.output
    features = json.loads((tmp_path / "out.geojson").read_text())["features"]
    assert [one["properties"]["name"] for one in features] == ["王府井店", "上海市南京东路"]
    assert features[0]["geometry"] == {"type": "Point", "coordinates": [116.405, 39.9132]}
    assert features[0]["properties"]["radius_m"] == 80
    (first, _, agent), (second, _, _) = Nominatim.asked
    assert second - first >= 0.1  # the service's limit is kept; the first may be stamped late on a busy machine
    assert agent == "opportune"


def test_an_address_nobody_knows_is_a_fault(tmp_path: Path, nominatim: str) -> None:
    text = "上海市南京东路\n无名路\n"
    result = geocode(tmp_path, nominatim, text, "--pause-s", 0)
    assert result.exit_code == 1
    assert "line 2" in result.output
    assert "an address the service knows" in result.output
    assert not (tmp_path / "out.geojson").exists()


def test_a_service_that_stumbles_is_asked_again(tmp_path: Path, nominatim: str) -> None:
    Nominatim.failures.append(503)
    result = geocode(tmp_path, nominatim, "上海市南京东路\n", "--pause-s", 0)
    assert result.exit_code == 0, result.output
    assert len(Nominatim.asked) == 2


def test_a_service_that_stays_away_is_a_fault_and_no_traceback(tmp_path: Path) -> None:
    result = geocode(tmp_path, "http://127.0.0.1:9", "上海市南京东路\n", "--pause-s", 0)
    assert result.exit_code == 1
    assert "an answer from nominatim" in result.output


def test_an_unknown_service_is_said_so(tmp_path: Path) -> None:
    result = geocode(tmp_path, "http://127.0.0.1:9", "x\n", "--provider", "atlantis")
    assert result.exit_code == 2
    assert "no geocoder called 'atlantis'" in " ".join(result.output.replace("│", " ").split())
