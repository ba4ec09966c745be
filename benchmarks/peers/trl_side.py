"""TRL's side of `against_trl.py`: `GRPOTrainer` with its `environment_factory`, on the shop.  Not run by hand.

    python -m peers.trl_side SPEC.json [--check]

SPEC is a `peers.spec.Spec`; the result (times, rewards and tokens of every step) is written to its `out`.  What TRL is
given:

- The shop's own tools, texts and grader, so that both sides play the same game.  `--check` plays scripted episodes
  through both and compares every token, every mask and every reward.  A tool call costs TRL a Python call, a check of
  types and an SQLite query.
- The chat template without the listing of the tools: the policy has learned them from traces, and Burnish is run
  without listing them too.
- Where `Config.remember_schemas` says so, the schemas of tools are computed once.  As installed, TRL 1.16 computes all
  of them from their docstrings again for every prompt and every response: a quarter of its step here.
- No logging, no saving, no progress bar, no gradient checkpointing; the fused AdamW that is its default, SDPA attention
  and a dynamic cache (eager attention measured equal, a static cache slower).
- Continuous batching with a cache of the size that the work needs: its default takes half of the memory and spends 7 s
  for every turn on filling a mask of that size.  The sizes below were the best of six.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback
from transformers.utils import chat_template_utils
from transformers.utils.chat_parsing import response_parser
from trl import GRPOConfig, GRPOTrainer
from trl.chat_template_utils import qwen3_template

from burnish.core.outcome import COMPLETED
from burnish.core.task import Limits, Task
from burnish.core.trajectory import Trajectory
from burnish.environments.shop import Shop, ShopGrader
from burnish.environments.tool import ToolMethod, result_text, tool_methods
from burnish.loop.worlds import load_world, mistaken_expert
from burnish.policies.chat import ChatRenderer
from burnish.rollout.episode import EpisodePlan, spoken
from burnish.rollout.runner import run_scripted
from burnish.rollout.tools import MODEL_MISTAKES, argument_problem, mistake_text
from peers.spec import Spec, Work

TASKS: list[Task] = []
"""The tasks of the run; the dataset holds positions in it."""

CONTINUOUS_BATCHING = {"page_size": 16, "num_blocks": 1024, "max_batch_tokens": 256, "max_requests_per_batch": 64}
CHECKED_TASKS = 48
LISTING = ("{%- if tools %}", "{%- for message in messages[start:] %}")
"""Where Burnish's chat template begins and ends to list tools."""


# -- the environment ---------------------------------------------------------------------------------------------------


def exposed(method: ToolMethod[Any, Any]) -> Callable[..., str]:
    """A method with the name, docstring and hints of a shop's tool, from which TRL reads the schema.

    It takes any arguments, so that wrong ones are answered as Burnish answers them.
    """

    def call(self: ShopWorld, **arguments: Any) -> str:
        return self._answer(method, arguments)

    call.__name__, call.__qualname__, call.__doc__ = method.name, method.name, method.function.__doc__
    call.__annotations__ = {**method.hints, "return": str}
    call.__signature__ = method.signature.replace(return_annotation=str)  # type: ignore[attr-defined]
    return call


class ShopWorld:
    """One episode after another in the shop, as TRL wants an environment: `reset` and a public method for each tool."""

    def __init__(self) -> None:
        self._shop: Shop | None = None

    def reset(self, task: int, **_: Any) -> None:
        """Begin an episode; the prompt is the dataset's."""
        self._end()
        self._task = TASKS[task]
        self._shop = Shop()
        self._shop.setup(self._task)

    def _answer(self, method: ToolMethod[Any, Any], arguments: Mapping[str, Any]) -> str:
        if not _plainly_right(method.hints, arguments):
            problem = argument_problem(arguments, method.spec)
            if problem:
                return f"Error: {problem}"
        try:
            return result_text(method.function(self._shop, **arguments))
        except MODEL_MISTAKES as error:
            return f"Error: {mistake_text(error)}"

    def _score(self, answer: str) -> float:
        assert self._shop is not None
        # without messages: how far an episode got is no part of the score
        state = self._shop.final_state()
        seen: Any = SimpleNamespace(outcome=COMPLETED, final_state=state, answer=answer, messages=())
        return ShopGrader().judge(self._task, seen).score or 0.0

    def _end(self) -> None:
        if self._shop is not None:
            self._shop.teardown()
            self._shop = None


for _name, _method in tool_methods(Shop).items():
    setattr(ShopWorld, _name, exposed(_method))


def _plainly_right(hints: Mapping[str, Any], arguments: Mapping[str, Any]) -> bool:
    """The quick way to see that a schema of plain types is met; anything else is left to the schema."""
    return len(hints) == len(arguments) and all(type(arguments.get(name)) is hint for name, hint in hints.items())


