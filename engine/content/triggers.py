"""Checked triggers and audiences to definitions: fences resolved, words turned into tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from engine.content.conditions import COMPARISONS, ConditionModel, FenceChoice, Matcher, UsageFilter
from engine.content.faults import Faults, Shown, did_you_mean
from engine.content.trigger_model import TRIGGERS, Dwell, Presence, Step, Trigger
from engine.definitions import (
    Compare,
    Every,
    Expression,
    Fence,
    FieldTest,
    HasTag,
    InOrganisation,
    Neither,
    PatternTrigger,
    PresenceTrigger,
    Some,
    TriggerDefinition,
    UsageTrigger,
)
from engine.model import Confidence


class FenceBook:
    """The fences by id, kind, tag and owner, for choices."""

    def __init__(self, fences: Sequence[Fence]) -> None:
        self.by_id = {fence.id: fence for fence in fences}
        self.by_kind: dict[str, set[str]] = {}
        self.by_tag: dict[str, set[str]] = {}
        self.by_owner: dict[str, set[str]] = {}
        for fence in fences:
            self.by_kind.setdefault(fence.kind, set()).add(fence.id)
            self.by_owner.setdefault(fence.id.partition("/")[0], set()).add(fence.id)
            for tag in fence.tags:
                self.by_tag.setdefault(tag, set()).add(fence.id)

    def choose(self, choice: FenceChoice, file: str, where: str, faults: Faults) -> tuple[str, ...]:
        """Resolve a choice to sorted fence ids; unknown words and an empty choice are faults."""
        chosen: set[str] | None = None
        named = {fence_id: {fence_id} for fence_id in self.by_id} if choice.fence else {}
        complete = True
        for name, words, index in (
            ("fence", choice.fence, named),
            ("kind", choice.kind, self.by_kind),
            ("tag", choice.tag, self.by_tag),
            ("owner", choice.owner, self.by_owner),
        ):
            if words is None:
                continue
            matching: set[str] = set()
            for word in words:
                if word not in index:
                    expected = "the id of a fence" if name == "fence" else f"the {name} of some fence"
                    faults.add(file, f"{where}.{name}", word, expected, did_you_mean(word, index))
                    complete = False
                matching |= index.get(word, set())
            chosen = matching if chosen is None else chosen & matching
        if not chosen and complete:
            hint = "several of fence, kind, tag and owner must all hold for one fence"
            faults.add(file, where, Shown("no fence that matches"), "a choice that some fence matches", hint)
        return tuple(sorted(chosen or ()))


def trigger_definition(trigger: Trigger, book: FenceBook, file: str, faults: Faults) -> TriggerDefinition:
    """Turn a checked trigger into its definition."""
    kind = next(name for name in TRIGGERS if getattr(trigger, name) is not None)
    model = getattr(trigger, kind)
    where = f"$.trigger.{kind}"
    if isinstance(model, UsageFilter):
        return UsageTrigger(usage_tests(model))
    if isinstance(model, Presence):
        fences = book.choose(model, file, where, faults)
        threshold_s = 0
        if isinstance(model, Dwell):
            threshold_s = model.span // 1000
            if model.span < 1000 or model.span > 86_400_000 or model.span % 1000:
                shown_span = Shown(f"{model.span / 1000:g} s")
                faults.add(file, f"{where}.for", shown_span, "whole seconds, from 1 s to 1 day")
        confidence = Confidence[model.min_confidence] if model.min_confidence else None
        return PresenceTrigger(kind, fences, threshold_s, confidence)
    definition = {
        name: _pattern_part(getattr(model, name), book, file, f"{where}.{name}", faults)
        for name in model.model_fields_set
    }
    return PatternTrigger(kind, definition)


def _pattern_part(value: Any, book: FenceBook, file: str, where: str, faults: Faults) -> Any:
    """Turn a part of a pattern into plain values: spans in milliseconds, steps as trigger definitions."""
    if isinstance(value, list):
        return tuple(_pattern_part(one, book, file, f"{where}[{at}]", faults) for at, one in enumerate(value))
    if not isinstance(value, Step):
        return value
    if value.usage is not None:
        return UsageTrigger(usage_tests(value.usage))
    kind = "enter" if value.enter is not None else "exit"
    choice: Presence = getattr(value, kind)
    return PresenceTrigger(kind, book.choose(choice, file, f"{where}.{kind}", faults))


def usage_tests(usage: UsageFilter) -> tuple[FieldTest, ...]:
    """Turn a filter into tests in a fixed order."""
    named: list[tuple[str, Matcher | None]] = [
        ("app", usage.app),
        ("category", usage.category),
        ("action", usage.action),
        *((f"props.{name}", match) for name, match in sorted(usage.props.items())),
    ]
    return tuple(_field_test(name, match) for name, match in named if match is not None)


def _field_test(name: str, match: Matcher) -> FieldTest:
    if match.is_ is not None:
        return FieldTest(name, "==", match.is_)
    if match.in_ is not None:
        return FieldTest(name, "in", tuple(match.in_))
    if match.starts_with is not None:
        return FieldTest(name, "prefix", match.starts_with)
    return FieldTest(name, "range", (match.at_least, match.below))


def audience_expression(condition: ConditionModel) -> Expression:
    """Turn a checked condition into an expression; several comparisons or groups in one mapping all have to hold."""
    if condition.tag is not None:
        return HasTag(condition.tag)
    if condition.organisation is not None:
        return InOrganisation(condition.organisation)
    parts: list[Expression] = []
    if condition.attribute is not None:
        for name, op in COMPARISONS.items():
            value = getattr(condition, name)
            if value is not None:
                parts.append(Compare(condition.attribute, op, tuple(value) if isinstance(value, list) else value))
    for group, kind in ((condition.all_, Every), (condition.any_, Some), (condition.none_, Neither)):
        if group is not None:
            parts.append(kind(tuple(audience_expression(one) for one in group)))
    return parts[0] if len(parts) == 1 else Every(tuple(parts))


def contradiction(expression: Expression | None) -> str | None:
    """Name a tag that the audience both requires and excludes, if there is one."""
    required: set[str] = set()
    excluded: set[str] = set()

    def collect(part: Expression) -> None:
        if isinstance(part, HasTag):
            required.add(part.tag)
        elif isinstance(part, Every):
            for one in part.parts:
                collect(one)
        elif isinstance(part, Neither):
            excluded.update(one.tag for one in part.parts if isinstance(one, HasTag))

    if expression is not None:
        collect(expression)
    return min(required & excluded, default=None)


def thresholds_by_fence(triggers: Mapping[str, TriggerDefinition]) -> dict[str, set[int]]:
    """Collect the dwell thresholds each fence has to keep (rule P4)."""
    found: dict[str, set[int]] = {}
    for trigger in triggers.values():
        if isinstance(trigger, PresenceTrigger) and trigger.kind == "dwell":
            for fence in trigger.fences:
                found.setdefault(fence, set()).add(trigger.threshold_s)
    return found
