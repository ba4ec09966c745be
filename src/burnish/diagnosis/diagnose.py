"""One trajectory in, one diagnosis out: constraints, difference from the reference, ranking."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from burnish.core.errors import ConfigError
from burnish.diagnosis.claims import claim_constraints
from burnish.diagnosis.constraint import Constraint, Log, Violation, check_all
from burnish.diagnosis.difference import Difference, Replayer, difference
from burnish.diagnosis.hypotheses import Hypothesis, hypotheses
from burnish.diagnosis.localise import PRIOR, Ranking, Suspect, Weights, none_features, rank
from burnish.diagnosis.own_rules import own_constraints
from burnish.diagnosis.plain import RecordError, mapping, parse_json, real
from burnish.diagnosis.policy import NO_POLICY, Policy
from burnish.diagnosis.record import Record
from burnish.diagnosis.schemas import schema_constraints
from burnish.diagnosis.talk import LEAVES, is_mere_consent
from burnish.diagnosis.taxonomy import Category, Fault
from burnish.diagnosis.team_rules import team_constraints
from burnish.diagnosis.view import View, speaker

TEMPERATURE = 2.0
"""Of chances where no rules of the domain are known: the weights were fitted with such rules, and claim too much."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """Weights with and without a reference, lifts of constraints, and when a run is accused.

    `Model()` is the judgement that no data has touched.  accuse_at, accuse_blind_at: a run is accused where the chance
    that something went wrong is at least this much, with and without a reference.
    """

    with_reference: Weights = field(default_factory=Weights)
    blind: Weights = field(default_factory=Weights)
    lifts: Mapping[str, float] = field(default_factory=dict)
    accuse_at: float = 0.5
    accuse_blind_at: float = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What is thought to have gone wrong in one trajectory.

    suspects: likeliest first; chances under "something went wrong" where the run is known to have failed, else beside
    `p_none`.  accused: whether that is enough to say so; where it is not, the answer is "don't know".  critical: the
    first suspect of an accused run.  judged: a judge has had a word in it; unjudged: why
    one that was asked has not.
    """

    record_id: str
    suspects: tuple[Suspect, ...]
    p_none: float
    accused: bool
    log: Log
    difference: Difference
    judged: bool = False
    unjudged: str = ""

    @property
    def critical(self) -> Suspect | None:
        """The critical step, None for "don't know"."""
        return self.suspects[0] if self.accused and self.suspects else None


@dataclass
class Engine:
    """Everything that is the same for all trajectories.  `Engine(policy=load_policy(path)).diagnose(record)`

    generated: constraints that a model gave and that may vote (see `generated`).
    """

    policy: Policy = NO_POLICY
    model: Model = field(default_factory=Model)
    generated: tuple[Constraint, ...] = ()
    replayer: Replayer | None = None

    @cached_property
    def constraints(self) -> tuple[Constraint, ...]:
        """All constraints; the policy's own rule of confirmation takes the place of the general one."""
        own = own_constraints()
        if any("confirm" in constraint.id for constraint in self.policy.constraints):
            own = tuple(constraint for constraint in own if constraint.id != "consent")
        claims = claim_constraints(self.policy.values)
        return (*schema_constraints(), *self.policy.constraints, *own, *claims, *team_constraints(), *self.generated)

    def look(self, record: Record, *, use_reference: bool = True) -> tuple[View, Log, Difference]:
        """What can be said before anything is weighed."""
        view = View(record=record, kinds=self.policy.kinds)
        log = check_all(view, self.constraints)
        return view, log, difference(view, record.reference if use_reference else None, self.replayer)

    def diagnose(self, record: Record, *, use_reference: bool = True, known_failed: bool | None = None) -> Diagnosis:
        """The diagnosis of one record.

        known_failed: True asks only where (the run is accused whatever it looks like); None: what the record says;
        False: hides the outcome.
        """
        view, log, found = self.look(record, use_reference=use_reference)
        failed = record.passed is False if known_failed is None else known_failed
        return self.weigh(view, log, found, failed=failed)

    def weigh(self, view: View, log: Log, found: Difference, *, failed: bool) -> Diagnosis:
        """The diagnosis of what `look` has seen.  failed: that it did is known."""
        ranking = self.rank(view, self.cases(view, log, found), found)
        suspects, threshold = ranking.suspects, self.model.accuse_at if found.compared else self.model.accuse_blind_at
        if not self.policy.constraints:
            suspects = _tempered(suspects)
        if failed and ranking.p_none < 1.0:
            suspects = tuple(_scaled(s, 1.0 / max(1e-12, 1.0 - ranking.p_none)) for s in suspects)
        return Diagnosis(
            record_id=view.record.id,
            suspects=suspects,
            p_none=0.0 if failed else ranking.p_none,
            accused=bool(suspects) and (failed or 1.0 - ranking.p_none >= threshold),
            log=log,
            difference=found,
        )

    def cases(self, view: View, log: Log, found: Difference) -> tuple[Hypothesis, ...]:
        """The hypotheses that are ranked, and that weights are fitted on."""
        return self._arguable(view, hypotheses(view, log, found, self.model.lifts), found)

    def _arguable(self, view: View, cases: tuple[Hypothesis, ...], found: Difference) -> tuple[Hypothesis, ...]:
        """Without those against others than the agent for which there is no evidence.

        A policy that finds nothing speaks for the agent and so against the user, except where the user only agreed or
        took leave.  Without a policy and a reference, to find nothing says nothing: the agent is the rule.
        """

        def stands(case: Hypothesis) -> bool:
            if case.why or case.owner is Fault.AGENT:
                return True
            if case.owner is not Fault.USER:
                return False
            ruled = bool(self.policy.constraints) or found.compared
            text = view.items[case.position].text
            return ruled and LEAVES.search(text) is None and not is_mere_consent(text)

        return tuple(case for case in cases if stands(case)) or cases

    def rank(self, view: View, cases: tuple[Hypothesis, ...], found: Difference) -> Ranking:
        """Suspects of a trajectory by the weights that fit what is known about it."""
        weights = self.model.with_reference if found.compared else self.model.blind
        indices = [item.index for item in view.items]
        ranking = rank(cases, none_features(found.compared, found.is_clean), weights, indices)
        members = [speaker(item) for item in view.items]
        if not any(members):
            return ranking
        return replace(ranking, suspects=tuple(replace(s, agent=members[s.position]) for s in ranking.suspects))


