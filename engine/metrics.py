"""Every metric of the engine, in one place; docs/operations.md explains each and a test holds the two together.

Names follow Prometheus' conventions: one prefix, base units, `_total` for counters. Labels come from closed lists or
from the content (`scenario` is cut off at 2,000 values); no user, offer or address ever is one. The hot half counts
in arrays and calls `add_counts` once per batch: one call costs about a microsecond per non-zero count.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.parser import text_string_to_metric_families

from engine import __version__

REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)
PlatformCollector(registry=REGISTRY)

_LATENCY_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 600.0)
_SHORT_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
_SCENARIO_LABELS = 2_000
OTHER = "other"


def _counter(name: str, text: str, *labels: str) -> Counter:
    return Counter(f"opportune_{name}", text, labels, registry=REGISTRY)


def _gauge(name: str, text: str, *labels: str) -> Gauge:
    return Gauge(f"opportune_{name}", text, labels, registry=REGISTRY)


def _histogram(name: str, text: str, buckets: Iterable[float], *labels: str) -> Histogram:
    return Histogram(f"opportune_{name}", text, labels, registry=REGISTRY, buckets=tuple(buckets))


# --- in -------------------------------------------------------------------------------------------------------------
HTTP_REQUESTS = _counter("http_requests_total", "Requests answered", "route", "status")
INTAKE_EVENTS = _counter("intake_events_total", "Events acknowledged over HTTP, before decoding", "route")
INTAKE_BYTES = _counter("intake_bytes_total", "Bytes journaled from HTTP, after decompression")
BACKLOG_BYTES = _gauge("backlog_bytes", "Journaled and not yet processed; beyond the limit requests get 429")
JOURNAL_WRITES = _counter("journal_writes_total", "Group writes to the journal")
JOURNAL_FSYNC_SECONDS = _histogram("journal_fsync_seconds", "One fsync of the journal", _LATENCY_S)

# --- the hot half ---------------------------------------------------------------------------------------------------
EVENTS = _counter("events_total", "Well-formed events processed", "type")
EVENTS_DROPPED = _counter("events_dropped_total", "Well-formed events that changed nothing", "reason")
DEAD_LETTERS = _counter("dead_letters_total", "Events that could not be read", "reason")
TRANSITIONS = _counter("transitions_total", "Presence transitions", "kind")
USERS_EVICTED = _counter("users_evicted_total", "Users forgotten because they were silent for state_ttl_days")
PATTERNS = _counter("patterns_total", "Patterns completed, and what their bounds cost (B2, B3)", "what")
EVENTS_HELD = _gauge("events_held", "Events of reordering feeds that wait to go on sorted (T5)")
EVENTS_HURRIED = _counter("events_hurried_total", "Held events that went on early, because the reorder buffer was full")
BATCH_SECONDS = _histogram("batch_seconds", "One batch from records to committed decisions", _SHORT_S)
BATCH_EVENTS = _histogram("batch_events", "Events in one batch", (1, 4, 16, 64, 256, 1024, 4096, 16384))

# --- decisions ------------------------------------------------------------------------------------------------------
CANDIDATES = _counter("candidates_total", "Scenarios that might have spoken to a user")
DECISIONS = _counter("decisions_total", "How candidates ended (D5)", "outcome", "reason")
OFFERS = _counter("offers_total", "Offers granted", "scenario")
CODES_AVAILABLE = _gauge("codes_available", "Codes that can still be given, by pool (O3)", "pool")

# --- hand-off -------------------------------------------------------------------------------------------------------
CLAIMS = _counter("claims_total", "Answers of the claim store (D7)", "answer")
DISPATCHES = _counter("dispatches_total", "Outcomes of submits (G1)", "gateway", "state")
GATEWAY_RETRIES = _counter("gateway_retries_total", "Submits repeated after a provable refusal (G2)", "gateway")
GATEWAY_THROTTLED = _counter("gateway_throttled_total", "Submits that came too fast and go again", "gateway")
GATEWAY_READY = _gauge("gateway_ready", "1 while a gateway can take a submit", "gateway")
GATEWAY_LOGINS = _counter("gateway_logins_total", "Attempts to connect and log in", "gateway", "outcome")
GATEWAY_IN_FLIGHT = _gauge("gateway_in_flight", "Submits without an answer", "gateway")
GATEWAY_BREAKER_OPEN = _gauge("gateway_breaker_open", "1 while the circuit breaker holds a gateway back", "gateway")
GATEWAY_QUEUE = _gauge("gateway_queue_offers", "Offers waiting for their gateway", "gateway")
SUBMIT_SECONDS = _histogram("submit_seconds", "From the submit to the gateway's answer", _LATENCY_S, "gateway")
HANDOFF_SECONDS = _histogram(
    "handoff_seconds", "From the decision's now to the hand-off, on the engine's clock", _LATENCY_S
)
RECEIPTS = _counter(
    "receipts_total", "Receipts of gateways, by part; `unmatched`: of nothing known yet", "gateway", "state"
)
INBOUND = _counter("inbound_total", "Users' messages and operators' news of numbers", "gateway", "kind")
SMS_SEGMENTS = _counter("sms_segments_total", "SMS segments handed over, signature and opt-out text included")

# --- state ----------------------------------------------------------------------------------------------------------
USERS = _gauge("users", "Users with state")
FENCES = _gauge("fences", "Fences of the live content")
SCENARIOS = _gauge("scenarios", "Scenarios of the live content", "mode")
PRESENT_USERS = _gauge("present_visits", "Open visits over all fences")
CROWDED_FENCES = _gauge("crowded_fences", "Fences with at least as many users as their crowd_at")
CROWD_ALARMS = _counter("crowd_alarms_total", "Times that a fence became crowded (P9)")
NOW_SECONDS = _gauge("now_timestamp_seconds", "The log's now (T2)")
CHECKPOINT_SECONDS = _histogram("checkpoint_seconds", "Writing one checkpoint", _LATENCY_S)
CHECKPOINT_POSITION = _gauge("checkpoint_position_bytes", "Journal position of the newest checkpoint")
PARTITIONS = _gauge("partitions", "Partitions that this worker has")
PARTITION_LAG = _gauge("partition_lag_records", "Records of a partition that are not processed yet", "partition")
PARTITION_NOW_SECONDS = _gauge("partition_now_timestamp_seconds", "The log's now of a partition (T2)", "partition")
PARTITION_STOPPED = _gauge(
    "partition_stopped", "1 where a partition is not read on: its events cannot be used (F2)", "partition"
)
PARTITION_MISPLACED = _counter(
    "partition_misplaced_records_total", "Records whose key belongs to another partition", "partition"
)
PARTITION_BATCH_EVENTS = _histogram(
    "partition_batch_events", "Events in one batch of a partition", (1, 16, 256, 1024, 4096, 16384), "partition"
)
PARTITION_STAGE_SECONDS = _histogram(
    "partition_stage_seconds",
    "A batch's time by stage: waited (append to take-up), decide, commit, publish",
    (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 60.0),
    "partition",
    "stage",
)
COMPILED = _gauge("compiled", "1 where the compiled hot path is live")
BUILD = _gauge("build_info", "Version of the engine, always 1", "version")
CONTENT = _gauge("content_info", "Version of the live content, always 1", "version")

BUILD.labels(__version__).set(1)

_children: dict[tuple[int, str], Counter] = {}
_seen_scenarios: set[str] = set()


def add_counts(metric: Counter, counts: Mapping[str, int]) -> None:
    """Add a batch's counts to a counter with one label: {label value: count}; zeros cost nothing."""
    for value, count in counts.items():
        if count:
            key = (id(metric), value)
            child = _children.get(key)
            if child is None:
                child = _children[key] = metric.labels(value)
            child.inc(count)


