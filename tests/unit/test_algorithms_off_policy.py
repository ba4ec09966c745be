"""Every policy loss against a plain reference, whatever the aggregation and the correction."""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.algorithms.aggregation import Aggregation
from burnish.algorithms.correction import DEFAULT_BOUNDS, CorrectionKind
from burnish.algorithms.loss import LossInputs, LossSums
from burnish.algorithms.m2po import M2poLoss, moment_limit
from burnish.algorithms.registry import make_loss
from burnish.core.errors import ConfigError
from burnish.core.learning import TrainingSample

torch.set_num_threads(1)
NAMES = ("grpo", "gspo", "cispo", "m2po")
AGGREGATIONS = tuple(Aggregation)
CORRECTIONS = tuple(CorrectionKind)
CLIPS = {"grpo": (0.2, 0.28), "gspo": (3e-4, 4e-4), "cispo": (1.0, 4.0)}


@dataclass
class Case:
    """Sequences of token figures, as nested lists of floats."""

    learner: list[list[float]]
    behaviour: list[list[float]]
    proximal: list[list[float]] | None
    advantage: list[list[float]]
    versions: list[list[int]] | None = None

    @property
    def lengths(self) -> list[int]:
        return [len(row) for row in self.learner]

    def inputs(self, rows=None, *, normaliser=1.0, limit=math.inf) -> LossInputs:
        rows = range(len(self.learner)) if rows is None else rows

        def flat(values):
            return torch.tensor([x for row in rows for x in values[row]], dtype=torch.float64)

        lengths = [self.lengths[row] for row in rows]
        return LossInputs(
            logprobs_N=flat(self.learner).requires_grad_(),
            behaviour_logprobs_N=flat(self.behaviour),
            proximal_logprobs_N=None if self.proximal is None else flat(self.proximal),
            advantages_N=flat(self.advantage),
            sequence_N=torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)),
            sequence_tokens_N=torch.tensor([float(n) for n in lengths for _ in range(n)], dtype=torch.float64),
            entropy_N=torch.ones(sum(lengths), dtype=torch.float64),
            sequences=len(lengths),
            normaliser=normaliser,
            trust_limit=limit,
            staleness_N=None if self.versions is None else 5 - flat(self.versions).long(),
        )

    def normaliser(self, aggregation) -> float:
        return float(sum(self.lengths) if aggregation is Aggregation.TOKEN else len(self.lengths))

    def squares(self) -> list[float]:
        return [
            (p - b) ** 2
            for prox, behave in zip(self.proximal or self.learner, self.behaviour, strict=True)
            for p, b in zip(prox, behave, strict=True)
        ]


def random_case(seed: int, spread: float = 0.5, proximal: bool = True) -> Case:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 6, size=4)
    behaviour = [list(-rng.uniform(0.5, 3.0, n)) for n in lengths]
    near = [[b + float(rng.normal(0, spread)) for b in row] for row in behaviour]
    learner = [[p + float(rng.normal(0, spread / 2)) for p in row] for row in near]
    advantage = [[float(a)] * n for a, n in zip(rng.normal(0, 1, len(lengths)), lengths, strict=True)]
    return Case(learner=learner, behaviour=behaviour, proximal=near if proximal else None, advantage=advantage)


def reference(name, case, aggregation, correction, live, limit):
    """The loss in plain Python.  `live` are the learner's log-probabilities that carry a gradient; everything detached
    reads `case.learner`."""
    total = 0.0
    for i, length in enumerate(case.lengths):
        if correction is CorrectionKind.NONE:
            denominator, corrected = case.behaviour[i], [1.0] * length
        else:
            denominator = case.proximal[i] if case.proximal else case.learner[i]
            raw = [math.exp(d - b) for d, b in zip(denominator, case.behaviour[i], strict=True)]
            if correction.by_sequence:
                raw = [math.prod(raw)] * length
            floor, cap = DEFAULT_BOUNDS[correction]
            if correction.masks:
                corrected = [w if floor <= w <= cap else 0.0 for w in raw]
            else:
                corrected = [min(w, cap) for w in raw]
        ratios = [math.exp(x - d) for x, d in zip(live[i], denominator, strict=True)]
        if name == "gspo":
            mean = math.prod(ratios) ** (1 / length)
            ratios = [mean] * length
        for t in range(length):
            a = case.advantage[i][t]
            if name in ("grpo", "gspo"):
                low, high = CLIPS[name]
                objective = min(ratios[t] * a, min(max(ratios[t], 1 - low), 1 + high) * a)
            elif name == "cispo":
                detached = math.exp(case.learner[i][t] - denominator[t])
                objective = min(detached, 5.0) * a * live[i][t]
            else:
                inside = (case.proximal[i][t] - case.behaviour[i][t]) ** 2 <= limit
                objective = ratios[t] * a if inside else 0.0
            weight = {"token": 1.0, "sequence": 1 / length, "constant": 1 / 7}[aggregation]
            total -= weight * corrected[t] * objective
    return total / case.normaliser(aggregation)


