"""Sections of the recipe that say how episodes come about: the world, the policy that acts in it, what an episode may
spend, and where it is run and sampled.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """Base of all sections: immutable; an unknown key, NaN and infinity are errors.

    A number where text belongs is taken as text, since `run.name=2024` cannot say which it is.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False, coerce_numbers_to_str=True
    )


class EnvironmentSection(Section):
    """The world to train in."""

    name: str = Field(
        "shop",
        description="shop, calculator, reasoning-gym:DATASET, a Python file (file.py or file.py:Class) or a JSONL file",
    )
    options: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of the environment")
    seed: int = Field(0, ge=0, description="of the generated tasks; runs that share it can be compared")
    isolation: Literal["auto", "process", "none"] = Field(
        "auto",
        description="process: episodes live in host processes, so that a tool that blocks or crashes is ended at its "
        "limit and takes no worker with it; none: in the workers themselves (.2 ms a call faster); auto: process for "
        "your own files, none for what is built in",
    )
    hosts: int = Field(1, ge=1, description="host processes of each worker, where there are any")
    program: str = Field(
        "",
        description="your own agent loop in place of the environment's: file.py:function, or a command line; it asks "
        "the policy through any OpenAI client at the address that it is given, and brings its own tools",
    )
    grader_timeout_s: float = Field(30.0, gt=0, description="a grader that runs longer gives no grade")
    modes: dict[str, float] = Field(
        default_factory=dict,
        description="share of tasks in each manner of reasoning, told by a tag that ends the prompt; empty: no tags",
    )
    heldout_mode: Literal["mixed", "think", "direct"] = Field(
        "mixed", description="manner of the tasks outside train, where modes are given: mixed as in train, or all alike"
    )


class TinySection(Section):
    """A small model built from a transformers config; used where model.path is empty."""

    family: Literal["qwen3", "llama", "mistral", "gemma", "gpt2"] = "qwen3"
    hidden_size: int = Field(128, ge=8)
    layers: int = Field(3, ge=1)
    heads: int = Field(8, ge=1)
    kv_heads: int = Field(0, ge=0, description="0: as many as heads; fewer share keys and values, which copies worse")
    intermediate_size: int = Field(256, ge=8)
    max_positions: int = Field(2048, ge=64)
    vocab_size: int = Field(640, ge=300, description="of the tokenizer trained on the environment's own traces")


class VisionSection(Section):
    """Eyes for the tiny model: a patch encoder and a projector in front of it."""

    on: bool = Field(False, description="whether the model that is built sees images")
    patch_px: Literal[4, 8, 16] = Field(8, description="model pixels along the side of an image token")
    max_image_tokens: int = Field(64, ge=1, description="budget of one image; a larger one is scaled down")
    vision_width: int = Field(64, ge=8, description="channels of the encoder")
    vision_layers: int = Field(1, ge=0, description="attention blocks over the image before the language model")


class LoraSection(Section):
    """Low-rank adapters instead of full weights."""

    rank: int = Field(0, ge=0, description="0 trains all weights")
    alpha: float = Field(32.0, gt=0)
    targets: str = Field("all-linear", description="all-linear, or comma-separated module names")


class ModelSection(Section):
    """The policy."""

    path: str = Field(
        "",
        description="a folder or hub id of a causal language model or one that sees images; empty: build a tiny model",
    )
    tiny: TinySection = TinySection()
    vision: VisionSection = VisionSection()
    device: str = Field("auto", description="auto, cpu, cuda")
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    lora: LoraSection = LoraSection()
    show_tools: Literal["full", "none", "auto"] = Field(
        "auto",
        description="put tool schemas into the prompt; auto: yes, except for tiny models, which learn them by SFT",
    )


class LimitsSection(Section):
    """What one episode may spend; an unset key keeps what the task or environment says."""

    max_turns: int | None = Field(None, ge=1)
    horizons: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (), description="training alone: turns drawn anew for each group, evenly from these, in place of max_turns"
    )
    max_turn_tokens: int | None = Field(None, ge=1)
    max_episode_tokens: int | None = Field(None, ge=1)
    max_context_tokens: int | None = Field(None, ge=8)
    timeout_s: float | None = Field(None, ge=0)
    max_tool_result_chars: int | None = Field(None, ge=16)
    max_malformed_calls: int | None = Field(None, ge=1)


class RolloutSection(Section):
    """How episodes are run beside the learner."""

    mode: Literal["sync", "async"] = Field(
        "sync",
        description="sync: a step waits for its own episodes (exact, resumes bit for bit); async: episodes run on "
        "while the learner steps, which pays where tools are slow or lengths uneven",
    )
    max_staleness: int = Field(
        4, ge=0, description="async: most steps between the oldest token of a group and the step that trains on it"
    )
    weights: Literal["in_flight", "episode"] = Field(
        "in_flight",
        description="async: new weights take effect for the next token (an episode may span versions), or episodes "
        "under way finish on the old ones first",
    )
    max_running: int = Field(0, ge=0, description="async: episodes at a time on each worker; 0: all that pacing allows")
    surplus: int = Field(
        0,
        ge=0,
        description="async: members started beyond group_size, cancelled once group_size have finished; shortens long "
        "tails and prefers short episodes",
    )
    straggler_s: float = Field(
        0.0,
        ge=0,
        description="async: give up groups that a step has waited for so long (dropped, counted); 0: wait",
    )


class SamplerSection(Section):
    """Where the policy is sampled; docs/servers.md."""

    url: str = Field("", description="a vLLM server that follows the learner's weights; empty: Burnish's own engine")
    name: str = Field("policy", description="what the server calls the model (--served-model-name)")
    folder: str = Field("", description="weights go through it, seen by the server too; empty: in the run's folder")
    max_in_flight: int = Field(256, ge=1, description="requests at a time")
    mode: Literal["auto", "think", "direct"] = Field(
        "auto",
        description="begin every turn of the policy with an open thinking block, or an empty one; auto: as it likes",
    )
