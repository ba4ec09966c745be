"""The grader graph: nodes, what they end in, and the file that describes both.

The file is TOML; docs/graders.md explains it:

    [aggregator]
    kind = "weighted_sum"

    [graders.format]
    use = "my_graders.py:well_formed"
    gate = 1.0
    weight = 0.0

    [graders.answer]
    use = "math"
    requires = ["format"]
    weight = [[0.0, 0.2], [0.5, 1.0]]
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from burnish.core.errors import ConfigError
from burnish.core.grade import Aggregator, Grade, Grader
from burnish.core.hints import did_you_mean
from burnish.core.judge import Judge
from burnish.graders.aggregate import (
    LexicographicGate,
    NormalisedSum,
    RelativeRank,
    ShareOfBest,
    WeightedSum,
)
from burnish.graders.annealed import AnnealedWeight
from burnish.graders.gated import GatedAggregator, GatedShare, GateNodes, GateSpec
from burnish.graders.graph_files import GraphFiles
from burnish.graders.importing import imported
from burnish.graders.integrity.penalty import Penalised
from burnish.graders.isolated import IsolatedGrader
from burnish.graders.judge_spec import JudgeSpec, MakeJudge, make_judge
from burnish.graders.node import GraderNode, WeightSchedule, as_nodes
from burnish.graders.registry import make_grader


class AggregatorKind(StrEnum):
    """What a graph may end in; `aggregate` and `gated` have the formulas."""

    WEIGHTED_SUM = "weighted_sum"
    NORMALISED_SUM = "normalised_sum"
    RELATIVE_RANK = "relative_rank"
    LEXICOGRAPHIC = "lexicographic"
    GATED = "gated"


_SUMS = {
    AggregatorKind.WEIGHTED_SUM: WeightedSum,
    AggregatorKind.NORMALISED_SUM: NormalisedSum,
    AggregatorKind.RELATIVE_RANK: RelativeRank,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduledAggregator:
    """An aggregator whose weights change over training.

    `at` gives the one of a moment; asked for rewards itself, it is the one of the end.  tiers: name and passing score,
    for the lexicographic kind alone.  preference: graders that count in training and not in held-out results.
    gate: for the gated kind alone.  integrity: name of the integrity grader whose flags come first, "" for none;
    penalty: what proven cheating costs.

    `ScheduledAggregator(kind=AggregatorKind.WEIGHTED_SUM, weights={"tests": WeightSchedule.constant(1.0)})`
    """

    kind: AggregatorKind
    weights: Mapping[str, WeightSchedule]
    tiers: tuple[tuple[str, float], ...] = ()
    preference: tuple[str, ...] = ()
    gate: GateNodes | None = None
    integrity: str = ""
    penalty: float = 1.0

    def at(self, share: float) -> WeightedSum:
        """The aggregator after a share of training, in [0, 1]."""
        inner = self._plain(share)
        return Penalised(inner, penalty=self.penalty, integrity=self.integrity) if self.integrity else inner

    def _plain(self, share: float) -> WeightedSum:
        weights = {name: schedule.at(share) for name, schedule in self.weights.items()}
        if self.kind is AggregatorKind.LEXICOGRAPHIC:
            return LexicographicGate(self.tiers, {name: weights[name] for name, _ in self.tiers})
        if self.gate is not None:
            return GatedAggregator(weights, self.gate)
        return _SUMS[self.kind](weights)

    def rewards(self, grades_G: Sequence[Sequence[Grade]]) -> list[float | None]:
        """One reward for each member, by the weights at the end of training."""
        return self.at(1.0).rewards(grades_G)

    @property
    def evaluation(self) -> Aggregator:
        """For held-out results: the verifiable graders with the weights of the end, on a scale from 0 to 1, without
        competition among members."""
        inner = self._plain_evaluation()
        return Penalised(inner, penalty=0.0, integrity=self.integrity) if self.integrity else inner

    def _plain_evaluation(self) -> Aggregator:
        if self.kind is AggregatorKind.LEXICOGRAPHIC:
            tiers = tuple((name, passed_at) for name, passed_at in self.tiers if name not in self.preference)
            return _LexicographicShare(replace(self, tiers=tiers, integrity=""))
        weights = {name: schedule.at(1.0) for name, schedule in self.weights.items() if name not in self.preference}
        return ShareOfBest(weights) if self.gate is None else GatedShare(GatedAggregator(weights, self.gate))


@dataclass(frozen=True, slots=True)
class _LexicographicShare:
    """The lexicographic reward over the largest possible one."""

    whole: ScheduledAggregator

    def rewards(self, grades_G: Sequence[Sequence[Grade]]) -> list[float | None]:
        best = sum(self.whole.weights[name].at(1.0) for name, _ in self.whole.tiers) or 1.0
        return [None if reward is None else reward / best for reward in self.whole.rewards(grades_G)]


def aggregator_at(aggregator: Aggregator, share: float) -> Aggregator:
    """The aggregator after a share of training; one without a schedule is the same all along."""
    return aggregator.at(share) if isinstance(aggregator, ScheduledAggregator) else aggregator


def for_evaluation(aggregator: Aggregator) -> Aggregator:
    """The aggregator for held-out results, where all episodes are handed over as one group."""
    return aggregator.evaluation if isinstance(aggregator, ScheduledAggregator) else aggregator


@dataclass(frozen=True, slots=True, kw_only=True)
class GraderGraph:
    """Nodes and what they end in; `graders` goes to `grade_trajectories`, `aggregator` to whoever makes rewards.

    files: name -> text of the files that the graph names.

    `GraderGraph.of([GraderNode(grader=ExactGrader())])`
    """

    nodes: tuple[GraderNode, ...]
    aggregator: ScheduledAggregator
    files: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def of(
        graders: Sequence[Grader | GraderNode],
        kind: AggregatorKind = AggregatorKind.WEIGHTED_SUM,
        *,
        order: Sequence[str] = (),
        passed_at: Mapping[str, float] | None = None,
        gate: GateNodes | None = None,
        integrity: str = "",
        penalty: float = 1.0,
    ) -> GraderGraph:
        """A checked graph.  order, passed_at: of a lexicographic one (default: passed by a score of 1).  gate: of a
        gated one.  integrity: the node whose flags come before every score; it has no weight of its own.  penalty: what
        proven cheating costs.

        Raises ConfigError where it is none, or where no reward could come of it.
        """
        nodes = as_nodes(graders)
        if integrity and integrity not in [node.name for node in nodes]:
            raise ConfigError(f"integrity names {integrity!r}, which is not in the graph")
        Penalised(WeightedSum(), penalty=penalty)
        weights = {node.name: node.weight for node in nodes if node.name != integrity}
        passed = dict.fromkeys(order, 1.0) | dict(passed_at or {})
        if kind is not AggregatorKind.LEXICOGRAPHIC and (order or passed):
            raise ConfigError(f"order and passed_at belong to the lexicographic aggregator, not to {kind}")
        if kind is AggregatorKind.LEXICOGRAPHIC and not order:
            raise ConfigError("the lexicographic aggregator needs order = [...], the most important grader first")
        if unknown := [name for name in passed if name not in weights]:
            raise ConfigError(f"the aggregator names {unknown[0]!r}, which is not in the graph: {', '.join(weights)}")
        if unordered := [name for name in passed if name not in order]:
            raise ConfigError(f"passed_at names {unordered[0]!r}, which is not in order = {list(order)}")
        if len(set(order)) < len(order):
            raise ConfigError(f"the lexicographic order names a grader twice: {list(order)}")
        _check_gate(kind, gate, weights)
        preference = tuple(node.name for node in nodes if node.preference)
        aggregator = ScheduledAggregator(
            kind=kind,
            weights=weights,
            tiers=tuple((name, passed[name]) for name in order),
            preference=preference,
            gate=gate,
            integrity=integrity,
            penalty=penalty,
        )
        counted = [weights[name] for name in order] if order else list(weights.values())
        if not any(weight for schedule in counted for _, weight in schedule.points):
            raise ConfigError("every weight is 0; no reward can come of this graph")
        if not any(weights[name].at(1.0) > 0 for name in order or weights if name not in preference):
            raise ConfigError(
                "no verifiable grader has a weight above 0 at the end of training, so nothing would be left to "
                f"measure held-out success by; preferences are {', '.join(preference) or 'none'}"
            )
        for share in (point for schedule in counted for point, _ in schedule.points):
            aggregator.at(share)
        return GraderGraph(nodes=nodes, aggregator=aggregator)

    @property
    def graders(self) -> tuple[Grader, ...]:
        """The nodes, as graders."""
        return cast("tuple[Grader, ...]", self.nodes)


def _check_gate(kind: AggregatorKind, gate: GateNodes | None, known: Mapping[str, WeightSchedule]) -> None:
    """Raises ConfigError where a gated graph has no gate, another one has, or the gate names no grader of the graph."""
    if (kind is AggregatorKind.GATED) != (gate is not None):
        raise ConfigError(f"a gate belongs to the gated aggregator, and each of those has one; this is {kind}")
    if gate is None:
        return
    for key, name in (("answer", gate.answer), ("form", gate.form)):
        if name and name not in known:
            raise ConfigError(f"the gate's {key} is {name!r}, which is not in the graph: {', '.join(known)}")
    if gate.answer == gate.form:
        raise ConfigError(f"the gate's answer and form are one grader, {gate.answer!r}; name two")


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class _Fading(_File):
    """`weight = { start = 0.5, half_life = 0.1 }`."""

    start: float
    half_life: float
    off_below: float = 0.01


class _NodeSection(_File):
    """One `[graders.NAME]`."""

    use: str
    options: dict[str, Any] = Field(default_factory=dict)
    requires: tuple[str, ...] = ()
    gate: float | None = None
    weight: float | tuple[tuple[float, float], ...] | _Fading = 1.0
    cost_s: float = 0.0
    timeout_s: float | None = None
    parallel: int = 0
    isolate: bool = False
    preference: bool = False
    judge: str | tuple[str, ...] = ()

    @property
    def judges(self) -> tuple[str, ...]:
        """Names of its judges."""
        return (self.judge,) if isinstance(self.judge, str) else self.judge


class _AggregatorSection(_File):
    """`[aggregator]`."""

    kind: AggregatorKind = AggregatorKind.WEIGHTED_SUM
    order: tuple[str, ...] = ()
    passed_at: dict[str, float] = Field(default_factory=dict)
    integrity: str = ""
    penalty: float = 1.0
    answer: str = "answer"
    form: str = ""
    tau: float = 1.0
    bonus: float = 0.5
    w_format: float = 0.1

    def gate(self) -> GateNodes | None:
        """The gate of a gated aggregator; raises ConfigError where another one has its keys."""
        if self.kind is AggregatorKind.GATED:
            spec = GateSpec(tau=self.tau, bonus=self.bonus, w_format=self.w_format)
            return GateNodes(answer=self.answer, form=self.form, spec=spec)
        if given := sorted(self.model_fields_set & {"answer", "form", "tau", "bonus", "w_format"}):
            raise ConfigError(f"{given[0]} belongs to the gated aggregator, not to {self.kind}")
        return None


class _GraphFile(_File):
    aggregator: _AggregatorSection = _AggregatorSection()
    judges: dict[str, JudgeSpec] = Field(default_factory=dict)
    graders: dict[str, _NodeSection] = Field(min_length=1)


def load_graph(
    path: Path | str, *, resources: Mapping[str, Any] | None = None, judges: MakeJudge = make_judge
) -> GraderGraph:
    """The graph that a TOML file describes; files that it names are found beside it.

    resources: what graders are handed by name, such as a sandbox.  judges: makes those of the file.  Raises ConfigError
    with file and key, StoreError where the cache of a judge cannot be opened.
    """
    path = Path(path)
    return parse_graph(read_graph(path), path, resources=resources, judges=judges)


def read_graph(path: Path) -> str:
    """The text of a graph's file.  Raises ConfigError where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"grader graph {path} cannot be read: {error}") from error