def scored(stop_ids: frozenset[int]) -> Callable[..., list[float]]:
    """The reward: the shop's grader on episodes that ended with an answer; 0 for those that a limit cut."""

    def reward(
        completions: Sequence[Sequence[Mapping[str, Any]]],
        completion_ids: Sequence[Sequence[int]],
        environments: Sequence[ShopWorld],
        **_: Any,
    ) -> list[float]:
        scores = []
        for messages, ids, world in zip(completions, completion_ids, environments, strict=True):
            last = messages[-1]
            ended = last["role"] == "assistant" and not last.get("tool_calls") and ids[-1] in stop_ids
            scores.append(world._score(spoken(last["content"])) if ended else 0.0)
        return scores

    return reward


# -- the trainer -------------------------------------------------------------------------------------------------------


def make_tokenizer(model: str) -> Any:
    """The model's tokenizer, with a template that lists no tools and a reader of Hermes-style calls."""
    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left", truncation_side="left")
    head, begin, rest = tokenizer.chat_template.partition(LISTING[0])
    _, end, tail = rest.partition(LISTING[1])
    if not (begin and end):
        raise ValueError(f"the chat template of {model} is not Burnish's own; export the model with `burnish export`")
    tokenizer.chat_template = head + end + tail
    tokenizer.response_template = qwen3_template
    return tokenizer


def remember_schemas() -> None:
    """Compute the schema of a tool once, not for every prompt and response."""
    original = chat_template_utils.get_json_schema
    known: dict[Any, dict[str, Any]] = {}

    @functools.wraps(original)
    def schema(function: Callable[..., Any]) -> dict[str, Any]:
        key = inspect.unwrap(getattr(function, "__func__", function))
        if key not in known:
            known[key] = original(function)
        return known[key]

    chat_template_utils.get_json_schema = schema
    response_parser.get_json_schema = schema


class Timed(GRPOTrainer):  # type: ignore[misc]
    """Notes how long generation (with tools) and scoring took, step by step; changes nothing else."""

    rollout_s: list[float]

    def _generate(self, prompts: list[Any]) -> Any:
        begin = time.perf_counter()
        result = super()._generate(prompts)
        self.rollout_s.append(time.perf_counter() - begin)
        return result

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Any:
        begin = time.perf_counter()
        result = super()._calculate_rewards(*args, **kwargs)
        self.rollout_s[-1] += time.perf_counter() - begin
        return result


class Watch(TrainerCallback):  # type: ignore[misc]
    """Notes when each optimizer step was done."""

    def __init__(self) -> None:
        self.ended_s: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ended_s.append(time.perf_counter())


