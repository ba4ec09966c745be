"""Constraints that a model wrote: admitted only after they compiled, fired, held, and left passing runs alone.

They come in the form of policy rules (`policy.compile_rule`): data, so that nothing a model wrote is ever executed.
Each proposal brings witnesses: records in any readable form on which it must fire and on which it must hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from burnish.core.errors import ConfigError
from burnish.diagnosis.calibration import VACUOUS_AFTER, Worth, worths
from burnish.diagnosis.constraint import Constraint, Log, check_all
from burnish.diagnosis.formats.chat import read_chat
from burnish.diagnosis.plain import RecordError, listed, mapping, name_of
from burnish.diagnosis.policy import compile_rule
from burnish.diagnosis.record import Record
from burnish.diagnosis.view import ToolKinds, View

MAX_PROPOSALS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """What became of one proposal.  `Admission(name="confirm", refused="fires in 60 of 73 passing runs")`

    constraint: set where it was admitted; refused: why it was not; worth: its figures where it came that far.
    """

    name: str
    constraint: Constraint | None = None
    refused: str = ""
    worth: Worth | None = None


def admit(proposals: Any, passing: Iterable[Record], kinds: ToolKinds | None = None) -> list[Admission]:
    """Every proposal with its verdict.

    proposals: list of `{rule: {...}, fires_on: [chat records], holds_on: [chat records]}`.  passing: runs in which
    nothing failed; without any, nothing is admitted.  Raises RecordError where proposals is no list.
    """
    views = [View(record=record, kinds=kinds or ToolKinds()) for record in passing]
    return [_admit(row, views, kinds or ToolKinds()) for row in listed(proposals, "proposals")[:MAX_PROPOSALS]]


def _admit(row: Any, passing: Sequence[View], kinds: ToolKinds) -> Admission:
    name = "?"
    try:
        data = mapping(row, "a proposal")
        rule = mapping(data.get("rule"), "rule")
        name = name_of(rule.get("id")) or "?"
        constraint = replace(compile_rule(rule, "generated"), id=f"generated:{name}", origin="generated")
        fires = _views(data, "fires_on", kinds)
        holds = _views(data, "holds_on", kinds)
    except (ConfigError, RecordError) as error:
        return Admission(name=name, refused=f"does not compile: {error}")
    if not fires or any(not check_all(view, [constraint]).violations for view in fires):
        return Admission(name=name, refused="it does not fire on a witness that it should fire on")
    if not holds or any(not _passes(check_all(view, [constraint])) for view in holds):
        return Admission(name=name, refused="it does not hold on a witness that it should hold on")
    return _calibrated(name, constraint, passing)


def _views(data: Mapping[str, Any], key: str, kinds: ToolKinds) -> list[View]:
    rows = listed(data.get(key), key)[:20]
    return [View(record=read_chat(row, number), kinds=kinds) for number, row in enumerate(rows, start=1)]


def _passes(log: Log) -> bool:
    """It was checked, and it held."""
    return not log.violations and any(counts[0] for counts in log.verdicts.values())


def _calibrated(name: str, constraint: Constraint, passing: Sequence[View]) -> Admission:
    logs = [check_all(view, [constraint]) for view in passing]
    worth = worths(logs, ()).get(constraint.id)
    if not passing or worth is None:
        return Admission(name=name, refused="it applied in no passing run, so nothing is known of it")
    fired = f"fires in {worth.passing} of {worth.passing_runs} passing runs"
    if not worth.may_vote and not worth.vacuous:
        return Admission(name=name, refused=fired, worth=worth)
    checks = sum(sum(log.verdicts.get(constraint.id, [0, 0, 0])) for log in logs)
    decided = sum(sum(log.verdicts.get(constraint.id, [0, 0, 0])[:2]) for log in logs)
    if checks >= VACUOUS_AFTER and not decided:
        return Admission(name=name, refused=f"vacuous: {checks} checks decided nothing", worth=worth)
    return Admission(name=name, constraint=constraint, worth=worth)