def parse_graph(
    text: str,
    path: Path,
    *,
    kept: Mapping[str, str] | None = None,
    resources: Mapping[str, Any] | None = None,
    judges: MakeJudge = make_judge,
) -> GraderGraph:
    """The graph of a text that stands, or once stood, in `path`; see `load_graph`.  kept: texts of the files that it
    names, by name, which go before what lies beside it now."""
    try:
        with GraphFiles(path.resolve().parent, kept) as files:
            return graph_from(tomllib.loads(text), files=files, resources=resources, judges=judges)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"grader graph {path} cannot be read: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def graph_from(
    data: Mapping[str, Any],
    *,
    files: GraphFiles | None = None,
    resources: Mapping[str, Any] | None = None,
    judges: MakeJudge = make_judge,
) -> GraderGraph:
    """The graph of a parsed file.  files: those that it names; default: of the working folder.

    >>> graph_from({"graders": {"answer": {"use": "exact"}}}).graders[0].name
    'answer'
    """
    try:
        file = _GraphFile.model_validate(data)
    except ValidationError as error:
        raise ConfigError(_explained(error)) from error
    files = files or GraphFiles(Path.cwd())
    made = {name: _judge(name, spec, files, judges) for name, spec in file.judges.items()}
    _check_judges(file)
    nodes = [_node(name, section, files, resources or {}, made) for name, section in file.graders.items()]
    end = file.aggregator
    graph = GraderGraph.of(
        nodes,
        end.kind,
        order=end.order,
        passed_at=end.passed_at,
        gate=end.gate(),
        integrity=end.integrity,
        penalty=end.penalty,
    )
    return replace(graph, files=dict(files.read))


