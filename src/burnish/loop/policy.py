"""The policy of a run: model, tokenizer and renderer; built or loaded, saved with the run, reopened by workers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file

from burnish.core.errors import ConfigError
from burnish.core.hashing import derive_seed
from burnish.core.message import Message
from burnish.core.outcome import Ending
from burnish.core.task import Limits
from burnish.loop.config import Recipe
from burnish.loop.note import read_note, write_note
from burnish.loop.progress import Progress, Watcher
from burnish.loop.worlds import World, mistaken_expert
from burnish.policies.build import TinySpec, VisionSpec, build_tiny
from burnish.policies.chat import ChatRenderer
from burnish.policies.load import load_config, load_policy, pick_device, pick_dtype
from burnish.policies.memory import MemoryNeeds, memory_plan
from burnish.policies.processor import image_marks
from burnish.policies.reopen import reopen
from burnish.policies.template import conversation_text
from burnish.policies.tokenizer import train_tokenizer
from burnish.rollout.episode import EpisodePlan
from burnish.rollout.runner import run_scripted
from burnish.training.lora import LoraSpec, add_lora
from burnish.training.model_state import load_model_state, model_state

TOKENIZER_TRACES = 600
BASE_WEIGHTS = "base.safetensors"
"""The frozen weights below the adapters of a model that was built here, not loaded: nobody else has them."""

CALL_MARKS = ("<tool_call>", "</tool_call>")


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Everything that turns messages into actions.  pad_id only fills batches; masks never depend on it."""

    model: Any
    tokenizer: Any
    renderer: ChatRenderer
    device: torch.device
    dtype: torch.dtype
    pad_id: int


def control_ids(policy: Policy) -> frozenset[int]:
    """Ids of the tokens that open or close a tool call or end a turn; marks that are several tokens are left out."""
    vocabulary = policy.tokenizer.get_vocab()
    return frozenset({*policy.renderer.stop_ids, *(vocabulary[mark] for mark in CALL_MARKS if mark in vocabulary)})


def create_policy(recipe: Recipe, world: World, folder: Path, watch: Watcher) -> Policy:
    """Build or load the policy that a new run starts from, and save its config and tokenizer into `folder`."""
    settings = recipe.model
    if settings.path:
        device = pick_device(_device_name(recipe))
        _announce_plan(recipe, world, load_config(settings.path), device, watch)
        loaded = load_policy(settings.path, device=settings.device, dtype=settings.dtype)
        model, tokenizer, device, dtype = loaded.model, loaded.tokenizer, loaded.device, loaded.dtype
        for notice in loaded.notices:
            watch(Progress(phase="prepare", message=notice))
        if loaded.images is not None:
            loaded.images.save(folder)
    else:
        watch(Progress(phase="prepare", message="training a tokenizer on the environment's own traces"))
        tokenizer = train_tokenizer(
            domain_texts(world, recipe.run.seed),
            vocab_size=settings.tiny.vocab_size,
            images=settings.vision.on,
        )
        device = pick_device(_device_name(recipe))
        dtype = pick_dtype(_dtype_name(recipe), device)
        model = _tiny_model(recipe, tokenizer, device, dtype)
        _announce_plan(recipe, world, model.config, device, watch)
    model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    write_note(folder, {"model": {"show_tools": shows_tools(recipe), "parameters": parameters}})
    if settings.lora.rank > 0 and not settings.path:
        save_file(model_state(model), folder / BASE_WEIGHTS)
    policy = _policy(_with_lora(recipe, model), tokenizer, device, dtype, shows_tools(recipe))
    policy = _forced(recipe, policy)
    if policy.renderer.notice:
        watch(Progress(phase="prepare", message=policy.renderer.notice))
    return policy