def built(name, aggregation, correction, **options):
    return make_loss(name, {"aggregation": aggregation, "correction": correction, "constant_tokens": 7, **options})


@pytest.mark.parametrize("correction", CORRECTIONS)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("name", NAMES)
def test_loss_and_gradient_are_those_of_the_plain_reference(name, aggregation, correction):
    for seed in range(4):
        case = random_case(seed, spread=0.6, proximal=name == "m2po" or seed % 2 == 0)
        loss = built(name, aggregation, correction)
        limit = loss.trust_limit([case.squares()])
        inputs = case.inputs(normaliser=case.normaliser(aggregation), limit=limit)
        output = loss(inputs)
        output.loss.backward()
        assert output.loss.item() == pytest.approx(
            reference(name, case, aggregation, correction, case.learner, limit), abs=1e-12
        )
        numeric = []
        for i, length in enumerate(case.lengths):
            for t in range(length):
                values = []
                for step in (1e-6, -1e-6):
                    live = [list(row) for row in case.learner]
                    live[i][t] += step
                    values.append(reference(name, case, aggregation, correction, live, limit))
                numeric.append((values[0] - values[1]) / 2e-6)
        assert inputs.logprobs_N.grad is not None
        assert inputs.logprobs_N.grad.tolist() == pytest.approx(numeric, abs=1e-7)


@pytest.mark.parametrize("correction", CORRECTIONS)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("name", NAMES)
def test_on_policy_every_loss_has_the_plain_policy_gradient(name, aggregation, correction):
    case = random_case(3)
    case.behaviour = case.proximal = case.learner
    inputs = case.inputs(normaliser=case.normaliser(aggregation))
    built(name, aggregation, correction)(inputs).loss.backward()
    weights = {"token": lambda n: 1.0, "sequence": lambda n: 1 / n, "constant": lambda n: 1 / 7}[aggregation]
    expected = [
        -weights(n) * a / case.normaliser(aggregation)
        for n, row in zip(case.lengths, case.advantage, strict=True)
        for a in row
    ]
    assert inputs.logprobs_N.grad is not None
    assert inputs.logprobs_N.grad.tolist() == pytest.approx(expected)


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(NAMES),
    st.sampled_from(AGGREGATIONS),
    st.sampled_from(CORRECTIONS),
    st.integers(0, 1000),
    st.lists(st.integers(0, 2), min_size=4, max_size=4),
)
def test_parts_of_a_batch_add_up_to_it_however_it_is_cut(name, aggregation, correction, seed, parts):
    case, loss = random_case(seed, spread=0.8), built(name, aggregation, correction)
    case.versions = [[5 - (row + t) % 3 for t in range(n)] for row, n in enumerate(case.lengths)]
    # The surveys come from the shards too, in whatever order.
    squares = iter(case.squares())
    by_row = [[next(squares) for _ in range(n)] for n in case.lengths]
    shards = [[x for row, part in enumerate(parts) if part == shard for x in by_row[row]] for shard in (2, 0, 1)]
    limit = loss.trust_limit(shards)
    assert limit == loss.trust_limit([case.squares()])
    whole = case.inputs(normaliser=9.0, limit=limit)
    expected = loss(whole)
    expected.loss.backward()
    gradient, statistics = [None] * 4, []
    for part in sorted(set(parts)):
        rows = [row for row in range(4) if parts[row] == part]
        inputs = case.inputs(rows, normaliser=9.0, limit=limit)
        output = loss(inputs)
        output.loss.backward()
        statistics.append(output.statistics)
        for row, values in zip(rows, inputs.logprobs_N.grad.split([case.lengths[r] for r in rows]), strict=True):
            gradient[row] = values
    torch.testing.assert_close(torch.cat(gradient), whole.logprobs_N.grad)
    merged = LossSums.merge(statistics)
    assert merged.sums == pytest.approx(expected.statistics.sums)
    assert merged.maxima == pytest.approx(expected.statistics.maxima)