def _explained(error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] not in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{place}: {first['msg']}, got {first['input']!r}"
    level = len(first["loc"])
    sections: dict[Any, type[Any]] = {"aggregator": _AggregatorSection, "judges": JudgeSpec}
    known = _keys(_GraphFile if level == 1 else sections.get(first["loc"][0], _NodeSection))
    return f"unknown key {place}; " + did_you_mean(str(first["loc"][-1]), known, f"keys are {', '.join(known)}")


def _keys(section: type[Any]) -> list[str]:
    return [item.name for item in fields(section)] if is_dataclass(section) else list(section.model_fields)


def _judge(name: str, spec: JudgeSpec, files: GraphFiles, make: MakeJudge) -> Judge:
    try:
        return make(spec, files)
    except ConfigError as error:
        raise ConfigError(f"judges.{name}: {error}") from error


def _check_judges(file: _GraphFile) -> None:
    """Raises ConfigError where a grader names a judge that is not there, and for a judge that nobody names."""
    used = [(grader, name) for grader, section in file.graders.items() for name in section.judges]
    for grader, name in used:
        if name not in file.judges:
            hint = did_you_mean(name, file.judges, f"there are {', '.join(file.judges) or 'none'}")
            raise ConfigError(f"graders.{grader}: there is no judge {name!r} in the file; {hint}")
    if idle := [name for name in file.judges if name not in [judge for _, judge in used]]:
        raise ConfigError(f"judges.{idle[0]} is named by no grader; give one of them judge = {idle[0]!r}")


