"""Profiles, consent, opt-out and texts (rules A1-A4, O1)."""

from __future__ import annotations

import json

import numpy as np
import pytest

from engine.decide.compose import Refusal, Sources, compose
from engine.decide.profiles import ProfileTable
from engine.definitions import Placeholder, Policy
from engine.model import Reason
from engine.opt_out import is_opt_out
from tests.oracle.decide_world import DAY_MS, NOON_MS, World, consent, message, profile, scenario


def table(**policy: frozenset[str]) -> ProfileTable:
    made = ProfileTable(Policy(**policy))
    made.ensure(4)
    return made


def test_a_field_given_replaces_null_clears_and_an_absent_one_stays() -> None:  # A1
    profiles = table()
    facts = profile(tags=("a", "b"), attributes={"arpu": 30, "plan": "4G"}, organisation="bj", person="p", dnd=True)
    profiles.apply_profile(0, facts, NOON_MS)
    profiles.apply_profile(0, profile(tags=("b", "c"), attributes={"arpu": "high"}), NOON_MS)
    assert [profiles.has_tag(0, tag, NOON_MS) for tag in "abc"] == [False, True, True]
    assert (profiles.attribute(0, "arpu"), profiles.attribute(0, "plan")) == ("high", None)
    assert profiles.subject(0, "u0") == "person:p"
    profiles.apply_profile(0, profile(tags=None, person=None, dnd=None, attributes=None), NOON_MS)
    assert not profiles.has_tag(0, "c", NOON_MS)
    assert profiles.subject(0, "u0") == "u0"
    assert profiles.attribute(0, "arpu") is None
    assert profiles.is_known(0)
    assert not profiles.is_known(1)


def test_many_tags_grow_into_further_words() -> None:
    profiles = table()
    tags = tuple(f"t{number}" for number in range(150))
    profiles.apply_profile(2, profile(tags=tags), NOON_MS)
    profiles.ensure(5000)
    assert all(profiles.has_tag(2, tag, NOON_MS) for tag in tags)
    assert not profiles.has_tag(4999, "t3", NOON_MS)


def test_dynamic_tags_end_at_their_instant_and_are_forgotten_later() -> None:  # A1
    profiles = table()
    profiles.set_tag(0, "cinema-goer", NOON_MS + 10)
    assert profiles.has_tag(0, "cinema-goer", NOON_MS + 9)
    assert not profiles.has_tag(0, "cinema-goer", NOON_MS + 10)
    profiles.drop_expired_tags(NOON_MS + 10)
    assert profiles.dynamic == {}


def test_attributes_beyond_the_limit_are_counted_and_ignored() -> None:
    profiles = table()
    profiles.apply_profile(0, profile(attributes={f"a{number}": number for number in range(300)}), NOON_MS)
    assert profiles.ignored_attributes == 300 - 256


@pytest.mark.parametrize("text", ["R", "td", " Ｔ ", "n\n", "退订", "　拒收　", "ＴＤ", "r"])
def test_an_opt_out_word_is_the_whole_message_whatever_its_width_and_case(text: str) -> None:  # A3
    assert is_opt_out(text)


@pytest.mark.parametrize("text", ["", "TD谢谢", "不要退订", "RR", "退 订", "TDT", "yes", "n/a"])
def test_anything_else_is_no_opt_out(text: str) -> None:  # A3
    assert not is_opt_out(text)


def test_every_new_user_of_a_number_is_another_subject() -> None:  # A4
    profiles = table()
    subjects = {profiles.subject(0, "u0")}
    for life in range(3):
        profiles.close(0, NOON_MS + life)
        subjects.add(profiles.subject(0, "u0"))
    assert len(subjects) == 4


