"""Settings of one deployment: environment first (OPPORTUNE_*), then opportune.toml, then these defaults."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)
from pydantic_settings import SettingsError as SourceError

from engine.errors import Fault, SettingsError
from engine.gateway_settings import GatewaySettings
from engine.model import FEED, Datum

FILE = "opportune.toml"
ENVIRONMENT = "environment"
PREFIX = "OPPORTUNE_"
_LONGEST_S = 366 * 86_400
"""Longer spans are slips of the pen, and infinite ones fit into no timer."""
Seconds = Annotated[float, Field(ge=0, le=_LONGEST_S)]
PositiveSeconds = Annotated[float, Field(gt=0, le=_LONGEST_S)]
KeyName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,31}$")]
_SLIP = 0.75
"""How alike a variable and a setting are where one is probably a slip of the other."""
LONGEST_REORDER_S = 30


def _fit_to_wait(seconds: float) -> float:
    if not (seconds == 0 or 0.001 <= seconds <= LONGEST_REORDER_S):
        raise ValueError(
            f"{seconds:g} s is neither 0 nor between 0.001 and {LONGEST_REORDER_S}: so long each event of the feed "
            "would wait to be sorted. Choose 0 for a feed that reports in order, 2 to 5 for signalling (T5)"
        )
    return seconds


def _known_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"{name!r} is not a time zone; write an IANA name such as Asia/Shanghai") from None
    return name


class FeedSettings(BaseModel):
    """Where events come from (rule L1)."""

    model_config = ConfigDict(extra="forbid")

    datum: Literal["wgs84", "gcj02", "bd09"] = "wgs84"
    zone: Annotated[str, AfterValidator(_known_zone)] | None = Field(
        None, description="IANA zone of stamps without offset; without it they are no_zone (T9)"
    )
    period_s: PositiveSeconds = Field(60, description="how often the feed normally reports a user")
    expected_delay_s: Seconds = 2
    reorder_s: Annotated[float, AfterValidator(_fit_to_wait)] = Field(
        0, description="0-30: events wait so long, to go on sorted by their instants; 2 to 5 suit signalling (T5)"
    )
    allowed_lateness_s: Seconds = 60
    max_accuracy_m: Annotated[float, Field(gt=0)] | None = None
    radius_percent: Literal[68, 95] = 68
    signalling: bool = Field(False, description="a feed of cell fixes: longer gaps and silences are normal")


class ClusterSettings(BaseModel):
    """Where a nation outgrows one machine (docs/cluster.md); used by `opportune worker` and `opportune dispatch`."""

    model_config = ConfigDict(extra="forbid")

    kafka: str = Field("127.0.0.1:9092", description="host:port of one broker, or several separated by commas")
    redis: str = Field("redis://127.0.0.1:6379/0", repr=False, description="redis:// or rediss:// (TLS)")
    partitions: Annotated[int, Field(gt=0, le=4096)] = Field(default=64, description="fixed once topics exist")
    replication: Annotated[int, Field(gt=0, le=9)] = Field(default=1, description="of topics created here")
    prefix: str = Field("opportune.", description="before the name of every topic")
    topics: dict[str, str] = Field(default_factory=dict, description="other names, by role: events, offers, ...")
    source: Literal["faust", "aiokafka"] = Field("faust", description="what the worker reads Kafka with")
    fetch_max_wait_ms: Annotated[int, Field(ge=0, le=5000)] = 50
    session_timeout_s: PositiveSeconds = 10
    reservation_days: Annotated[int, Field(ge=1)] = Field(62, description="how long grants and decisions are kept")
    checkpoints: Path = Field(
        Path("var/cluster/checkpoints"), description="a folder that all workers share, or one each"
    )
    dead_letter_percent: Annotated[float, Field(ge=0, le=100)] = Field(
        1, description="of some 5,000 events; beyond it the partition stops and alarms; 0: never"
    )
    dead_letters_in_a_row: Annotated[int, Field(ge=0)] = Field(1000, description="likewise; 0: never")
    schema_registry: str | None = Field(
        None, repr=False, description="http://[user:password@]host:port of a schema registry, for Avro and Protobuf"
    )
    health_port: int = Field(0, ge=0, le=65535, description="/healthz, /readyz and /metrics; 0: any free port")

    def topic(self, role: str) -> str:
        return self.topics.get(role, f"{self.prefix}{role}")


def default_feeds() -> dict[str, FeedSettings]:
    return {
        "default": FeedSettings(),
        "app": FeedSettings(),
        "dpi": FeedSettings(expected_delay_s=5),
        "signalling": FeedSettings(period_s=1800, expected_delay_s=30, signalling=True),
        "owntracks": FeedSettings(period_s=300),
        "segment": FeedSettings(),
    }


class Settings(BaseSettings):
    """Everything a deployment may change; content (fences, scenarios, policy) lives in its own folders."""

    model_config = SettingsConfigDict(
        env_prefix="OPPORTUNE_", env_nested_delimiter="__", toml_file=FILE, extra="forbid"
    )

    tenant: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] = "default"
    state: Path = Field(Path("var"), description="journal, ledger, checkpoints, address book")
    geofences: Path = Path("geofences")
    scenarios: Path = Path("scenarios")
    host: str = "127.0.0.1"
    port: int = Field(8080, ge=0, le=65535)
    api_key: str | None = Field(
        None, repr=False, description="asked for as `Authorization: Bearer`; none: open on loopback only"
    )
    api_keys: dict[KeyName, str] = Field(
        default_factory=dict, repr=False, description="further keys, by the name that the audit log gives their holder"
    )
    fsync: Literal["always", "interval", "never"] = "interval"
    fsync_interval_s: PositiveSeconds = 0.05
    journal_hours: Annotated[float, Field(gt=0, le=72)] = 48
    checkpoint_interval_s: PositiveSeconds = 60
    state_ttl_days: Annotated[float, Field(ge=2, le=36_500)] = Field(
        30, description="a user so long silent, without profile or consent, is forgotten and its place used again"
    )
    queue_bytes: int = Field(64 << 20, gt=0, description="accepted and not yet processed; beyond it 429")
    feeds: dict[str, FeedSettings] = Field(default_factory=default_feeds)
    cluster: ClusterSettings = Field(default_factory=ClusterSettings)
    gateways: dict[str, GatewaySettings] = Field(
        default_factory=dict, description="by name; a channel without one gets the sandbox"
    )

    @field_validator("feeds", mode="before")
    @classmethod
    def _begin_with_the_shipped(cls, feeds: Any) -> Any:
        """Let a shipped feed keep what its declaration does not name: a wait alone makes no other feed of it."""
        shipped = default_feeds()
        if not isinstance(feeds, dict):
            return feeds
        return {
            name: shipped[name].model_dump(exclude_unset=True) | feed
            if name in shipped and isinstance(feed, dict)
            else feed
            for name, feed in feeds.items()
        }

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)


def load_settings(**overrides: Any) -> Settings:
    """Read the settings; raise SettingsError naming every setting that cannot work."""
    try:
        settings = Settings(**{key: value for key, value in overrides.items() if value is not None})
    except ValidationError as error:
        wrong = [(_as_written(one["loc"]), one) for one in error.errors(include_input=False)]
        lines = [f"{'.'.join(map(str, at))}: {_wanted(one['type'], at, one['msg'])}" for at, one in wrong]
        faults = [_fault(one["type"], at, one["msg"], one.get("ctx", {})) for at, one in wrong]
        raise SettingsError("settings (opportune.toml or OPPORTUNE_*):\n  " + "\n  ".join(lines), faults) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        fault = Fault(FILE, "$", "what is not TOML", "TOML in UTF-8", str(error))
        raise SettingsError(f"{FILE} is not valid TOML: {error}", [fault]) from None
    except OSError as error:
        fault = Fault(FILE, "$", "a file that cannot be read", "one that can", error.strerror or "")
        raise SettingsError(f"{FILE} cannot be read: {error.strerror}", [fault]) from None
    except SourceError as error:  # of the environment; its text does not hold the value, which may be a secret
        fault = Fault(ENVIRONMENT, PREFIX + "*", "what is not JSON", "JSON, or one variable a field", str(error))
        raise SettingsError(f"{error}: there it is written as JSON, or by one variable a field", [fault]) from None
    settings.feeds = {**default_feeds(), **settings.feeds}
    return settings


def slips_of_variables(environment: Iterable[str]) -> list[Fault]:
    """List as warnings the variables that are no setting and look like one: nobody would miss them otherwise."""
    faults = []
    for variable in sorted(environment):
        name = variable.removeprefix(PREFIX).lower().partition("__")[0]
        if not variable.startswith(PREFIX) or name in Settings.model_fields:
            continue
        near = difflib.get_close_matches(name, Settings.model_fields, 1, _SLIP)
        if near:
            hint = f"it has no effect; did you mean {PREFIX}{near[0].upper()}?"
            faults.append(Fault(ENVIRONMENT, variable, "a variable that is no setting", "a setting", hint, "warning"))
    return faults


def _fault(kind: str, place: tuple[int | str, ...], message: str, context: dict[str, Any]) -> Fault:
    """Say of one setting where it stands, in the file or the environment, and what should stand there.

    The value is not told: it may be a secret.
    """
    path = ".".join(map(str, place))
    variable = _variable(place)
    file, path = (ENVIRONMENT, variable) if variable else (FILE, path)
    if kind == "missing":
        return Fault(file, path, "nothing", "a value")
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(str(place[0]), Settings.model_fields, 1) if len(place) == 1 else []
        hint = f"did you mean {near[0]!r}?" if near else "see docs/operations.md"
        return Fault(file, path, "a field that is not known", "a setting", hint)
    if kind == "union_tag_invalid":
        near = difflib.get_close_matches(str(context["tag"]), str(context["expected_tags"]).split("'"), 1)
        hint = f"did you mean {near[0]!r}?" if near else ""
        return Fault(file, path, f"kind {context['tag']!r}", f"one of {context['expected_tags']}", hint)
    if kind == "value_error":
        return Fault(file, path, "a value that does not fit", "one that does", message.removeprefix("Value error, "))
    return Fault(file, path, "a value that does not fit", message.removeprefix("Input should be "))


def _as_written(place: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """Drop what pydantic puts between a gateway and its field: the kind, which stands nowhere in the file."""
    return place[:2] + place[3:] if place[:1] == ("gateways",) else place


def _variable(place: tuple[int | str, ...]) -> str | None:
    """Return the environment variable that holds the setting at `place`, or what it is part of; None: the file does."""
    steps = list(map(str, place))
    written = {variable.upper(): variable for variable in os.environ}
    names = (PREFIX + "__".join(steps[:length]).upper() for length in range(len(steps), 0, -1))
    within = PREFIX + "__".join([*steps, ""]).upper()
    whole = (variable for variable in sorted(written) if len(steps) > 1 and variable.startswith(within))
    return next((written[name] for name in (*names, *whole) if name in written), None)


def _wanted(kind: str, place: tuple[int | str, ...], message: str) -> str:
    if kind != "extra_forbidden":
        return message.removeprefix("Value error, ")
    near = difflib.get_close_matches(str(place[0]), Settings.model_fields, 1) if len(place) == 1 else []
    return "there is no such setting" + (f"; did you mean {near[0]}?" if near else "; see docs/operations.md")


class FeedTable:
    """The declared feeds as an array (FEED) for the kernels, and their names and zones."""

    def __init__(self, feeds: dict[str, FeedSettings]) -> None:
        if len(feeds) > 255:
            raise SettingsError(f"{len(feeds)} feeds are declared; at most 255 are possible")
        self.names = tuple(feeds)
        self.zones = tuple(feed.zone for feed in feeds.values())
        self.row = {name: row for row, name in enumerate(self.names)}
        self.array = np.zeros(len(feeds), FEED)
        for row, feed in enumerate(feeds.values()):
            self.array[row] = (
                int(feed.period_s * 1000),
                # What an event waits to be sorted, who waits for the event must wait too.
                int(feed.expected_delay_s * 1000) + int(feed.reorder_s * 1000),
                int(feed.reorder_s * 1000),
                int(feed.allowed_lateness_s * 1000),
                float("inf") if feed.max_accuracy_m is None else feed.max_accuracy_m,
                1.0 if feed.radius_percent == 68 else 1 / 1.62,
                Datum[feed.datum.upper()],
                feed.signalling,
            )