def _schedule(weight: float | tuple[tuple[float, float], ...] | _Fading) -> WeightSchedule:
    if isinstance(weight, _Fading):
        return AnnealedWeight(**weight.model_dump())
    return WeightSchedule(weight) if isinstance(weight, tuple) else WeightSchedule.constant(weight)


def _node(
    name: str, section: _NodeSection, files: GraphFiles, resources: Mapping[str, Any], judges: Mapping[str, Judge]
) -> GraderNode:
    try:
        found = imported(section.use, files) if ":" in section.use else section.use
        # A class takes options even where none are written; a function or a made grader takes none.
        options = section.options if section.options or isinstance(found, (str, type)) else None
        own = [judges[judge] for judge in section.judges]
        given = {**resources, "judge": own[0] if isinstance(section.judge, str) else own} if own else resources
        grader = make_grader(found, options, resources=given, needed=("judge",) if own else (), files=files)
        if section.isolate:
            grader = IsolatedGrader(grader, timeout_s=section.timeout_s or 10.0)
        return GraderNode(
            grader=grader,
            name=name,
            requires=section.requires,
            gate=section.gate,
            weight=_schedule(section.weight),
            cost_s=section.cost_s,
            timeout_s=section.timeout_s,
            parallel=section.parallel,
            preference=section.preference,
        )
    except ConfigError as error:
        raise ConfigError(f"graders.{name}: {error}") from error