def test_what_a_person_refuses_on_one_number_binds_the_others_with_its_evidence() -> None:  # A4
    profiles = table()
    for slot in (0, 1):
        profiles.apply_profile(slot, profile(person="p"), NOON_MS)
        profiles.apply_consent(slot, consent("location", True))
    assert profiles.apply_inbound(0, message("退订", at_ms=NOON_MS + 5)) == "marketing.sms"
    profiles.apply_consent(0, consent("location", False, NOON_MS + 6))
    assert profiles.evidence(1, "marketing.sms") == (False, NOON_MS + 5, "person")
    assert profiles.evidence(1, "location") == (False, NOON_MS + 6, "person")
    assert [(one.slot, one.purpose) for one in profiles.take_bound()] == [(1, "marketing.sms"), (1, "location")]
    assert profiles.take_bound() == []
    profiles.apply_consent(2, consent("marketing.sms", True, NOON_MS + 4))
    profiles.apply_profile(2, profile(person="p"), NOON_MS + 7)
    assert profiles.evidence(2, "marketing.sms") == (False, NOON_MS + 5, "person")


def test_do_not_disturb_is_of_the_number_not_of_the_person() -> None:  # A4
    world = World(scenario())
    for slot in (0, 1):
        world.profiles.apply_profile(slot, profile(person="p", dnd=slot == 0), NOON_MS)
    assert [world.one(slot).reason for slot in (0, 1)] == ["dnd", "granted"]


def test_an_opt_out_revokes_its_channel_only() -> None:  # A3
    world = World(scenario(offer__channels=("sms",)), scenario("a/p", offer__channels=("push",)))
    assert world.profiles.apply_inbound(0, message("退订")) == "marketing.sms"
    assert world.profiles.apply_inbound(0, message("谢谢")) is None
    assert [world.one(row=row).reason for row in (0, 1)] == ["opted_out", "granted"]
    assert world.profiles.evidence(0, "marketing.sms") == (False, NOON_MS, "inbound-message")


def test_consent_of_many_users_is_asked_at_once() -> None:  # A2
    slots = np.array([0, 1, 2])
    assert table().allows("location", slots).tolist() == [False] * 3
    profiles = table(assumed_consent=frozenset({"location"}))
    profiles.apply_consent(0, consent("location", True))
    profiles.apply_consent(1, consent("location", False))
    assert profiles.allows("location", slots).tolist() == [True, False, True]
    profiles.assumed = frozenset()
    assert profiles.allows("location", slots).tolist() == [True, False, False]


def test_a_profile_costs_at_most_sixty_bytes() -> None:
    profiles = table()
    profiles.ensure(100_000)
    facts = profile(tags=("a", "b", "c"), attributes={"arpu": 88, "plan": "5G"}, organisation="bj/hd", person="p")
    for slot in range(1000):
        profiles.apply_profile(slot, facts, NOON_MS)
        for purpose in ("marketing.sms", "location"):
            profiles.apply_consent(slot, consent(purpose, True))
    assert sum(array.nbytes for array in profiles.arrays().values()) / profiles.count <= 60


def test_a_table_comes_back_from_its_arrays_and_objects() -> None:
    profiles = table()
    facts = profile(tags=("a",), attributes={"plan": "5G", "arpu": 3.5}, organisation="bj", province="北京", person="p")
    profiles.apply_profile(3, facts, NOON_MS)
    profiles.apply_profile(2, profile(time_zone="Asia/Urumqi", dnd=True), NOON_MS)
    profiles.apply_consent(3, consent("marketing.sms", True, source="app"))
    profiles.set_tag(1, "soon", NOON_MS + DAY_MS)
    profiles.close(0, NOON_MS)
    again = ProfileTable()
    again.restore(profiles.arrays(), json.loads(json.dumps(profiles.objects())))
    assert again.count == 4
    assert again.objects() == profiles.objects()
    assert {name: array.tolist() for name, array in again.arrays().items() if name[:6] != "number"} == {
        name: array.tolist() for name, array in profiles.arrays().items() if name[:6] != "number"
    }
    assert again.attribute(3, "arpu") == 3.5
    assert again.evidence(3, "marketing.sms") == (True, NOON_MS, "app")
    assert again.zone.get(2) == "Asia/Urumqi"
    again.ensure(50)
    again.apply_profile(49, profile(tags=("z",)), NOON_MS)
    assert again.has_tag(49, "z", NOON_MS)


