"""Evaluations inside a run: the same shards, graders and store as training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from burnish.core.errors import RunStopped
from burnish.core.grade import Grade
from burnish.core.hashing import derive_seed
from burnish.core.trajectory import Trajectory
from burnish.evaluation.heldout import EvalResult, EvalSpec, Mode, evaluation_plans, summarise, to_row
from burnish.graders.graph import for_evaluation
from burnish.loop.session import Session
from burnish.loop.state import Evaluated, LoopState
from burnish.store.rows import Fate, StepRecord, StoredTrajectory


def evaluate_policy(
    session: Session, label: str, *, split: str = "heldout", mode: Mode = Mode.GREEDY, tasks: int | None = None
) -> EvalResult:
    """Evaluate the present policy on the first `tasks` of a split, and commit the result as the next step of phase
    "eval".  Task seeds do not depend on label or step, so that evaluations of one run pair."""
    recipe, state = session.recipe, session.state
    session.settle()
    session.tell("evaluate", message=f"{label} {split} {mode.value}")
    seed = derive_seed(recipe.run.seed, "evaluation")
    spec = EvalSpec(label=label, split=split, mode=mode, seed=seed, temperature=recipe.rl.temperature)
    plans = evaluation_plans(session.world.tasks(split, tasks), spec)
    trajectories, grades, seconds = session.rollout(plans, spec.params, hold=False)
    rewards = for_evaluation(session.world.aggregator).rewards(grades)
    scores = [
        reward if trajectory.outcome.may_carry_reward else None
        for reward, trajectory in zip(rewards, trajectories, strict=True)
    ]
    result = summarise(label, split, mode, trajectories, scores, grades)
    rows = held_out_rows(state, trajectories, grades, scores)
    phase, step = ("rl", state.rl_step) if state.phase == "rl" else ("sft", state.sft_step)
    session.store(
        StepRecord(
            phase="eval",
            step=state.evaluations + 1,
            policy_version=state.version,
            rows=rows,
            scalars={
                "success": result.rate.share,
                "score_mean": result.mean_score,
                "excluded": float(result.excluded),
                "time/rollout_s": seconds,
            },
            evaluations=[to_row(result, phase=phase, step=step)],
        )
    )
    state.evaluations += 1
    if split == "heldout" and mode.value == recipe.evaluation.quick_mode:
        state.success = result.rate.share if result.rate.n else None
        if result.rate.n:
            state.evaluated = Evaluated(step=state.rl_step, success=result.rate.share, episodes=result.rate.n)
    if result.excluded > recipe.stop.max_excluded_share * len(trajectories):
        raise RunStopped("excluded", exclusion_text(trajectories, grades, result.excluded))
    return result


def exclusion_text(trajectories: Sequence[Trajectory], grades: Sequence[Sequence[Grade]], excluded: int) -> str:
    """Why episodes were left out, most frequent cause first."""
    causes: Counter[str] = Counter()
    for trajectory, given in zip(trajectories, grades, strict=True):
        outcome = trajectory.outcome
        if not outcome.may_carry_reward:
            causes[f"{outcome.label} ({outcome.cause}): {outcome.detail}"] += 1
        else:
            causes.update(
                f"grader {grade.grader}: {grade.cause}"
                for grade in given
                if grade.score is None and not grade.is_skipped
            )
    listed = "; ".join(f"{count} x {cause[:300]}" for cause, count in causes.most_common(3))
    return (
        f"{excluded} of {len(trajectories)} episodes carry no reward, more than stop.max_excluded_share allows:"
        f" {listed}. Such episodes are left out of the loss; training on the rest would be biased. Mend the "
        "environment or the grader (`burnish doctor` helps), then `burnish resume`"
    )


def held_out_rows(
    state: LoopState,
    trajectories: Sequence[Trajectory],
    grades: Sequence[tuple[Grade, ...]],
    rewards: Sequence[float | None],
) -> list[StoredTrajectory]:
    """Episodes of the next evaluation step, as they are stored: seen, and never trained on."""
    return [
        StoredTrajectory(
            trajectory=trajectory,
            phase="eval",
            step=state.evaluations + 1,
            policy_version=state.version,
            fate=Fate.HELD_OUT,
            grades=given,
            reward=reward,
        )
        for trajectory, given, reward in zip(trajectories, grades, rewards, strict=True)
    ]