def _tempered(suspects: tuple[Suspect, ...]) -> tuple[Suspect, ...]:
    """Chances to the power 1 / TEMPERATURE with the sum that they had (temperature scaling, Guo et al. 2017)."""
    powers = [s.p ** (1.0 / TEMPERATURE) for s in suspects]
    scale = sum(s.p for s in suspects) / max(1e-300, sum(powers))
    return tuple(replace(s, p=min(1.0, power * scale)) for s, power in zip(suspects, powers, strict=True))


def _scaled(suspect: Suspect, by: float) -> Suspect:
    return replace(suspect, p=min(1.0, suspect.p * by))


def load_model(path: Path) -> Model:
    """Weights from a file that `model_json` wrote.  Raises ConfigError."""
    try:
        data = mapping(parse_json(path.read_text(encoding="utf-8")), "a model")
        tables = {key: _numbers(data.get(key), key) for key in ("with_reference", "blind", "lifts")}
    except (OSError, UnicodeDecodeError, RecordError) as error:
        raise ConfigError(f"{path} cannot be read as weights of a diagnosis: {error}") from error
    return Model(
        with_reference=Weights(values=tables["with_reference"] or dict(PRIOR)),
        blind=Weights(values=tables["blind"] or dict(PRIOR)),
        lifts=tables["lifts"],
        accuse_at=real(data.get("accuse_at")) or 0.5,
        accuse_blind_at=real(data.get("accuse_blind_at")) or 0.5,
    )


def _numbers(value: Any, name: str) -> dict[str, float]:
    table = mapping(value or {}, name)
    found = {str(key): real(item) for key, item in table.items()}
    bad = [key for key, item in found.items() if item is None]
    if bad:
        raise RecordError(f"{name}.{bad[0]} must be a number")
    return {key: item for key, item in found.items() if item is not None}


def model_json(model: Model) -> str:
    """The model as JSON text."""
    return json.dumps(
        {
            "accuse_at": model.accuse_at,
            "accuse_blind_at": model.accuse_blind_at,
            "lifts": {k: round(v, 4) for k, v in sorted(model.lifts.items())},
            "with_reference": dict(sorted(model.with_reference.values.items())),
            "blind": dict(sorted(model.blind.values.items())),
        },
        indent=1,
    )


def diagnosis_json(diagnosis: Diagnosis, top: int = 5) -> dict[str, Any]:
    """A diagnosis as a row of JSON, keyed by the record's id; indices are the source's numbers of messages."""
    critical = diagnosis.critical
    return {
        "trajectory_id": diagnosis.record_id,
        "accused": diagnosis.accused,
        "unit": "message index",
        "critical_step": critical.index if critical else None,
        "category": str(critical.category) if critical else None,
        "owner": str(critical.owner) if critical else str(Fault.UNKNOWN),
        "agent": critical.agent if critical else "",
        "p_none": round(diagnosis.p_none, 4),
        "suspects": [
            {
                "index": s.index,
                "p": round(s.p, 4),
                "category": str(s.category),
                "owner": str(s.owner),
                "agent": s.agent,
                "why": list(s.why),
            }
            for s in diagnosis.suspects[:top]
        ],
        "departures": [
            {
                "kind": str(d.kind),
                "tool": d.call.name if d.call else d.wanted.name if d.wanted else "",
                "fields": {c.name: {"given": list(c.given), "wanted": list(c.wanted)} for c in d.fields},
            }
            for d in diagnosis.difference.departures
        ],
        "untold": list(diagnosis.difference.untold),
        "violations": [violation_json(violation) for violation in diagnosis.log.violations],
        "judged": diagnosis.judged,
        "unjudged": diagnosis.unjudged,
    }


def violation_json(violation: Violation) -> dict[str, Any]:
    """A row of the violation log."""
    return {
        "constraint": violation.constraint,
        "origin": violation.origin,
        "index": violation.index,
        "severity": violation.severity,
        "category": str(Category(violation.category)),
        "owner": str(violation.owner),
        "why": violation.why,
        "quote": violation.quote,
        "also": list(violation.also),
    }
