"""A short training run: rollouts from the server, gradients here, weights back after each step."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vllm_policy import tiny_policy

from burnish.algorithms.advantages import group_advantages, has_signal
from burnish.algorithms.grpo import GrpoLoss
from burnish.cli.server import policy_server
from burnish.core.sampling import SamplingParams
from burnish.core.task import Limits
from burnish.core.trajectory import Trajectory
from burnish.environments.calculator import Calculator
from burnish.integrations.completions import CompletionsSampler
from burnish.integrations.vllm_weights import VllmWeights, check_arrival
from burnish.loop.conductor import start_run
from burnish.loop.recipes import load_recipe
from burnish.loop.setup import resolve_workers
from burnish.rollout.group import plan_groups
from burnish.rollout.runner import run_episodes
from burnish.rollout.samples import training_samples
from burnish.store.reader import RunReader
from burnish.training.learner import Learner
from burnish.training.optimizer import Optimizer, OptimizerSpec

STEPS, TASKS, MEMBERS = 8, 8, 8
TEMPERATURE = 0.9


def digits(trajectory: Trajectory) -> float:
    """The share of digits in what the policy said: easy to get better at from nothing."""
    said = "".join(message.text for message in trajectory.messages if message.role == "assistant")
    return sum(character.isdigit() for character in said) / max(1, len(said))


def test_reward_goes_up_and_the_ratio_is_one_on_every_fresh_batch(
    server: Any, tmp_path: Path, note: Callable[[str], None]
) -> None:
    policy = tiny_policy()
    sampler = CompletionsSampler(f"{server.url}/v1", "policy")
    weights = VllmWeights(sampler, server.url, tmp_path)
    learner = Learner(policy.model, GrpoLoss(), temperature=TEMPERATURE)
    optimizer = Optimizer(policy.model, OptimizerSpec(learning_rate=3e-3))
    rewards: list[float] = []

    async def step(number: int) -> None:
        started = time.perf_counter()
        update = await weights.update(policy.model, number)
        canary = await check_arrival(sampler, policy.prompts(2), policy.score_actions, tolerance=1e-4)
        synced = time.perf_counter()
        plans = plan_groups(
            policy.tasks[number * TASKS : (number + 1) * TASKS],
            phase="rl",
            step=number,
            group_size=MEMBERS,
            run_seed=0,
        )
        trajectories = await run_episodes(
            plans,
            make_environment=lambda task: Calculator(level=1),
            renderer=policy.renderer,
            sampler=sampler,
            params=SamplingParams(temperature=TEMPERATURE),
            limits=Limits(max_turns=1, max_turn_tokens=12, max_context_tokens=256),
        )
        rolled = time.perf_counter()
        batch = []
        scores = [digits(trajectory) for trajectory in trajectories]
        for start in range(0, len(plans), MEMBERS):
            group, found = trajectories[start : start + MEMBERS], scores[start : start + MEMBERS]
            if has_signal(found):
                for trajectory, advantage in zip(group, group_advantages(found), strict=True):
                    batch += training_samples(trajectory, advantage)
        assert {version for sample in batch for version in sample.versions} == {-1, number}
        ratio = max(
            abs(own - given)
            for sample, row in zip(batch, learner.score(batch), strict=True)
            for own, given, trained in zip(row, sample.behaviour_logprobs, sample.loss_mask, strict=True)
            if trained
        )
        assert ratio < 1e-4, "the learner and the server are the same policy before each step"
        learner.accumulate(batch, learner.normaliser(batch))
        optimizer.step()
        rewards.append(sum(scores) / len(scores))
        note(
            f"step {number}: reward {rewards[-1]:.3f}, log-ratio {ratio:.1e}, canary {canary:.1e}, "
            f"update {synced - started:.2f} s (held {update.held_s:.3f} s), rollout {rolled - synced:.2f} s, "
            f"learn {time.perf_counter() - rolled:.2f} s"
        )

    for number in range(STEPS):
        asyncio.run(step(number))
    assert rewards[-1] > rewards[0] + 0.1


def test_a_recipe_trains_a_served_policy(server: Any, tmp_path: Path, note: Callable[[str], None]) -> None:
    """`burnish train calculator model.path=FOLDER sampler.url=URL`, by the same road."""
    words = [
        f"model.path={server.folder}",
        "model.show_tools=none",
        f"sampler.url={server.url}",
        *("run.workers=1", "warm_start.steps=0", "rl.steps=4", "rl.groups=4", "rl.group_size=4", "rl.lr=1e-3"),
        *("limits.max_turns=1", "limits.max_turn_tokens=12", "limits.max_context_tokens=256"),
        *("rl.filter_zero_signal=false", "stop.no_signal_groups=0", "evaluation.every=0", "evaluation.before=false"),
        *("evaluation.tasks=4", 'evaluation.modes=["greedy"]'),
    ]
    recipe = resolve_workers(load_recipe("calculator", words))
    start_run(recipe, tmp_path / "run", server=policy_server(recipe, tmp_path / "run"))
    reader = RunReader(tmp_path / "run")
    assert [step.step for step in reader.steps("rl")] == [1, 2, 3, 4]
    canary = [value for _, value in reader.scalars("check/canary_nats", "rl")]
    assert max(canary) < 1e-4
    ratios = [value for _, value in reader.scalars("check/ratio_nats", "rl")]
    assert max(ratios) < 1e-4
    note(f"recipe: 4 steps, canary at most {max(canary):.1e}, log-ratio at most {max(ratios):.1e} nats")