def make_config(spec: Spec, folder: Path) -> GRPOConfig:
    """TRL's settings for the same update as Burnish's: one optimizer step on every batch, no KL, token-level mean."""
    work, config = spec.work, spec.config
    of_process = work.groups * work.group_size // config.processes
    micro_batch = min(config.micro_batch, of_process)
    return GRPOConfig(
        output_dir=str(folder),
        max_steps=work.steps,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=of_process // micro_batch,
        num_generations=work.group_size,
        max_completion_length=work.max_tokens,
        # a call of the last turn is not run on either side
        max_tool_calling_iterations=work.max_turns - 1,
        temperature=1.0,
        beta=0.0,
        num_iterations=1,
        epsilon=work.clip_low,
        epsilon_high=work.clip_high,
        scale_rewards="group",
        loss_type="dapo",
        learning_rate=work.lr,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        seed=work.seed,
        shuffle_dataset=False,
        bf16=config.bf16,
        use_transformers_continuous_batching=config.continuous_batching,
        transformers_continuous_batching_config=CONTINUOUS_BATCHING if config.continuous_batching else None,
        gradient_checkpointing=False,
        use_cpu=True,
        ddp_backend="gloo" if config.processes > 1 else None,
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=False,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def make_trainer(spec: Spec, kind: type[Timed] = Timed) -> Timed:
    """The trainer, ready to train."""
    work, config = spec.work, spec.config
    if config.remember_schemas:
        remember_schemas()
    TASKS[:] = load_world("shop", {"level": work.level}, seed=0).tasks("train")
    tokenizer = make_tokenizer(work.model)
    rows = [{"prompt": [{"role": "user", "content": TASKS[at].prompt_text}], "task": at} for at in work.order]
    trainer = kind(
        model=work.model,
        reward_funcs=scored(frozenset({tokenizer.eos_token_id})),
        args=make_config(spec, Path(spec.out).parent / "trl"),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        environment_factory=ShopWorld,
    )
    trainer.rollout_s = []
    return trainer


def run(spec: Spec) -> dict[str, Any]:
    """Train; the fields of a `Run`."""
    work = spec.work
    torch.set_num_threads(spec.config.threads)
    trainer = make_trainer(spec)
    watch = Watch()
    trainer.add_callback(watch)
    # nothing is logged, so the trainer's own record of its metrics is never emptied
    kept = trainer._metrics["train"]
    rewards, lengths = kept["reward"], kept["completions/mean_length"]
    trainer.train()
    per_step = work.groups * work.group_size
    return {
        "ended_s": watch.ended_s,
        "reward": rewards,
        "tokens": [mean * per_step for mean in lengths],
        "rollout_s": trainer.rollout_s,
    }


# -- the check ---------------------------------------------------------------------------------------------------------


class Scripted(Timed):
    """Acts by a script, from the ids so far to the ids of the next turn, instead of generating."""

    script: dict[tuple[int, ...], list[int]]

    def _generate_single_turn(self, prompt_ids: list[list[int]], *_: Any, **__: Any) -> Any:
        # ids that no script knows are a difference, which the comparison will show
        return [list(self.script.get(tuple(ids), self.eos_token_ids[:1])) for ids in prompt_ids], None


def check(spec: Spec) -> dict[str, Any]:
    """Scripted episodes, right and wrong ones, through both sides: every token, mask and reward compared."""
    trainer: Any = make_trainer(spec, Scripted)
    trajectories = burnish_episodes(spec.work)
    trainer.script = {}
    for trajectory in trajectories:
        path: list[int] = []
        for node in trajectory.nodes:
            if node.is_action:
                trainer.script[tuple(path)] = list(node.token_ids)
            path += node.token_ids
    places = {task.id: at for at, task in enumerate(TASKS)}
    rows = [
        {"prompt": [{"role": "user", "content": TASKS[at].prompt_text}], "task": at}
        for at in (places[trajectory.task_id] for trajectory in trajectories)
    ]
    batch = trainer._generate_and_score_completions(rows)
    rewards = list(trainer._logs["rewards"]["reward"])
    different = []
    for index, trajectory in enumerate(trajectories):
        ids, mask = stream(trajectory)
        n_prompt = len(trajectory.nodes[0].token_ids)
        theirs = batch["prompt_ids"][index][batch["prompt_mask"][index].bool()].tolist()
        theirs += batch["completion_ids"][index][batch["completion_mask"][index].bool()].tolist()
        shown = batch["tool_mask"][index][: len(ids) - n_prompt].tolist()
        grade = ShopGrader().judge(TASKS[rows[index]["task"]], trajectory)
        if theirs != ids or shown != mask[n_prompt:] or rewards[index] != grade.score:
            different.append(trajectory.task_id)
    return {"episodes": len(trajectories), "right": sum(rewards), "different": different}


def burnish_episodes(work: Work) -> list[Trajectory]:
    """Episodes of Burnish's experts, every second one with a mistake, on tasks with prompts of their own."""
    world = load_world("shop", {"level": work.level}, seed=0)
    renderer = ChatRenderer(AutoTokenizer.from_pretrained(work.model), show_tools="none")
    unique = list({task.prompt_text: task for task in TASKS}.values())[:CHECKED_TASKS]
    mistakes = [None, "guess", None, "wrong_column"]
    found: list[Trajectory] = []
    for turn, mistake in enumerate(mistakes):
        plans = [
            EpisodePlan(id=f"check/{task.id}", group_id="check", task=task, sample_index=0, seed=0)
            for task in unique[turn :: len(mistakes)]
        ]
        found += asyncio.run(
            run_scripted(
                plans,
                make_environment=world.make,
                renderer=renderer,
                policy=mistaken_expert(mistake),
                limits=Limits(max_turns=work.max_turns, max_turn_tokens=work.max_tokens),
            )
        )
    return found


def stream(trajectory: Trajectory) -> tuple[list[int], list[int]]:
    """All ids of an episode without forks, and 1 where the policy acted."""
    ids = [token for node in trajectory.nodes for token in node.token_ids]
    return ids, [mask for node in trajectory.nodes for mask in node.action_mask]


def main() -> int:
    spec = Spec.read(Path(sys.argv[1]))
    result = check(spec) if sys.argv[2:] == ["--check"] else run(spec)
    if int(os.environ.get("RANK", "0")) == 0:
        Path(spec.out).write_text(json.dumps(result), encoding="utf-8")
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        sys.stdout.flush()
        # at its ordinary end a process now and then aborts in a thread of gloo, and takes a finished run with it
        os._exit(0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