def _announce_plan(recipe: Recipe, world: World, config: Any, device: torch.device, watch: Watcher) -> None:
    """Say what memory the run will take, before weights are loaded."""
    limits = fit_limits(merged_limits(recipe, world.limits), getattr(config, "max_position_embeddings", None))
    rl, workers = recipe.rl, max(1, recipe.run.workers)
    needs = MemoryNeeds(
        rows=max(1, rl.groups * rl.group_size // workers),
        context_tokens=limits.max_context_tokens,
        micro_batch_tokens=recipe.checks.max_micro_batch_tokens,
        lora_rank=recipe.model.lora.rank,
        reference=recipe.keeps_reference,
        processes=workers,
    )
    plan = memory_plan(config, needs, device=device, dtype=pick_dtype(_dtype_name(recipe), device))
    for line in plan.lines():
        watch(Progress(phase="prepare", message=line))


def _device_name(recipe: Recipe) -> str:
    """A tiny model is faster on a CPU than on a GPU unless asked for otherwise."""
    given = recipe.model.device
    return "cpu" if given == "auto" and not recipe.model.path else given


def _dtype_name(recipe: Recipe) -> str:
    given = recipe.model.dtype
    return "float32" if given == "auto" and not recipe.model.path else given


def reopen_policy(recipe: Recipe, folder: Path, *, base_weights: bool = False) -> Policy:
    """The policy of a stored run without its trained weights, which the caller fills in.

    base_weights: with LoRA, also bring back the frozen weights below the adapters, which checkpoints leave out.
    """
    settings = recipe.model
    show = read_note(folder)["model"]["show_tools"]
    if base_weights and settings.lora.rank > 0 and settings.path:
        loaded = load_policy(settings.path, device=settings.device, dtype=settings.dtype)
        return _forced(
            recipe, _policy(_with_lora(recipe, loaded.model), loaded.tokenizer, loaded.device, loaded.dtype, show)
        )
    empty = reopen(folder, device=_device_name(recipe), dtype=_dtype_name(recipe))
    if base_weights and settings.lora.rank > 0:
        load_model_state(empty.model, load_file(folder / BASE_WEIGHTS))
    return _forced(recipe, _policy(_with_lora(recipe, empty.model), empty.tokenizer, empty.device, empty.dtype, show))


def _tiny_model(recipe: Recipe, tokenizer: Any, device: torch.device, dtype: torch.dtype) -> Any:
    model = build_tiny(tokenizer, tiny_spec(recipe), derive_seed(recipe.run.seed, "model"), vision_spec(recipe))
    # Parameters alone: rotary frequencies stay in float32, as in a model that is reopened or loaded in half precision.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model.to(device)


def tiny_spec(recipe: Recipe) -> TinySpec:
    """The shape of the model to build; raises ConfigError for one that cannot be."""
    tiny = recipe.model.tiny
    return TinySpec(**tiny.model_dump(exclude={"vocab_size", "kv_heads"}), kv_heads=tiny.kv_heads or tiny.heads)


def vision_spec(recipe: Recipe) -> VisionSpec | None:
    """The eyes of the model to build, None for one that reads text alone."""
    vision = recipe.model.vision
    return VisionSpec(**vision.model_dump(exclude={"on"})) if vision.on else None


def _with_lora(recipe: Recipe, model: Any) -> Any:
    lora = recipe.model.lora
    if lora.rank == 0:
        return model
    targets: str | Sequence[str] = lora.targets
    if targets != "all-linear":
        targets = tuple(name.strip() for name in lora.targets.split(","))
    return add_lora(
        model, LoraSpec(rank=lora.rank, alpha=lora.alpha, targets=targets), seed=derive_seed(recipe.run.seed, "lora")
    )


def shows_tools(recipe: Recipe) -> Literal["full", "none"]:
    """Whether prompts list the tools' schemas: as the recipe says, else as the model's own note does."""
    given = recipe.model.show_tools
    if given != "auto":
        return given
    if not recipe.model.path:
        return "none"
    noted = read_note(Path(recipe.model.path)).get("model", {}).get("show_tools")
    return "none" if noted == "none" else "full"


def _policy(
    model: Any, tokenizer: Any, device: torch.device, dtype: torch.dtype, show: Literal["full", "none"]
) -> Policy:
    renderer = ChatRenderer(tokenizer, show_tools=show, images=image_marks(model, tokenizer))
    pad_id = tokenizer.pad_token_id
    if pad_id is None:
        pad_id = tokenizer.eos_token_id or 0
    return Policy(model=model, tokenizer=tokenizer, renderer=renderer, device=device, dtype=dtype, pad_id=int(pad_id))


def _forced(recipe: Recipe, policy: Policy) -> Policy:
    """The policy in the reasoning mode of the recipe."""
    return replace(policy, renderer=policy.renderer.forced(recipe.sampler.mode))


def domain_texts(world: World, seed: int) -> list[str]:
    """Conversations of the training split as text, for a tokenizer to be trained on."""
    tasks = world.tasks("train", TOKENIZER_TRACES)
    if world.expert is None:
        return [
            conversation_text(
                [Message.user(task.prompt_text), Message.assistant(str(task.reference.get("answer", "")))]
            )
            for task in tasks
        ]
    plans = [
        EpisodePlan(id=f"text/{n:06d}", group_id=f"text/{n:06d}", task=task, sample_index=0, seed=derive_seed(seed, n))
        for n, task in enumerate(tasks)
    ]
    # Without a renderer an episode has messages and no tokens, which is all that is needed here.
    trajectories = asyncio.run(run_scripted(plans, make_environment=world.make, policy=mistaken_expert(None)))
    broken = [t for t in trajectories if t.outcome.ending is Ending.ERROR]
    if len(broken) > len(trajectories) // 2:
        raise ConfigError(
            f"the expert of {world.name} fails on {len(broken)} of {len(trajectories)} tasks: "
            f"{broken[0].outcome.cause}: {broken[0].outcome.detail}"
        )
    return [conversation_text(trajectory.messages) for trajectory in trajectories]


def fit_limits(limits: Limits, positions: int | None) -> Limits:
    """The limits with a context that the model has positions for (None: as many as you like)."""
    if positions is None or limits.max_context_tokens <= positions:
        return limits
    return replace(limits, max_context_tokens=positions)


def merged_limits(recipe: Recipe, limits: Limits) -> Limits:
    """The environment's limits with those that the recipe sets."""
    return replace(limits, **recipe.limits.model_dump(exclude_none=True, exclude={"horizons"}))
