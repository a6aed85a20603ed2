"""Checked triggers and audiences to definitions: fences resolved, words turned into tests."""

from __future__ import annotations

import collections.abc
from collections.abc import Mapping

from engine.content.conditions import COMPARISONS, ConditionModel, FenceChoice, Matcher, UsageFilter
from engine.content.faults import Faults, Shown, did_you_mean
from engine.content.trigger_model import (
    TRIGGERS,
    Absence,
    Count,
    Dwell,
    Presence,
    Sequence,
    Step,
    Sum,
    Trigger,
    While,
)
from engine.content.versions import definition_hash
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
from engine.definitions import While as WhileDefinition
from engine.model import Confidence

SHORTEST_SPAN_MS, LONGEST_SPAN_MS = 1_000, 31 * 86_400_000
FIELDS = ("app", "category", "action", "fence", "props.")


class FenceBook:
    """The fences by id, kind, tag and owner, for choices."""

    def __init__(self, fences: collections.abc.Sequence[Fence]) -> None:
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
        check_named(model, file, where, faults)
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
    return pattern_definition(kind, model, book, file, where, faults)


def pattern_definition(
    kind: str, model: Count | Sum | Sequence | Absence, book: FenceBook, file: str, where: str, faults: Faults
) -> PatternTrigger:
    """Turn a checked pattern into its definition: steps as trigger definitions, spans in milliseconds."""
    if isinstance(model, Sequence):
        given = [(f"{where}.steps[{at}]", step) for at, step in enumerate(model.steps)]
    elif isinstance(model, Absence):
        given = [(f"{where}.after", model.after), (f"{where}.without", model.without)]
    else:
        given = [(f"{where}.of", model.of)]
    steps = tuple(_step(step, book, file, path, faults) for path, step in given)
    if not SHORTEST_SPAN_MS <= model.within <= LONGEST_SPAN_MS:
        shown = Shown(f"{model.within / 1000:g} s")
        faults.add(file, f"{where}.within", shown, "a span from 1 s to 31 days")
    for name in ("field", "same"):
        field = getattr(model, name, None)
        if field is not None:
            _check_field(field, name, kind, steps, file, f"{where}.{name}", faults)
    return PatternTrigger(
        kind,
        steps,
        model.within,
        getattr(model, "at_least", 1),
        getattr(model, "field", ""),
        getattr(model, "same", None) or "",
        definition_hash(kind, model.model_dump(mode="json", exclude_defaults=True)),
    )


def _check_field(
    field: str,
    name: str,
    kind: str,
    steps: tuple[UsageTrigger | PresenceTrigger, ...],
    file: str,
    where: str,
    faults: Faults,
) -> None:
    """See that every step has the field: props.<name> and names are of usage events, `fence` of transitions."""
    is_prop = field.startswith("props.") and len(field) > 6
    if kind == "sum" and not is_prop:
        faults.add(file, where, field, "props.<name>, a number")
        return
    usage = is_prop or field in ("app", "category", "action")
    if not usage and field != "fence":
        faults.add(file, where, field, "app, category, action, props.<name> or fence", did_you_mean(field, FIELDS))
    elif any(isinstance(step, UsageTrigger) != usage for step in steps):
        of = "a transition" if usage else "a usage event"
        hint = "usage events have app, category, action and props; enter and exit have fence"
        faults.add(file, where, Shown(f"{field}, which {of} does not have"), "a field that every step has", hint)


def _step(step: Step, book: FenceBook, file: str, where: str, faults: Faults) -> UsageTrigger | PresenceTrigger:
    if step.usage is not None:
        check_named(step.usage, file, f"{where}.usage", faults)
        return UsageTrigger(usage_tests(step.usage))
    kind = "enter" if step.enter is not None else "exit"
    choice: Presence = getattr(step, kind)
    confidence = Confidence[choice.min_confidence] if choice.min_confidence else None
    return PresenceTrigger(kind, book.choose(choice, file, f"{where}.{kind}", faults), 0, confidence)


def check_named(usage: UsageFilter, file: str, where: str, faults: Faults) -> None:
    """See that the filter names an app, category or action: by these events are found without reading all of them."""
    names = (usage.app, usage.category, usage.action)
    if not any(match is not None and (match.is_ is not None or match.in_) for match in names):
        hint = "a beginning (starts_with) or a property alone would mean to read every event"
        faults.add(file, where, Shown("no name"), "an app, category or action, as a value or a list", hint)


def conditions(given: While | None, book: FenceBook, file: str, faults: Faults) -> WhileDefinition | None:
    """Turn `while` into its definition (rule B4)."""
    if given is None:
        return None
    inside: tuple[str, ...] = ()
    if given.inside is not None:
        inside = book.choose(given.inside, file, "$.while.inside", faults)
    pattern = None
    if given.pattern is not None:
        pattern = pattern_definition("count", given.pattern, book, file, "$.while.pattern", faults)
    return WhileDefinition(inside, pattern)


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
