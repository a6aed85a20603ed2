"""What ops see of a message is what a user gets: text, encoding, segments, cost (O1, O2)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from engine.cli.message import make_preview, message_app
from engine.content import load_content
from engine.deliver.sms import count_segments, forces_ucs2
from engine.errors import OpportuneError

ROOT = Path(__file__).resolve().parents[2]
SCENARIO = {
    "id": "a/s",
    "name": "s",
    "goal": "touchpoints",
    "mode": "live",
    "trigger": {"usage": {"app": "x"}},
    "offer": {
        "benefit": {
            "id": "b",
            "name": "Pass",
            "class": "video",
            "partner": "p",
            "cost_fen": 250,
            "stock": {"codes": "b"},
        },
        "channels": ["sms", "app"],
        "text": "Dear {who}, your {benefit_name} waits: code {code}, {claim_url}",
        "placeholders": {"who": {"from": "attribute.nickname", "max_length": 10}},
    },
}


def content(folder: Path, **policy: object):
    (folder / "geofences").mkdir()
    scenarios = folder / "scenarios"
    scenarios.mkdir()
    (scenarios / "s.yaml").write_text(yaml.safe_dump(SCENARIO))
    given = {"claim_domains": ["q.example.cn"], "message_cost_fen": {"sms": 4}, **policy}
    (scenarios / "policy.yaml").write_text(yaml.safe_dump(given, allow_unicode=True))
    return load_content(folder / "geofences", scenarios)


def test_an_english_message_without_brackets_is_gsm_7(tmp_path: Path) -> None:
    made = make_preview(content(tmp_path, opt_out_text=" STOP: R"), "a/s", {"nickname": "Ann"}, code="AB12")
    assert made.text.startswith("Dear Ann, your Pass waits: code AB12, https://q.example.cn/")
    assert made.text.endswith(" STOP: R")
    assert (made.encoding, made.segments, made.forced_by) == ("gsm7", 1, "")
    assert made.units == count_segments(made.text).units == len(made.text)
    assert (made.message_cost_fen, made.benefit_cost_fen) == (4, 250)


def test_the_signature_makes_it_ucs_2_and_the_preview_says_so(tmp_path: Path) -> None:
    made = make_preview(content(tmp_path, signature="联通"), "a/s", {"nickname": "Ann"})
    assert made.text.startswith("【联通】Dear Ann")
    assert (made.encoding, made.segments, made.message_cost_fen) == ("ucs2", 2, 8)
    assert made.forced_by == "【联通】"
    assert forces_ucs2("a【b】a【") == "【】"


def test_what_cannot_be_written_is_refused_with_the_reason_of_the_decision(tmp_path: Path) -> None:
    found = content(tmp_path)
    assert make_preview(found, "a/s", {}).refused == "missing_value"
    assert make_preview(found, "a/s", {"nickname": "【银行】"}).refused == "bad_value"  # FAULTS A8
    assert make_preview(found, "a/s", {"nickname": "www.evil.cn"}).refused == "bad_value"
    assert make_preview(found, "a/s", {"nickname": "x" * 11}).detail["max_length"] == 10
    assert make_preview(found, "a/s", {"nickname": "{who}"}).text.startswith("Dear {who}"), (
        "a value is never a template"
    )


def test_another_channel_has_no_signature_and_no_segments(tmp_path: Path) -> None:
    made = make_preview(
        content(tmp_path, signature="联通", opt_out_text="R"), "a/s", {"nickname": "Ann"}, channel="app"
    )
    assert made.text.startswith("Dear Ann")
    assert not made.text.endswith("R")
    assert (made.encoding, made.message_cost_fen) == ("utf-8", 0)


@pytest.mark.parametrize("asked", [("a/t", None), ("a/s", "fax")])
def test_unknown_names_are_told(asked: tuple[str, str | None], tmp_path: Path) -> None:
    with pytest.raises(OpportuneError):
        make_preview(content(tmp_path), asked[0], {}, channel=asked[1])


def test_the_command_shows_the_shipped_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    done = CliRunner().invoke(message_app, ["preview", "national/cinema-arrival", "--json"])
    assert done.exit_code == 0, done.output
    made = json.loads(done.output)
    assert made["text"].startswith("【中国联通】欢迎来到")
    assert made["text"].endswith("拒收请回复R")
    assert (made["encoding"], made["segments"]) == ("ucs2", 2)
    shown = CliRunner().invoke(message_app, ["preview", "national/ecommerce-join-plan"])
    assert "UCS-2" in shown.output
    assert "cost: message" in shown.output
    refused = CliRunner().invoke(message_app, ["preview", "national/cinema-arrival", "-a", "x"])
    assert refused.exit_code == 2