SOURCES = Sources({"level": "金卡", "fen": 1990, "day": "2026-10-01", "link": "见 www.x.cn"}.get, "万达影城", "五折券")


def written(text: str, *places: Placeholder, sources: Sources = SOURCES) -> str | Reason:
    made = compose(scenario(offer__text=text, offer__placeholders=places).offer, sources)
    return made.reason if isinstance(made, Refusal) else made


PLACES = [
    (Placeholder("x", "attribute:level"), "金卡"),
    (Placeholder("x", "fence:name"), "万达影城"),
    (Placeholder("x", "benefit:name"), "五折券"),
    (Placeholder("x", "constant:三"), "三"),
    (Placeholder("x", "constant", default="三"), "三"),
    (Placeholder("x", "attribute:fen", "money_fen"), "19.90"),
    (Placeholder("x", "attribute:fen", "number"), "1990"),
    (Placeholder("x", "attribute:day", "date"), "2026年10月1日"),
    (Placeholder("x", "attribute:none", default="会员"), "会员"),
    (Placeholder("x", "attribute:none"), Reason.MISSING_VALUE),
    (Placeholder("x", "code"), Reason.MISSING_VALUE),
    (Placeholder("x", "claim_url"), Reason.MISSING_VALUE),
    (Placeholder("x", "attribute:level", "number"), Reason.BAD_VALUE),
    (Placeholder("x", "attribute:level", "date"), Reason.BAD_VALUE),
    (Placeholder("x", "attribute:level", max_length=1), Reason.BAD_VALUE),
    (Placeholder("x", "attribute:link"), Reason.BAD_VALUE),
]


@pytest.mark.parametrize(("place", "expected"), PLACES, ids=str)
def test_a_placeholder_is_typed_bounded_and_required(place: Placeholder, expected: str | Reason) -> None:  # O1
    assert written("您好{x}！", place) == (f"您好{expected}！" if not isinstance(expected, Reason) else expected)


@pytest.mark.parametrize(
    "value",
    ["【银行】", "a\nb", "a\r", "a\u2028b", "http://x", "HTTPS://x.cn", "x.com/1", "点t.cn看", "ｔ．ｃｎ", "10.0.0.1"]
    # The same seen sideways, with what takes no room in between, with a dot of its own, and turned round.
    + [
        "\ufe3b银行\ufe3c",
        "x.c\u200bom",
        "bank\u00ad.cn",
        "bank。com",
        "bank｡ｃｏｍ",
        "\u202emoc.x",
        "\u2066x",
        "\x1b[2J",
        "a\0b",
    ],
)
def test_signatures_line_breaks_and_links_in_a_value_are_refused(value: str) -> None:  # O1
    assert written("{x}", Placeholder("x", "attribute:v"), sources=Sources({"v": value}.get)) is Reason.BAD_VALUE


@pytest.mark.parametrize(
    "value",
    ["{x}", "50%", "A.B", "3.5折", "张三", "{y}", "你好。再见", "👨\u200d👩\u200d👧", "❤\ufe0f", "می\u200cخواهم"],
)
def test_a_value_is_never_read_as_a_template(value: str) -> None:  # O1
    assert written("好{x}", Placeholder("x", "attribute:v"), sources=Sources({"v": value}.get)) == f"好{value}"


def test_a_claim_link_is_made_by_the_engine_from_an_allowed_domain() -> None:  # O1
    places = (Placeholder("url", "claim_url", max_length=10),)
    world = World(scenario(offer__text="领取{url}", offer__placeholders=places), claim_domains=("hui.example",))
    text = world.one().offer.text
    assert text.startswith("领取https://hui.example/")
    bare = World(scenario(offer__text="领取{url}", offer__placeholders=places))
    assert bare.one().reason == "missing_value"


def test_an_offer_without_its_required_value_is_refused_before_it_competes() -> None:  # O1, D1
    places = (Placeholder("x", "attribute:level"),)
    world = World(scenario(offer__text="{x}", offer__placeholders=places))
    decision = world.one()
    assert (decision.reason, decision.values) == ("missing_value", {"placeholder": "x", "source": "attribute:level"})
    assert not world.ledger.requests