def add_offers(counts: Mapping[str, int]) -> None:
    """Count offers by scenario; beyond 2,000 distinct scenarios in one process the rest is `other`."""
    for scenario, count in counts.items():
        if scenario not in _seen_scenarios:
            if len(_seen_scenarios) >= _SCENARIO_LABELS:
                OFFERS.labels(OTHER).inc(count)
                continue
            _seen_scenarios.add(scenario)
        OFFERS.labels(scenario).inc(count)


def set_content(version: str, fences: int, scenarios_by_mode: Mapping[str, int]) -> None:
    """Show which content is live, in place of what was shown before."""
    CONTENT.clear()
    CONTENT.labels(version).set(1)
    FENCES.set(fences)
    SCENARIOS.clear()
    for mode, count in scenarios_by_mode.items():
        SCENARIOS.labels(mode).set(count)


def read_exposition(text: str) -> dict[str, dict[tuple[str, ...], float]]:
    """Read a service's metrics back: {sample name: {label values in order of name: value}}."""
    samples: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = tuple(value for _, value in sorted(sample.labels.items()))
            samples.setdefault(sample.name, {})[labels] = sample.value
    return samples


def exposition() -> bytes:
    """Render everything in Prometheus' text format."""
    return generate_latest(REGISTRY)


def catalogue() -> dict[str, tuple[str, str, tuple[str, ...]]]:
    """Map each metric's name to (type, help, labels), as docs/operations.md must list them."""
    listed: dict[str, tuple[str, str, tuple[str, ...]]] = {}
    for metric in globals().values():
        if isinstance(metric, MetricWrapperBase):
            suffix = "_total" if isinstance(metric, Counter) else ""
            listed[f"{metric._name}{suffix}"] = (str(metric._type), metric._documentation, tuple(metric._labelnames))
    return listed