def test_a_threshold_found_in_each_part_alone_would_not_add_up():
    """The negative control of the test above: M2PO decided per micro-batch."""
    case, loss = random_case(1, spread=0.8), M2poLoss()
    whole = case.inputs(limit=loss.trust_limit([case.squares()]))
    loss(whole).loss.backward()
    pieces = []
    for row in range(4):
        own = [(p - b) ** 2 for p, b in zip(case.proximal[row], case.behaviour[row], strict=True)]
        inputs = case.inputs([row], limit=loss.trust_limit([own]))
        loss(inputs).loss.backward()
        pieces.append(inputs.logprobs_N.grad)
    assert not torch.allclose(torch.cat(pieces), whole.logprobs_N.grad)


@settings(deadline=None)
@given(st.lists(st.floats(0, 4), max_size=20), st.floats(0.01, 1))
def test_the_moment_limit_keeps_as_many_as_it_may(values, cap):
    limit = moment_limit(np.array(values), cap)
    kept = sorted(value for value in values if not value > limit)
    dropped = sorted(value for value in values if value > limit)
    if kept and limit > 0:
        assert np.mean(kept) <= cap * (1 + 1e-9)
    if dropped:
        # The next value, with its ties, would have been too much.
        tied = [value for value in dropped if value == dropped[0]]
        assert np.mean(kept + tied) > cap * (1 - 1e-9)


def test_m2po_by_hand():
    behaviour = [[-1.0, -1.0, -1.0]]
    near = [[-1.1, -0.5, -1.2]]  # squares 0.01, 0.25, 0.04: mean 0.1; without the largest 0.025
    case = Case(learner=near, behaviour=behaviour, proximal=near, advantage=[[1.0, 1.0, -1.0]])
    loss = M2poLoss(moment_cap=0.04)
    limit = loss.trust_limit([case.squares()])
    assert limit == pytest.approx(0.04)
    output = loss(case.inputs(limit=limit))
    assert output.loss.item() == pytest.approx(-(math.exp(-0.1) - math.exp(-0.2)))
    assert output.statistics.sums["masked"] == 1.0
    assert M2poLoss(moment_cap=0.2).trust_limit([case.squares()]) == math.inf


def sample(proximal, behaviour) -> TrainingSample:
    n = len(behaviour)
    return TrainingSample(
        trajectory_id="rl/1/0/0",
        group_id="g",
        token_ids=array("i", range(n + 1)),
        loss_mask=array("b", [0] + [1] * n),
        behaviour_logprobs=array("f", [0.0, *behaviour]),
        versions=array("i", [-1] + [0] * n),
        advantages=array("f", [0.0] + [1.0] * n),
        proximal_logprobs=None if proximal is None else array("f", [0.0, *proximal]),
    )


def test_the_survey_has_the_very_squares_that_the_loss_compares():
    """float32 streams: a square that differs in the last bit would fall on the other side of its own threshold."""
    rng = np.random.default_rng(0)
    behaviour = rng.uniform(-3, 0, 64).astype(np.float32)
    proximal = behaviour + rng.normal(0, 0.4, 64).astype(np.float32)
    loss = M2poLoss()
    survey = loss.survey([sample(proximal.tolist(), behaviour.tolist())])
    limit = loss.trust_limit([survey])
    case = Case(
        learner=[proximal.tolist()],
        behaviour=[behaviour.tolist()],
        proximal=[proximal.tolist()],
        advantage=[[1.0] * 64],
    )
    inputs = case.inputs(limit=limit)
    inputs = replace(
        inputs,
        logprobs_N=torch.from_numpy(proximal),
        behaviour_logprobs_N=torch.from_numpy(behaviour),
        proximal_logprobs_N=torch.from_numpy(proximal),
    )
    masked = loss(inputs).statistics.sums["masked"]
    assert 0 < masked == sum(value > limit for value in survey) < 64
    with pytest.raises(ValueError, match="score the batch first"):
        loss.survey([sample(None, behaviour.tolist())])
    with pytest.raises(ValueError, match="proximal_logprobs"):
        loss(replace(inputs, proximal_logprobs_N=None))


