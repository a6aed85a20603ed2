"""Which gateway an offer takes: by province, class of benefit and weight; what `check` says of wrong tables (O2)."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from engine.cli import content as content_commands
from engine.cli.message import make_preview
from engine.console.rerouting import reroute_on_hangup
from engine.content import load_content
from engine.deliver.contract import Capabilities, Dispatch, Sessionless, Standing, Submitted
from engine.deliver.gateways.build import rerouted
from engine.deliver.gateways.checking import gateway_faults
from engine.deliver.routing import Route, rank
from engine.deliver.sms import count_segments
from engine.errors import GatewayRetryable, SettingsError
from engine.model import DispatchState, Offer
from engine.settings import Settings, load_settings
from tests.peers.rig import Rig

CLASSES = ("video", "travel", "health")
PROVINCES = ("beijing", "guangdong", "sichuan")


def offer(number: int = 0, province: str | None = None, benefit_class: str = "video", offer_id: str = "") -> Offer:
    return Offer(
        offer_id=offer_id or f"{number * 0x9E3779B97F4A7C15 % (1 << 128):032x}",
        scenario="national/s",
        user_id=f"u{number}",
        channel="sms",
        text="您好",
        benefit="b",
        offer_class="marketing",
        deadline_ms=1,
        created_ms=0,
        province=province,
        benefit_class=benefit_class,
    )


routes_of = st.dictionaries(
    st.sampled_from("abcdef"),
    st.builds(
        Route,
        st.frozensets(st.sampled_from(PROVINCES), max_size=2),
        st.frozensets(st.sampled_from(CLASSES), max_size=2),
        st.sampled_from([0.0, 0.5, 1.0, 3.0]),
    ),
    min_size=1,
)
offers = st.builds(
    offer,
    province=st.sampled_from([None, *PROVINCES, "hebei"]),
    benefit_class=st.sampled_from(CLASSES),
    offer_id=st.binary(min_size=16, max_size=16).map(bytes.hex),
)

# --- the rule -----------------------------------------------------------------------------------------------------


@given(offers, routes_of)
def test_only_gateways_take_an_offer_whose_every_condition_holds(one: Offer, routes: dict[str, Route]) -> None:
    expected = {
        name
        for name, route in routes.items()
        if (route.provinces == frozenset() or one.province in route.provinces)
        and (route.benefit_classes == frozenset() or one.benefit_class in route.benefit_classes)
    }
    assert set(rank(one, list(routes), routes)) == expected


@given(offers, routes_of, st.randoms(use_true_random=False))
def test_the_way_is_a_function_of_offer_and_table_whatever_their_order(
    one: Offer, routes: dict[str, Route], dice: Any
) -> None:
    names = list(routes)
    first = rank(one, names, routes)
    dice.shuffle(names)
    assert rank(one, names, dict(sorted(routes.items(), reverse=True))) == first


@given(offers, routes_of)
def test_a_gateway_that_is_gone_changes_nothing_for_offers_of_others(one: Offer, routes: dict[str, Route]) -> None:
    ranked = rank(one, list(routes), routes)
    for gone in routes:
        left = {name: route for name, route in routes.items() if name != gone}
        assert rank(one, list(left), left) == [name for name in ranked if name != gone]


@given(offers, routes_of)
def test_stand_ins_come_last_and_what_says_more_comes_first(one: Offer, routes: dict[str, Route]) -> None:
    places = [
        (route.weight == 0, -(2 * (route.provinces != frozenset()) + (route.benefit_classes != frozenset())))
        for route in (routes[name] for name in rank(one, list(routes), routes))
    ]
    assert places == sorted(places)


def test_shares_follow_the_weights() -> None:
    routes = {"a": Route(weight=1), "b": Route(weight=3), "c": Route(weight=0)}
    drawn = Counter(rank(offer(number), "abc", routes)[0] for number in range(20_000))
    assert drawn["c"] == 0
    assert drawn["b"] / 20_000 == pytest.approx(0.75, abs=0.015), drawn


def test_the_draw_is_frozen_so_that_every_version_agrees() -> None:
    routes = {"a": Route(), "b": Route()}
    drawn = "".join(rank(offer(number), "ab", routes)[0] for number in range(40))
    assert drawn == "babbbbababbaabaaaabaabbbbabaabbbabbbabba"


# --- the dispatcher -----------------------------------------------------------------------------------------------


class _Gateway(Sessionless):
    """Takes what it is given while `is_up`; `fails` answers every submit with a provable no."""

    def __init__(self, name: str, channel: str = "sms", **capabilities: Any) -> None:
        self.name, self.channel = name, channel
        self.capabilities = Capabilities(sms=channel == "sms", **capabilities)
        self.is_up = True
        self.fails = False
        self.seen: list[Dispatch] = []

    @property
    def standing(self) -> Standing:  # type: ignore[override]
        return Standing() if self.is_up else Standing(False, "no connection")

    async def submit(self, dispatch: Dispatch) -> Submitted:
        if self.fails:
            raise GatewayRetryable("503")
        self.seen.append(dispatch)
        return Submitted((dispatch.dispatch_id,))

    async def close(self, timeout_s: float = 5.0) -> None:
        return None


def _running(folder: Path, gateways: Sequence[_Gateway], routes: dict[str, Route], work: Any) -> Rig:
    async def main() -> Rig:
        rig = Rig(folder, gateways, routes=routes)
        async with asyncio.timeout(20):
            await rig.dispatcher.start()
            await work(rig)
            await rig.dispatcher.stop(1.0)
        return rig

    return asyncio.run(main())


def test_offers_go_by_province_and_class_and_end_where_none_takes_them(tmp_path: Path) -> None:
    north, video = _Gateway("north"), _Gateway("video")
    routes = {"north": Route(frozenset({"beijing"})), "video": Route(benefit_classes=frozenset({"video"}))}

    async def work(rig: Rig) -> None:
        rig.offer([1], province="beijing", benefit_class="video")
        rig.offer([2], province="guangdong", benefit_class="video")
        rig.offer([3], benefit_class="video")
        (lost,) = rig.offer([4], province="guangdong", benefit_class="travel")
        await rig.dispatcher.idle()
        assert rig.state_of(lost) is DispatchState.REJECTED
        assert [row["code"] for row in rig.ledger.dispatches(lost.offer_id)][-1] == "no_gateway"

    _running(tmp_path, [north, video], routes, work).ledger.close()
    assert [one.address for one in north.seen] == ["13800000001"], "a province precedes a class"
    assert [one.address for one in video.seen] == ["13800000002", "13800000003"]


def test_a_number_says_nothing_of_the_way(tmp_path: Path) -> None:
    """Numbers move between operators: users of one prefix go where their profile says."""
    north, south = _Gateway("north"), _Gateway("south")
    routes = {"north": Route(frozenset({"beijing"})), "south": Route(frozenset({"guangdong"}))}

    async def work(rig: Rig) -> None:
        rig.offer(range(0, 40, 2), province="beijing")
        rig.offer(range(1, 40, 2), province="guangdong")
        await rig.dispatcher.idle()

    _running(tmp_path, [north, south], routes, work).ledger.close()
    assert {int(one.address[3:]) % 2 for one in north.seen} == {0}
    assert {int(one.address[3:]) % 2 for one in south.seen} == {1}


def test_what_waits_for_a_gateway_that_went_down_goes_another_way_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.deliver.dispatcher.REFILL_S", 0.02)
    first, second = _Gateway("first"), _Gateway("second")
    first.is_up = second.is_up = False

    async def work(rig: Rig) -> None:
        made = rig.offer(range(200))
        await asyncio.sleep(0.05)
        assert rig.states() == {None: 200}, "nothing is claimed for a gateway that cannot send"
        second.is_up = True
        await rig.dispatcher.idle()
        assert rig.states() == {DispatchState.ACCEPTED: 200}
        assert len({one.offer_id for one in second.seen}) == len(second.seen) == len(made)
        first.is_up = True
        rig.offer(range(200, 400))
        await rig.dispatcher.idle()

    _running(tmp_path, [first, second], {}, work).ledger.close()
    assert 60 < len(first.seen) < 140, "half of the new ones, once it is back"


def test_a_breaker_that_is_due_gets_its_probe_although_others_could_take_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.deliver.breaker.Breaker.PAUSE_S", 0.2)
    monkeypatch.setattr("engine.deliver.retries.BASE_S", 0.01)
    sick, well = _Gateway("sick"), _Gateway("well")
    sick.fails = True

    async def work(rig: Rig) -> None:
        rig.offer(range(100))
        await rig.until(lambda: rig.dispatcher.held_back()["sick"] == "circuit breaker open", 5)
        rig.offer(range(100, 200))
        await rig.until(lambda: len(well.seen) > 120, 5)
        sick.fails = False
        await asyncio.sleep(0.25)
        rig.offer(range(200, 300))
        await rig.until(lambda: not rig.dispatcher.held_back()["sick"], 5)
        rig.offer(range(300, 400))
        await rig.dispatcher.idle()

    _running(tmp_path, [sick, well], {}, work).ledger.close()
    assert any(int(one.address[3:]) >= 300 for one in sick.seen)


def test_each_gateway_places_its_own_signature_and_segments_are_counted_after_it(tmp_path: Path) -> None:
    """O2: 60 characters are one segment with a short signature and two with a long one."""
    head = _Gateway("head", signature="联通")
    tail = _Gateway("tail", signature="北京联通权益中心", opt_out_text="回T退订", signature_at_end=True)
    bare = _Gateway("bare", signature="", opt_out_text="")
    routes = {name: Route(frozenset({province})) for name, province in (("head", "a"), ("tail", "b"), ("bare", "c"))}
    text = "惠" * 58

    async def work(rig: Rig) -> None:
        for number, province in enumerate("abc"):
            rig.offer([number], province=province, text=text)
        await rig.dispatcher.idle()

    _running(tmp_path, [head, tail, bare], routes, work).ledger.close()
    assert head.seen[0].text == f"【联通】{text}拒收请回复R"
    assert tail.seen[0].text == f"{text}回T退订【北京联通权益中心】"
    assert bare.seen[0].text == text
    sent = [(one.capabilities.parts(one.seen[0].text), count_segments(one.seen[0].text).units) for one in (head, tail)]
    assert sent == [(1, 68), (2, 72)]


def test_other_routes_hold_at_once_for_what_waits_and_for_what_comes(tmp_path: Path) -> None:
    south, north = _Gateway("south"), _Gateway("north")
    north.is_up = False
    routes = {"south": Route(frozenset({"guangdong"})), "north": Route(frozenset({"beijing"}))}

    async def work(rig: Rig) -> None:
        rig.offer(range(20), province="beijing")
        await asyncio.sleep(0.05)
        assert rig.states() == {None: 20}
        rig.dispatcher.reroute({"south": Route(frozenset({"guangdong", "beijing"}))})
        rig.offer(range(20, 30), province="beijing")
        await rig.dispatcher.idle()

    _running(tmp_path, [south, north], routes, work).ledger.close()
    assert (len(south.seen), len(north.seen)) == (30, 0)


def test_routes_are_read_again_and_what_needs_a_restart_is_named() -> None:
    base = {**SANDBOX, "provinces": ["beijing"]}
    now = Settings(gateways={"a": base, "b": SANDBOX, "gone": {**SANDBOX, "weight": 2}})  # type: ignore[dict-item]
    there = {"a": {**base, "provinces": ["sichuan"]}, "b": {**SANDBOX, "window": 7, "weight": 3}, "new": SANDBOX}
    found, later = rerouted(now, Settings(gateways=there))  # type: ignore[arg-type]
    assert later == ["b", "gone", "new"]
    assert found == {"a": Route(frozenset({"sichuan"})), "b": Route(weight=3), "gone": Route(weight=2)}


def test_a_hangup_lets_new_routes_hold_and_settings_that_cannot_be_read_leave_the_old_ones() -> None:
    now = Settings(gateways={"a": {**SANDBOX, "weight": 2}})  # type: ignore[dict-item]
    wanted: list[Settings | SettingsError] = [
        SettingsError("opportune.toml is not valid TOML"),
        Settings(gateways={"a": {**SANDBOX, "weight": 3}}),  # type: ignore[dict-item]
    ]
    taken: list[Any] = []

    def load() -> Settings:
        read = wanted.pop(0)
        if isinstance(read, SettingsError):
            raise read
        return read

    class Watched:
        reroute = staticmethod(taken.append)

    async def main() -> None:
        reroute_on_hangup(Watched, now, load)  # type: ignore[arg-type]
        for left in (1, 0):
            os.kill(os.getpid(), signal.SIGHUP)
            while len(wanted) > left:
                await asyncio.sleep(0.001)
        asyncio.get_running_loop().remove_signal_handler(signal.SIGHUP)

    asyncio.run(main())
    assert taken == [{"a": Route(weight=3)}]


# --- what check says ----------------------------------------------------------------------------------------------


def _content(folder: Path, *scenarios: dict[str, Any]) -> Any:
    (folder / "geofences").mkdir()
    (folder / "scenarios").mkdir()
    for number, more in enumerate(scenarios):
        scenario = {
            "id": f"{more.get('owner', 'national')}/s{number}",
            "name": "s",
            "goal": "touchpoints",
            "mode": "live",
            "trigger": {"usage": {"app": "x"}},
            "audience": {"organisation": more.get("organisation", "guangdong/shenzhen")},
            "offer": {
                "benefit": {"id": f"b{number}", "name": "b", "class": more["class"], "partner": "p"},
                "channels": [more.get("channel", "sms")],
                "text": "惠" * 58,
            },
        }
        (folder / "scenarios" / f"s{number}.yaml").write_text(yaml.safe_dump(scenario, allow_unicode=True))
    policy = {"signature": "联通", "opt_out_text": "拒收请回复R"}
    (folder / "scenarios" / "policy.yaml").write_text(yaml.safe_dump(policy, allow_unicode=True))
    return load_content(folder / "geofences", folder / "scenarios")


def _faults(content: Any, **gateways: Any) -> list[tuple[str, str, str]]:
    settings = Settings(gateways=gateways)
    return [(one.severity, one.path, one.found) for one in gateway_faults(content, settings)]


SANDBOX = {"kind": "sandbox", "channel": "sms"}


def test_sound_tables_have_no_faults(tmp_path: Path) -> None:
    content = _content(tmp_path, {"class": "video"}, {"class": "travel"})
    assert _faults(content) == []
    assert _faults(content, a=SANDBOX) == []
    rest = {**SANDBOX, "weight": 0}
    assert _faults(content, a={**SANDBOX, "provinces": ["guangdong"]}, b=rest) == []


def test_check_tells_of_every_offer_that_no_gateway_takes(tmp_path: Path) -> None:
    content = _content(tmp_path, {"class": "video"}, {"class": "travel"}, {"class": "video", "channel": "app"})
    found = _faults(
        content,
        a={**SANDBOX, "provinces": ["guangdong"], "benefit_classes": ["video"]},
        b={**SANDBOX, "provinces": ["beijing"], "benefit_classes": ["video"]},
    )
    assert {severity for severity, _, _ in found} == {"warning"}
    assert [one for _, _, one in found] == [
        "no gateway for it",
        "none for benefits of class travel, which national/s1 offers",
        "none for benefits of class video, which national/s0 offers, to users of no province or of another than "
        "beijing, guangdong",
    ]


@pytest.mark.parametrize("host", ["127.0.0.1:8", "localhost", "10.20.0.7", "[::1]", "169.254.169.254"])
def test_a1_check_tells_of_an_address_that_no_connection_goes_to(tmp_path: Path, host: str) -> None:
    content = _content(tmp_path, {"class": "video"})
    given = {"kind": "webhook", "channel": "sms", "secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}
    told = _faults(content, mine=given | {"url": f"https://{host}/offers"})
    assert [(severity, path) for severity, path, _ in told] == [("error", "gateways.mine.url")]
    assert told[0][2].endswith("which is not public")
    networks = ["127.0.0.0/8", "10.0.0.0/8", "::1/128", "169.254.0.0/16"]
    assert not _faults(content, mine=given | {"url": f"https://{host}/offers", "allow_networks": networks})
    assert not _faults(content, mine=given | {"url": "https://sms.example.com/offers"})


def test_check_lists_all_that_cannot_work_at_once(tmp_path: Path) -> None:
    content = _content(tmp_path, {"class": "video"})
    found = _faults(
        content,
        a={"kind": "sgip", "channel": "sms", "host": "h", "login": "l", "node": 1, "corporation": "1", "sender": "1"},
        b={"kind": "webhook", "channel": "app", "signature": "联通"},
        c={**SANDBOX, "provinces": ["guangdnog"]},
        d={**SANDBOX, "weight": 0},
        e={"kind": "sandbox", "channel": "web", "weight": 0},
    )
    assert [(severity, path) for severity, path, _ in found] == [
        ("error", "gateways.a"),
        ("error", "gateways.b"),
        ("warning", "gateways.c.provinces"),
        ("error", "gateways.b.signature"),
        ("warning", "gateways e"),
    ]


def test_a_start_with_several_wrong_gateways_names_all_of_them() -> None:
    from engine.deliver.gateways.build import GatewayMaker

    settings = Settings(gateways={"a": {"kind": "webhook"}, "b": {"kind": "webhook"}})
    with pytest.raises(SettingsError, match=r"(?s)gateways\.a: .*gateways\.b: "):
        GatewayMaker(settings, now_ms=lambda: 0).declared()


def test_check_exits_with_every_fault_of_the_settings_or_of_the_gateways(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _content(tmp_path, {"class": "video"})
    monkeypatch.chdir(tmp_path)
    app = typer.Typer()
    content_commands.register(app)
    toml = tmp_path / "opportune.toml"
    wrong = 'benefit_classes = ["films"]\nweight = -1\nsignature = "【x】"\n'
    toml.write_text(f'[gateways.a]\nkind = "sandbox"\nchannel = "sms"\n{wrong}')
    with pytest.raises(SettingsError) as refused:
        load_settings()
    assert [one.path.split(".")[-1] for one in refused.value.faults] == ["signature", "0", "weight"]
    told = CliRunner().invoke(app, ["check"])
    assert told.exit_code == 1
    assert told.output.count("error: opportune.toml: gateways.a.") == 3
    toml.write_text('[gateways.a]\nkind = "webhook"\nchannel = "sms"\n\n[gateways.b]\nkind = "webhook"\n')
    told = CliRunner().invoke(app, ["check"])
    assert told.exit_code == 1
    assert told.output.count("a webhook needs url and secret") == 2
    toml.write_text('[gateways.a]\nkind = "sandbox"\nchannel = "sms"\nprovinces = ["guangdong"]\n')
    told = CliRunner().invoke(app, ["check"])
    assert told.exit_code == 0, told.output
    assert "of no province or of another than guangdong" in told.output


def test_the_preview_of_a_gateway_counts_with_its_own_texts(tmp_path: Path) -> None:
    content = _content(tmp_path, {"class": "video"})
    assert make_preview(content, "national/s0", {}).segments == 1
    way = Capabilities(sms=True, signature="北京联通权益中心", signature_at_end=True)
    made = make_preview(content, "national/s0", {}, capabilities=way)
    assert made.segments == 2
    assert made.text.endswith("拒收请回复R【北京联通权益中心】")
