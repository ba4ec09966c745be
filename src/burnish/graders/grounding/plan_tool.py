"""A tool that executes a plan: facts, actions with what they need and change, and a goal, in the manner of STRIPS.

`reference["grounding"]["plan"]`:

    {"initial": ["on(apple, shelf)"], "goal": ["on(apple, table)"],
     "actions": {"put": {"parameters": ["what", "where"], "needs": ["holding(what)"],
                         "adds": ["on(what, where)"], "removes": ["holding(what)"]}}}
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from burnish.core.detector import Detector
from burnish.core.task import Task
from burnish.graders.evidence import Action
from burnish.graders.grounding.result import Case, Component, ToolResult
from burnish.graders.grounding.spec import Expected, GroundingSpec

MAX_STEPS = 200
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """How a plan went.  `Execution(reached=0.5, legal=2, n_steps=3, problem="step 3: ...")`

    reached: share of the goal's facts that hold at the end.  legal: steps before the first illegal one.
    """

    reached: float
    legal: int
    n_steps: int
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanExecutor:
    """The share of the goal that a plan reaches, up to its first illegal step; an illegal step halves what is left.

    1 only for a legal plan that reaches the whole goal.  Actions mark where they act by name, so a task that wants
    grounded plans also expects points.
    """

    name: str = "plan_executor"
    version: str = "1"
    component: Component = Component.PROCESS
    cost_ms: float = 0.2

    def applies(self, task: Task, spec: GroundingSpec) -> bool:
        return Expected.PLAN in spec.expected and bool(spec.plan)

    def available(self, spec: GroundingSpec, detectors: Sequence[Detector]) -> str:
        return ""

    def verify(self, case: Case) -> ToolResult:
        done = execute(case.parsed.actions, case.spec.plan)
        score = done.reached if not done.problem else done.reached / 2
        return ToolResult(
            tool=self.name,
            component=self.component,
            score=score,
            detail={
                "success": score == 1.0,
                "reached": done.reached,
                "legal": done.legal,
                "n_steps": done.n_steps,
                "problem": done.problem,
            },
        )


def execute(actions: Sequence[Action], plan: Mapping[str, Any]) -> Execution:
    """Run a plan; names the first illegal step and why.  An empty plan reaches nothing, whatever holds already.

    >>> world = {"initial": [], "goal": ["lit"], "actions": {"light": {"adds": ["lit"]}}}
    >>> execute([Action(verb="light")], world).reached
    1.0
    """
    facts = {_plain(fact) for fact in plan["initial"]}
    goal = {_plain(fact) for fact in plan["goal"]}
    legal, problem = 0, ""
    for number, action in enumerate(actions[:MAX_STEPS], 1):
        problem = _step(action, plan["actions"], facts)
        if problem:
            problem = f"step {number}, {action.verb}({', '.join(action.arguments)}): {problem}"
            break
        legal = number
    if len(actions) > MAX_STEPS:
        problem = problem or f"more than {MAX_STEPS} steps"
    reached = len(goal & facts) / len(goal) if legal and goal else 0.0
    return Execution(reached=reached, legal=legal, n_steps=len(actions), problem=problem)


def _step(action: Action, known: Mapping[str, Any], facts: set[str]) -> str:
    """Change `facts`; or say why the step is illegal."""
    if action.verb not in known:
        return f"no such action; there are {', '.join(sorted(known))}"
    rule = known[action.verb]
    names = rule.get("parameters", ())
    if len(names) != len(action.arguments):
        return f"takes {len(names)} arguments"
    bound = dict(zip(names, (_plain(argument) for argument in action.arguments), strict=True))

    def filled(items: Sequence[str]) -> set[str]:
        return {_plain(_WORD.sub(lambda word: bound.get(word[0], word[0]), item)) for item in items}

    missing = filled(rule.get("needs", ())) - facts
    if missing:
        return f"needs {sorted(missing)[0]}"
    facts -= filled(rule.get("removes", ()))
    facts |= filled(rule.get("adds", ()))
    return ""


def _plain(text: str) -> str:
    return "".join(text.split()).lower()
