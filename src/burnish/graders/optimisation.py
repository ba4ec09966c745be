"""Optimisation models: the model that an answer holds is solved again by HiGHS; what the answer says it found is not
read.

A fenced block of JSON:

    {"sense": "min", "variables": {"x": {"low": 0, "high": 40, "integer": true}, "y": {}},
     "objective": {"x": 2, "y": 3}, "constant": 0,
     "constraints": [{"terms": {"x": 1, "y": 1}, "relation": ">=", "bound": 10}]}

(low is 0 where it is left out, high without bound, null for no bound), or of MPS or CPLEX LP text (`mps`, `lp`).

The optimum alone can be guessed and written down as a model (min x, x >= 41): so the reference should also list
coefficients from the text that have to occur, or points whose feasibility is known.
"""

from __future__ import annotations

import importlib
import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from burnish.core.task import Task
from burnish.graders.killable import KillableRule, fenced, require, verdict

MAX_COLUMNS, MAX_ENTRIES = 5_000, 100_000
MAX_NUMBER = 1e12
_NODE_LIMIT = 100_000
_FEASIBLE = 1e-6
_STATUS = {0: "optimal", 2: "infeasible", 3: "unbounded"}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OptimisationGrader(KillableRule):
    """1 where the model in the answer has the optimum of `reference["objective"]`, and is no mere number in disguise.

    reference: status ("optimal", or "infeasible", "unbounded"), objective, tolerance (relative, default 1e-4: honest
    rounding passes), coefficients (numbers that must occur in the model), min_variables and min_constraints that are
    really used (default 1), points ([{"values": {"x": 1}, "feasible": true}]: needs agreed names).
    """

    timeout_s: float = 10.0
    name = "optimisation"
    function = "burnish.graders.optimisation:judge"
    preload = "burnish.graders.optimisation:warm_up"

    def arguments(self, task: Task, text: str) -> Mapping[str, Any] | None:
        reference = dict(task.reference)
        status = reference.get("status", "optimal")
        number = reference.get("objective")
        if status not in _STATUS.values() or (status == "optimal" and not isinstance(number, (int, float))):
            return None
        return {"reference": reference, "text": text}


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A mixed-integer linear model of N columns and M rows: minimise or maximise cost_N . x + constant, with
    low_N <= x <= high_N and row_low_M <= rows @ x <= row_high_M.
    """

    names: tuple[str, ...]
    is_max: bool
    cost_N: np.ndarray
    constant: float
    low_N: np.ndarray
    high_N: np.ndarray
    integer_N: np.ndarray
    rows: csr_array
    row_low_M: np.ndarray
    row_high_M: np.ndarray

    def numbers(self) -> set[float]:
        """Every finite number in the model, without its sign."""
        sides = (self.cost_N, self.rows.data, self.row_low_M, self.row_high_M, self.low_N, self.high_N)
        return {abs(float(value)) for values in sides for value in values if math.isfinite(value)}

    def is_feasible(self, x_N: np.ndarray) -> bool:
        """Whether a point keeps all bounds and constraints, to a millionth."""
        room = _FEASIBLE * np.maximum(1.0, np.abs(x_N))
        activity = self.rows @ x_N
        give = _FEASIBLE * np.maximum(1.0, np.abs(activity))
        whole = np.abs(x_N - np.round(x_N)) <= room
        return bool(
            np.all((x_N >= self.low_N - room) & (x_N <= self.high_N + room))
            and np.all((activity >= self.row_low_M - give) & (activity <= self.row_high_M + give))
            and np.all(whole | (self.integer_N == 0))
        )


class Unreadable(ValueError):
    """The answer holds no model that can be solved; the text says why."""


def warm_up() -> bool:
    """scipy and numpy are imported with this module."""
    return True


def judge(reference: dict[str, Any], text: str) -> dict[str, Any]:
    """The verdict on one answer."""
    try:
        model = read_model(text)
    except Unreadable as error:
        return verdict(0.0, "no_model", error=str(error)[:200])
    problem = _vacuous(model, reference) or _wrong_points(model, reference.get("points", ()))
    if problem:
        return verdict(0.0, problem)
    status, objective = solve(model)
    if status not in _STATUS.values():
        return verdict(0.0, "not_solved", status=status)
    wanted = reference.get("status", "optimal")
    if status != wanted:
        return verdict(0.0, "wrong_status", status=status)
    if wanted != "optimal":
        return verdict(1.0, status=status)
    tolerance = float(reference.get("tolerance", 1e-4))
    right = math.isclose(objective, reference["objective"], rel_tol=tolerance, abs_tol=tolerance)
    return verdict(float(right), "" if right else "wrong_objective", objective=objective)


def solve(model: Model) -> tuple[str, float]:
    """Status and optimum; "unclear" where HiGHS gives up within its node limit."""
    result = _milp(model, -model.cost_N if model.is_max else model.cost_N)
    if result.status == 0:
        return "optimal", float(model.cost_N @ result.x + model.constant)
    if result.status in (2, 3, 4):
        # Presolve may only know "infeasible or unbounded"; without an objective the answer is one of the two.
        feasible = _milp(model, np.zeros_like(model.cost_N)).status
        return {0: "unbounded", 2: "infeasible"}.get(feasible, "unclear"), math.nan
    return "unclear", math.nan


def _milp(model: Model, cost_N: np.ndarray) -> Any:
    constraints = LinearConstraint(model.rows, model.row_low_M, model.row_high_M) if model.rows.shape[0] else ()
    return milp(
        cost_N,
        integrality=model.integer_N,
        bounds=Bounds(model.low_N, model.high_N),
        constraints=constraints,
        options={"node_limit": _NODE_LIMIT, "mip_rel_gap": 1e-7},
    )


def _vacuous(model: Model, reference: Mapping[str, Any]) -> str:
    """Why a model says nothing about the task, or ""."""
    used = set(np.unique(model.rows.indices)) | set(np.flatnonzero(model.cost_N))
    rows = int(np.count_nonzero(np.diff(model.rows.indptr)))
    if len(used) < reference.get("min_variables", 1):
        return "too_few_variables"
    if rows < reference.get("min_constraints", 1):
        return "too_few_constraints"
    numbers = model.numbers()
    for wanted in reference.get("coefficients", ()):
        if not any(math.isclose(abs(wanted), number, rel_tol=1e-9) for number in numbers):
            return "coefficient_missing"
    return ""


def _wrong_points(model: Model, points: Sequence[Mapping[str, Any]]) -> str:
    for point in points:
        values = point["values"]
        if not set(values) <= set(model.names):
            return "variable_missing"
        x_N = np.array([float(values.get(name, 0.0)) for name in model.names])
        if model.is_feasible(x_N) != point["feasible"]:
            return "feasible_set_differs"
    return ""


def read_model(text: str) -> Model:
    """The model in an answer.  Raises Unreadable.

    >>> read_model('{"variables": {"x": {}}, "objective": {"x": 1}, "constraints": []}').names
    ('x',)
    """
    block = fenced(text, "json", "mps", "lp")
    if block.startswith("{"):
        return _from_json(block)
    upper = block.upper()
    if upper.startswith("NAME") or "\nROWS" in upper:
        return _from_file(block, ".mps")
    if upper.startswith(("MIN", "MAX", "\\")):
        return _from_file(block, ".lp")
    raise Unreadable("neither JSON nor MPS nor LP")


def _from_json(text: str) -> Model:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"JSON: {error}") from error
    variables = _mapping(data, "variables")
    names = tuple(variables)
    constraints = data.get("constraints", [])
    if not names or len(names) > MAX_COLUMNS or not isinstance(constraints, list):
        raise Unreadable(f"between 1 and {MAX_COLUMNS} variables and a list of constraints are needed")
    column = {name: index for index, name in enumerate(names)}
    sense = data.get("sense", "min")
    if sense not in ("min", "max"):
        raise Unreadable("sense is min or max")
    fields = [_mapping(variables, name) for name in names]
    cost_N = np.zeros(len(names))
    for name, value in _terms(_mapping(data, "objective"), column):
        cost_N[column[name]] = value
    entries: list[tuple[int, int, float]] = []
    sides: list[tuple[float, float]] = []
    for index, row in enumerate(constraints):
        if not isinstance(row, dict):
            raise Unreadable("a constraint is an object")
        entries += [(index, column[name], value) for name, value in _terms(_mapping(row, "terms"), column)]
        sides.append(_side(row))
    if len(entries) > MAX_ENTRIES:
        raise Unreadable(f"more than {MAX_ENTRIES} terms")
    return Model(
        names=names,
        is_max=sense == "max",
        cost_N=cost_N,
        constant=_number(data.get("constant", 0)),
        low_N=np.array([_bound(field.get("low", 0), -math.inf) for field in fields]),
        high_N=np.array([_bound(field.get("high"), math.inf) for field in fields]),
        integer_N=np.array([int(field.get("integer", False) is True) for field in fields]),
        rows=_matrix(entries, len(sides), len(names)),
        row_low_M=np.array([low for low, _ in sides]),
        row_high_M=np.array([high for _, high in sides]),
    )


def _matrix(entries: Sequence[tuple[int, int, float]], rows: int, columns: int) -> csr_array:
    i, j, values = zip(*entries, strict=True) if entries else ((), (), ())
    matrix = csr_array((np.array(values, float), (np.array(i, int), np.array(j, int))), shape=(rows, columns))
    matrix.eliminate_zeros()
    return matrix


def _mapping(data: Any, key: str) -> dict[str, Any]:
    value = data.get(key, {}) if isinstance(data, dict) else None
    if not isinstance(value, dict):
        raise Unreadable(f"{key[:50]} is an object")
    return value


def _terms(terms: Mapping[str, Any], column: Mapping[str, int]) -> list[tuple[str, float]]:
    if unknown := [name for name in terms if name not in column]:
        raise Unreadable(f"{unknown[0][:50]!r} is no variable")
    return [(name, _number(value)) for name, value in terms.items()]


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= MAX_NUMBER:
        raise Unreadable(f"{str(value)[:50]} is no number up to {MAX_NUMBER:g}")
    return float(value)


def _bound(value: Any, missing: float) -> float:
    return missing if value is None else _number(value)


def _side(row: Mapping[str, Any]) -> tuple[float, float]:
    bound = _number(row.get("bound"))
    sides = {"<=": (-math.inf, bound), ">=": (bound, math.inf), "==": (bound, bound), "=": (bound, bound)}
    relation = row.get("relation")
    if not isinstance(relation, str) or relation not in sides:
        raise Unreadable("relation is <=, >= or ==")
    return sides[relation]


def _from_file(text: str, suffix: str) -> Model:
    """A model in MPS or LP text, read by HiGHS."""
    require("highspy", "highspy")
    highspy: Any = importlib.import_module("highspy")
    solver = highspy.Highs()
    solver.setOptionValue("output_flag", False)
    with tempfile.TemporaryDirectory(prefix="burnish-model-") as folder:
        path = Path(folder) / f"model{suffix}"
        path.write_text(text, encoding="utf-8")
        if solver.readModel(str(path)) != highspy.HighsStatus.kOk:
            raise Unreadable(f"HiGHS cannot read the {suffix[1:]} text")
    whole = solver.getModel()
    lp = whole.lp_
    kinds = [int(kind) for kind in lp.integrality_] or [0] * lp.num_col_
    if whole.hessian_.dim_ or not set(kinds) <= {0, 1}:
        raise Unreadable("only linear models of continuous and integer variables are solved")
    if not 0 < lp.num_col_ <= MAX_COLUMNS or len(lp.a_matrix_.value_) > MAX_ENTRIES:
        raise Unreadable(f"between 1 and {MAX_COLUMNS} variables are needed")
    solver.ensureRowwise()
    matrix = solver.getLp().a_matrix_
    parts = (np.array(matrix.value_, float), np.array(matrix.index_, int), np.array(matrix.start_, int))
    rows = csr_array(parts, shape=(lp.num_row_, lp.num_col_))
    rows.eliminate_zeros()
    return Model(
        names=tuple(lp.col_names_) or tuple(f"x{index}" for index in range(lp.num_col_)),
        is_max=lp.sense_ == highspy.ObjSense.kMaximize,
        cost_N=np.array(lp.col_cost_, float),
        constant=float(lp.offset_),
        low_N=np.array(lp.col_lower_, float),
        high_N=np.array(lp.col_upper_, float),
        integer_N=np.array(kinds),
        rows=rows,
        row_low_M=np.array(lp.row_lower_, float),
        row_high_M=np.array(lp.row_upper_, float),
    )
