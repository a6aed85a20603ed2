"""Which apps people open: a plain background, and one sort of event for each usage scenario of the content."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson

from engine.definitions import Content, FieldTest, PatternTrigger, UsageTrigger


@dataclass(slots=True)
class UsageSort:
    """One sort of usage event. `body` is its JSON from the comma after the time to the closing brace."""

    app: str | None
    category: str | None
    action: str | None
    props: dict[str, Any] = field(default_factory=dict)
    weight: float = 1.0

    @property
    def body(self) -> str:
        named = {"app": self.app, "category": self.category, "action": self.action, "props": self.props or None}
        return "," + orjson.dumps({name: value for name, value in named.items() if value is not None}).decode()[1:]


BACKGROUND = (
    UsageSort("com.tencent.mm", "social", "open", weight=8),
    UsageSort("com.tencent.mm", "social", "pay", {"amount_fen": 2600}, weight=1),
    UsageSort("com.ss.android.ugc.aweme", "short_video", "play", weight=5),
    UsageSort("com.taobao.taobao", "shopping", "browse", weight=3),
    UsageSort("com.jingdong.app.mall", "shopping", "browse", weight=2),
    UsageSort("com.qiyi.video", "video", "play", weight=2),
    UsageSort("tv.danmaku.bili", "video", "play", weight=2),
    UsageSort("com.tencent.tmgp.sgame", "game", "start", weight=2),
    UsageSort("com.netease.cloudmusic", "music", "play", weight=2),
    UsageSort("com.autonavi.minimap", "navigation", "route", weight=1),
    UsageSort("com.sankuai.meituan", "delivery", "order", weight=1),
    UsageSort("com.dianping.v1", "living", "search", weight=1),
)


def usage_sorts(content: Content) -> list[UsageSort]:
    """List the background and, for each usage trigger, an event that passes its tests."""
    sorts = list(BACKGROUND)
    for scenario in content.scenarios:
        for trigger in _usage_triggers(scenario.trigger):
            sorts.append(_passing(trigger))
    return sorts


def _usage_triggers(trigger: Any) -> Iterator[UsageTrigger]:
    if isinstance(trigger, UsageTrigger):
        yield trigger
    elif isinstance(trigger, PatternTrigger):
        for step in trigger.steps:
            yield from _usage_triggers(step)


def _passing(trigger: UsageTrigger) -> UsageSort:
    named: dict[str, Any] = {}
    props: dict[str, Any] = {}
    for test in trigger.tests:
        if test.field.startswith("props."):
            props[test.field.removeprefix("props.")] = _value(test)
        else:
            named[test.field] = _value(test)
    app, category = named.get("app"), named.get("category")
    if app is None and category is None:
        alike = next((one for one in BACKGROUND if one.action == named.get("action")), BACKGROUND[0])
        app, category = alike.app, alike.category
    elif app is None:
        app = next((one.app for one in BACKGROUND if one.category == category), None)
    elif category is None:
        category = next((one.category for one in BACKGROUND if one.app == app), None)
    return UsageSort(app, category, named.get("action"), props, weight=0.8)


def _value(test: FieldTest) -> Any:
    if test.op == "in":
        return test.value[0]
    if test.op == "prefix":
        return f"{test.value}demo"
    if test.op == "range":
        least, most = test.value
        return least if most is None else most if least is None else (least + most) / 2
    return test.value
