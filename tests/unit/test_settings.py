"""Settings of a deployment: what cannot work is refused where it stands, nothing is silently ignored."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from engine.deliver.addressbook import open_address_book
from engine.errors import SettingsError, StoreUnavailable
from engine.runtime.ownership import own
from engine.runtime.service import Service
from engine.settings import FeedTable, load_settings, slips_of_variables


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("toml", "told"),
    [
        ('fsnyc = "always"', "fsnyc: there is no such setting; did you mean fsync?"),
        ("[feed.signalling]\nreorder_s = 3", "feed: there is no such setting; did you mean feeds?"),
        ("[feeds.dpi]\nreorder = 3", "feeds.dpi.reorder: there is no such setting; see docs/operations.md"),
        ("[feeds.dpi]\nreorder_s = -1", "feeds.dpi.reorder_s: -1 s is neither 0 nor between 0.001 and 30"),
        ("[feeds.dpi]\nreorder_s = 0.0001", "feeds.dpi.reorder_s: 0.0001 s is neither 0 nor"),
        ("[feeds.dpi]\nreorder_s = nan", "feeds.dpi.reorder_s: nan s is neither 0 nor"),
        ("[feeds.dpi]\nexpected_delay_s = inf", "feeds.dpi.expected_delay_s: Input should be less than"),
        ("[feeds.dpi]\nperiod_s = inf", "feeds.dpi.period_s: Input should be less than"),
        ("[feeds.dpi]\nallowed_lateness_s = 1e300", "feeds.dpi.allowed_lateness_s: Input should be less than"),
        ('[feeds.dpi]\nzone = "Mars/Olympus"', "'Mars/Olympus' is not a time zone; write an IANA name"),
        ('[feeds.dpi]\nzone = ""', "'' is not a time zone"),
        ("state_ttl_days = inf", "state_ttl_days: Input should be less than"),
        ("checkpoint_interval_s = inf", "checkpoint_interval_s: Input should be less than"),
        ('tenant = "../x|y"', "tenant: String should match pattern"),
        ("port = ", "opportune.toml is not valid TOML"),
        ("\udcff", "opportune.toml is not valid TOML"),
    ],
)
def test_a_setting_that_cannot_work_is_named_with_what_to_do(folder: Path, toml: str, told: str) -> None:
    (folder / "opportune.toml").write_bytes(toml.encode(errors="surrogateescape"))
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert told in str(caught.value)
    assert caught.value.faults


@pytest.mark.parametrize(
    ("toml", "told"),
    [
        (
            "prot = 1",
            "opportune.toml: prot: found a field that is not known, expected a setting (did you mean 'port'?)",
        ),
        ('port = "x"', "opportune.toml: port: found a value that does not fit, expected a valid integer, unable to"),
        ("[gateways.sms\n", "opportune.toml: $: found what is not TOML, expected TOML in UTF-8 (Expected ']'"),
        ('[gateways.sms]\nkind = "webhok"', "gateways.sms: found kind 'webhok', expected one of 'sandbox', 'webhook'"),
        ('[gateways.sms]\nkind = "smpp"\nhost = "h"', "gateways.sms.login: found nothing, expected a value"),
        ("[feeds.dpi]\nreorder_s = -1", "found a value that does not fit, expected one that does (-1 s is neither 0"),
    ],
)
def test_check_says_of_a_setting_what_is_found_what_is_expected_and_how_to_mend_it(
    folder: Path, toml: str, told: str
) -> None:
    (folder / "opportune.toml").write_text(toml)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert told in str(caught.value.faults[0])


def test_a_fault_of_the_environment_names_the_variable(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPPORTUNE_PORT", "tcp://10.0.0.1:8080")
    monkeypatch.setenv("OPPORTUNE_GATEWAYS__SMS__KIND", "webhok")
    monkeypatch.setenv("OPPORTUNE_FEEDS__DPI__REORDER_S", "-1")
    (folder / "opportune.toml").write_text('fsync = "no"')
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert {(one.file, one.path) for one in caught.value.faults} == {
        ("environment", "OPPORTUNE_PORT"),
        ("environment", "OPPORTUNE_GATEWAYS__SMS__KIND"),
        ("environment", "OPPORTUNE_FEEDS__DPI__REORDER_S"),
        ("opportune.toml", "fsync"),
    }
    assert not [one for one in caught.value.faults if "10.0.0.1" in str(one)]


def test_a_variable_that_looks_like_a_setting_and_is_none_is_told() -> None:
    others = ("OPPORTUNE_CACHE_DIR", "OPPORTUNE_ADDRESS_KEY", "OPPORTUNE_GEOCODER_KEY", "OPPORTUNE_INSTALL", "PORT")
    right = ("OPPORTUNE_PORT", "OPPORTUNE_CLUSTER__KAFKA", "opportune_state")
    (slip,) = slips_of_variables((*others, *right, "OPPORTUNE_PROT"))
    assert str(slip).endswith("(it has no effect; did you mean OPPORTUNE_PORT?)")
    assert (slip.path, slip.severity) == ("OPPORTUNE_PROT", "warning")


def test_a_variable_that_is_no_json_is_told_as_a_setting(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPPORTUNE_FEEDS", "zzz")
    with pytest.raises(SettingsError, match=r'"feeds".*JSON'):
        load_settings()


@pytest.mark.parametrize("by", ["file", "environment"])
def test_a_shipped_feed_keeps_what_its_declaration_does_not_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    if by == "file":
        (folder / "opportune.toml").write_text("[feeds.signalling]\nreorder_s = 3\n[feeds.own]\nperiod_s = 5\n")
    else:
        monkeypatch.setenv("OPPORTUNE_FEEDS__SIGNALLING__REORDER_S", "3")
    feeds = load_settings().feeds
    row = FeedTable(feeds).array[FeedTable(feeds).row["signalling"]]
    assert (row["signalling"], row["period_ms"], row["reorder_ms"]) == (1, 1_800_000, 3000)
    assert row["expected_delay_ms"] == 33_000
    assert feeds["dpi"].expected_delay_s == 5
    assert by == "environment" or not feeds["own"].signalling


def test_what_a_declaration_names_wins_over_what_is_shipped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPPORTUNE_INSTALL", "1")  # not a setting, and not refused
    (folder / "opportune.toml").write_text("[feeds.signalling]\nsignalling = false\nperiod_s = 60\n")
    feed = load_settings().feeds["signalling"]
    assert (feed.signalling, feed.period_s, feed.expected_delay_s) == (False, 60, 30)


@pytest.mark.parametrize("inside", ["", "below"])
def test_a_state_folder_that_cannot_be_is_told_in_a_line(folder: Path, inside: str) -> None:
    (folder / "taken").write_text("a file")
    settings = load_settings(state=folder / "taken" / inside)
    environment = {"OPPORTUNE_ADDRESS_KEY": base64.b64encode(bytes(32)).decode()}
    with pytest.raises(StoreUnavailable, match=r"taken.* cannot be made or written .*; name another"):
        open_address_book(settings, environment)
    with pytest.raises(StoreUnavailable, match=r"taken.* cannot be made.*; name one that may be written"):
        Service(settings)
    with pytest.raises(StoreUnavailable, match=r"cannot be written: .*; use a state folder that may be"):
        own(folder / "taken" / "service.lock", "in use")