def test_the_decoupled_form_weighs_by_proximal_over_behaviour_and_clips_around_proximal():
    case = Case(
        learner=[[math.log(0.3), math.log(0.6)]],
        behaviour=[[math.log(0.1), math.log(0.1)]],
        proximal=[[math.log(0.25), math.log(0.3)]],
        advantage=[[1.0, 1.0]],
    )
    loss = built("grpo", "token", "token_truncate", correction_cap=4.0)
    output = loss(case.inputs())
    # Token 0: weight 2.5, ratio 1.2; token 1: weight 3, ratio 2 clipped at 1.28.
    assert output.loss.item() == pytest.approx(-(2.5 * 1.2 + 3.0 * 1.28))
    # Around the behaviour policy, ratios 3 and 6 would both be clipped, and nothing would be learned.
    inputs = case.inputs()
    built("grpo", "token", "none")(inputs).loss.backward()
    assert not inputs.logprobs_N.grad.any()
    # Without proximal log-probabilities the learner's own stand for them: weights 3 and 4 (capped), ratio 1.
    case.proximal = None
    assert loss(case.inputs()).loss.item() == pytest.approx(-(3.0 + 4.0))


@pytest.mark.parametrize("name", NAMES)
def test_raw_figures_do_not_depend_on_what_is_truncated_or_masked(name):
    case = random_case(5, spread=1.5)
    plain = built(name, "token", "none")(case.inputs(limit=0.04)).statistics.metrics()
    for correction in CORRECTIONS[1:]:
        figures = built(name, "token", correction)(case.inputs(limit=0.04)).statistics.metrics()
        for key in plain:
            if key.startswith(("ratio_", "log_ratio_", "kl_")):
                assert figures[key] == plain[key]
        # The negative control: figures of the weights as applied look healthier than they are.
        assert figures["correction_ess_token"] != pytest.approx(plain["ratio_behaviour_ess_raw_token"])
    capped = built(name, "token", "token_truncate", correction_cap=1.0)(case.inputs(limit=0.04)).statistics.metrics()
    assert capped["correction_ess_token"] > 1.2 * plain["ratio_behaviour_ess_raw_token"]
    assert capped["ratio_behaviour_squared_mean"] > 1.5 * capped["correction_weight_squared_mean"]


def test_the_three_ratios_are_logged_apart():
    case = Case(
        learner=[[-1.0, -1.0], [-1.0]],
        behaviour=[[-1.0 - math.log(2), -1.0], [-1.0]],
        proximal=[[-1.0, -1.0 - math.log(3)], [-1.0]],
        advantage=[[1.0, 1.0], [1.0]],
    )
    inputs = replace(case.inputs(), reference_logprobs_N=torch.tensor([-1.0, -1.0, -1.0 - math.log(4)]).double())
    figures = built("grpo", "token", "token_truncate")(inputs).statistics.metrics()
    assert figures["ratio_behaviour_mean"] == pytest.approx((2 + 1 + 1) / 3)
    assert figures["ratio_proximal_mean"] == pytest.approx((1 + 3 + 1) / 3)
    assert figures["ratio_reference_mean"] == pytest.approx((1 + 1 + 4) / 3)
    assert figures["log_ratio_behaviour_squared_mean"] == pytest.approx(math.log(2) ** 2 / 3)
    assert figures["log_ratio_proximal_abs_nats_max"] == pytest.approx(math.log(3))
    assert figures["ratio_behaviour_ess_raw_token"] == pytest.approx(16 / (3 * 6))
    # Sequences have the products 2 and 1 (behaviour), 3 and 1 (proximal).
    assert figures["ratio_behaviour_ess_raw_sequence"] == pytest.approx(9 / (2 * 5))
    assert figures["ratio_proximal_ess_raw_sequence"] == pytest.approx(16 / (2 * 10))
    # Proximal/behaviour is 2, 1/3 and 1: nothing lies outside [0, 2].
    assert figures["correction_weight_mean"] == pytest.approx((2 + 1 / 3 + 1) / 3)
    assert figures["correction_above_mean"] == 0.0


