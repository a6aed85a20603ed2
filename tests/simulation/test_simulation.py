"""A simulated day under faults breaks no rule, seed after seed; and defects planted in the engine are found.

On failure the seed and the command that repeats it are in the message.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import msgspec
import pytest

from tests.simulation import planted_offers
from tests.simulation.faults import EVERY, draw
from tests.simulation.planted import PLANTED, seeds_for
from tests.simulation.run import Verdict, run_seed
from tests.simulation.sizes import SIZES
from tests.simulation.tables import UNREACHABLE

ROOT = Path(__file__).resolve().parents[2]
SEEDS = 200
MOST_SEEDS = 3
SMALL, MIDDLE = SIZES["small"], SIZES["middle"]

ESSENTIAL = (
    "cap_off_by_one",
    "release_lost",
    "record_replayed_twice",
    "version_in_the_offer_id",
    "consent_never_asked",
    "opt_out_ignored",
    "opt_out_of_one_number_alone",
    "quiet_hours_in_utc",
    "holdout_salted_anew_in_every_run",
    "exit_forgotten",
    "timers_never_fire",
    "repeated_events_counted",
    "deadline_ignored_at_the_claim",
    "unknown_sent_again_after_a_crash",
    "refusals_lost_in_a_run",
    "presence_lost_when_content_changes",
    "stock_oversold",
    "code_given_twice",
    "tags_never_expire",
    "arbitration_won_by_the_first",
    "ignores_never_counted",
    "switched_channel_forgotten",
    "patterns_look_back_too_far",
    "redemptions_counted_twice",
    "early_receipts_forgotten",
)
"""Found in the short suite; the others in the long one."""

REASONS = {
    "granted", "not_live", "too_old", "no_profile", "audience", "no_consent", "opted_out", "dnd", "suppressed",
    "reentry", "quiet_hours", "stale_presence", "outscored", "cap:all", "cap:channel", "cap:scenario", "cap:category",
    "cap:partner", "min_gap", "missing_value", "bad_value", "deadline", "paused", "store_unavailable", "holdout",
    "duplicate", "stock", "budget", "not_drawn", "feed_silent",
}  # fmt: skip


def explain(verdict: Verdict) -> str:
    return "\n".join([f"seed {verdict.seed} breaks rules; again: {verdict.command}", *verdict.violations[:20]])


def simulate(folder: Path, *asked: str) -> list[Verdict]:
    """Run seeds as a person would, in a process of their own; a seed that breaks a rule fails the test."""
    told = folder / "verdicts.ndjson"
    command = [sys.executable, "-m", "tests.simulation", "--verdicts", str(told), *asked]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert told.exists(), f"{' '.join(command)}\n{run.stdout[-4000:]}{run.stderr[-4000:]}"
    verdicts = [msgspec.json.decode(line, type=Verdict) for line in told.read_bytes().splitlines()]
    broken = [explain(verdict) for verdict in verdicts if verdict.violations]
    assert not broken, "\n\n".join(broken[:5])
    assert run.returncode == 0, run.stderr[-4000:]
    print(run.stdout[run.stdout.index("outcomes and reasons") :])
    return verdicts


@pytest.fixture(scope="module")
def days(tmp_path_factory) -> list[Verdict]:
    return simulate(tmp_path_factory.mktemp("simulation"), "--seeds", str(SEEDS))


def test_two_hundred_days_under_faults_break_no_rule(days):
    assert [verdict.seed for verdict in days] == list(range(SEEDS))


def test_days_are_as_large_and_as_troubled_as_they_should_be(days):
    large = [verdict for verdict in days if verdict.size == "large"]
    assert len(large) == SEEDS // 50
    for verdict in large:
        assert verdict.users >= 50
        assert verdict.events >= 5_000
        assert verdict.messages >= 50
    assert min(len(verdict.faults) for verdict in days) >= 3
    assert min(verdict.events for verdict in days) >= 300
    assert sum(verdict.messages for verdict in days) >= 2_000


def test_over_all_seeds_every_reachable_reason_and_every_outcome_occurs(days):
    pairs = {tuple(pair.split()) for verdict in days for pair in verdict.reasons}
    seen = {reason for _, reason in pairs}
    assert seen & set(UNREACHABLE) == set(), "reachable after all: say so in the tables"
    assert seen == REASONS
    assert {outcome for outcome, _ in pairs} == {"offer", "refused", "withheld", "lost", "held", "expired"}
    assert len({reason for verdict in days for reason in verdict.dead}) >= 12


def test_over_all_seeds_every_kind_of_fault_happens(days):
    assert {kind for verdict in days for kind in verdict.faults} == set(EVERY)
    assert set(Counter(kind for seed in range(16) for kind in draw(seed, 24).kinds)) == set(EVERY)


def test_t3_the_same_seed_gives_the_same_bytes_in_another_process(days):
    for seed in (7, 13):
        assert run_seed(seed).digest == days[seed].digest


def test_every_part_of_an_offer_has_a_planted_defect():
    """At least ten of those that the first world had no part for."""
    ours = [name for name in PLANTED if hasattr(planted_offers, name)]
    assert len(ours) >= 20
    assert len(PLANTED) - len(ours) >= 30


def test_the_auditor_shares_no_code_with_the_engine():
    code = "import sys, tests.simulation.auditor; print([name for name in sys.modules if name.startswith('engine')])"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in ESSENTIAL else pytest.mark.long) for name in PLANTED]
)
def test_a_defect_planted_in_the_engine_is_caught(name, monkeypatch):
    """Small worlds are asked first: most defects show there, at a quarter of the time."""
    seeds = seeds_for(name, MOST_SEEDS)
    with monkeypatch.context() as patch:
        PLANTED[name](patch)
        for size in (SMALL, MIDDLE):
            for seed in seeds:
                if run_seed(seed, size).violations:
                    return
    pytest.fail(f"the auditor does not notice {name} in seeds {seeds}")


@pytest.mark.parametrize("seed", sorted({seed for one in PLANTED for seed in seeds_for(one, MOST_SEEDS)}))
@pytest.mark.long
def test_without_a_defect_the_world_of_the_planted_ones_breaks_no_rule(seed):
    """Otherwise the planted defects would prove nothing."""
    for size in (SMALL, MIDDLE):
        verdict = run_seed(seed, size)
        assert not verdict.violations, explain(verdict)


@pytest.mark.long
def test_many_large_days_under_faults_break_no_rule(tmp_path):
    assert len(simulate(tmp_path, "--seeds", "60", "--from", "1000", "--size", "large")) == 60


@pytest.mark.long
def test_a_thousand_more_days_break_no_rule(tmp_path):
    assert len(simulate(tmp_path, "--seeds", "1000", "--from", "10000")) == 1000