def test_staleness_is_counted_by_token():
    case = random_case(0)
    case.versions = [[5] * n for n in case.lengths]
    case.versions[0][0], tokens = 1, sum(case.lengths)
    figures = built("grpo", "token", "none")(case.inputs()).statistics.metrics()
    assert figures["staleness_mean"] == pytest.approx(4 / tokens)
    assert figures["stale_mean"] == pytest.approx(1 / tokens)
    assert figures["staleness_max"] == 4.0
    case.versions = None
    assert "staleness_mean" not in built("grpo", "token", "none")(case.inputs()).statistics.metrics()


@pytest.mark.parametrize("correction", CORRECTIONS)
@pytest.mark.parametrize("name", NAMES)
def test_a_log_ratio_of_a_thousand_stays_finite_and_is_counted(name, correction):
    case = random_case(2)
    case.behaviour[0] = [-1000.0] * case.lengths[0]
    case.behaviour[1] = [1000.0] * case.lengths[1]
    inputs = case.inputs(limit=math.inf)
    output = built(name, "token", correction)(inputs)
    output.loss.backward()
    assert math.isfinite(output.loss.item())
    assert bool(torch.isfinite(inputs.logprobs_N.grad).all())
    figures = output.statistics.metrics()
    assert all(math.isfinite(value) for value in figures.values())
    assert figures["ratio_behaviour_overflow_mean"] == pytest.approx(sum(case.lengths[:2]) / sum(case.lengths))


@pytest.mark.parametrize("correction", CORRECTIONS)
@pytest.mark.parametrize("name", NAMES)
def test_a_nan_reaches_the_loss(name, correction):
    case = random_case(2)
    case.behaviour[0][0] = float("nan")
    assert not math.isfinite(built(name, "token", correction)(case.inputs(limit=0.04)).loss.item())


def test_masked_tokens_leave_the_kl_term_too():
    case = Case(learner=[[-1.0]], behaviour=[[-9.0]], proximal=[[-1.0]], advantage=[[1.0]])
    inputs = replace(case.inputs(), reference_logprobs_N=torch.tensor([-3.0]).double())
    assert built("grpo", "token", "token_mask", kl_weight=1.0)(inputs).loss.item() == 0.0
    assert built("grpo", "token", "token_truncate", kl_weight=1.0)(inputs).loss.item() != 0.0


def test_who_needs_the_proximal_policy():
    assert [make_loss(name).needs_proximal(4) for name in ("sft", *NAMES)] == [False, False, False, False, True]
    corrected = built("grpo", "token", "token_mask")
    assert corrected.needs_proximal(2)
    assert not corrected.needs_proximal(1)  # the learner at its first update is the proximal policy
    assert M2poLoss().needs_proximal(1)


@pytest.mark.parametrize("name", NAMES)
def test_options_are_checked(name):
    with pytest.raises(ConfigError, match="did you mean 'correction'"):
        make_loss(name, {"corection": "none"})
    with pytest.raises(ConfigError, match="one of none, token_truncate"):
        make_loss(name, {"correction": "truncate"})
    with pytest.raises(ConfigError, match="correction_floor"):
        make_loss(name, {"correction": "token_mask", "correction_cap": 0.3})
    if name == "m2po":
        with pytest.raises(ConfigError, match="moment_cap"):
            make_loss(name, {"moment_cap": 0.0})
    else:
        for options in ({"clip_low": 1.5}, {"clip_high": -0.1}, {"clip_low": -0.1}):
            with pytest.raises(ConfigError, match="clip_"):
                make_loss(name, options)


def test_sequence_weights_need_gspo_clip_ranges_of_their_own():
    assert (make_loss("gspo").clip_low, make_loss("gspo").clip_high) == (3e-4, 4e-4)
    assert make_loss("gspo").aggregation is Aggregation.SEQUENCE
