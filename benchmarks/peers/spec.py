"""What one run of TRL is, as a file that its process reads; and what comes back."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """How TRL uses the machine.  `Config(processes=1, threads=3, micro_batch=256)`

    processes and threads: ranks of gloo, and torch threads in each.  micro_batch: sequences in one forward and backward
    pass, at most those of a process.  bf16: TRL's mixed precision (the weights stay float32).  remember_schemas: see
    `trl_side`.
    """

    processes: int = 1
    threads: int = 1
    micro_batch: int = 256
    bf16: bool = False
    continuous_batching: bool = False
    remember_schemas: bool = True

    @property
    def label(self) -> str:
        """Such as "2 processes x 1 thread, bf16"."""
        parts = [
            f"{self.processes} process{'es' * (self.processes > 1)} x {self.threads} thread{'s' * (self.threads > 1)}"
        ]
        parts += [f"micro-batch {self.micro_batch}"] if self.micro_batch != 256 else []
        parts += ["bf16"] * self.bf16 + ["continuous batching"] * self.continuous_batching
        parts += [] if self.remember_schemas else ["as installed"]
        return ", ".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What both sides do.  order: positions of the training tasks, one for each prompt of the run, in the order in
    which they are used."""

    model: str
    order: tuple[int, ...]
    seed: int
    steps: int
    groups: int = 32
    group_size: int = 8
    max_tokens: int = 80
    max_turns: int = 4
    lr: float = 3e-4
    clip_low: float = 0.2
    clip_high: float = 0.28
    level: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """A run of TRL; its result is written to `out`."""

    work: Work
    config: Config
    out: str

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @staticmethod
    def read(path: Path) -> Spec:
        data = json.loads(path.read_text(encoding="utf-8"))
        work = data["work"] | {"order": tuple(data["work"]["order"])}
        return Spec(work=Work(**work), config=Config(**data["config"]), out=data["out"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What one run gave, step by step.

    ended_s: wall clock at the end of each step, everything between two steps included.  reward: mean of the batch.
    tokens: sampled by the policy.  rollout_s: for generation, tools and scoring.  load: of the machine just before.
    """

    ended_s: tuple[float, ...]
    reward: tuple[float, ...]
    tokens: tuple[float, ...]
    rollout_s: tuple[float, ...]
    load: float = 0.0

    @property
    def step_s(self) -> list[float]:
        """Seconds of each step but the first, which warms up."""
        return [after - before for before, after in pairwise(self.ended_s)]

    @property
    def tokens_per_s(self) -> list[float]:
        """Sampled tokens per second of the whole step."""
        return [tokens / seconds for tokens, seconds in zip(self.tokens[1:], self.step_s, strict=True)]

    @property
    def rollout_tokens_per_s(self) -> list[float]:
        """Sampled tokens per second of generation, tools and scoring."""
        return [tokens / seconds for tokens, seconds in zip(self.tokens[1:], self.rollout_s[1:], strict=True)]

    def seconds_to(self, level: float, window: int = 5) -> float | None:
        """Wall seconds from the end of the first step until the mean reward of the last `window` batches is `level`."""
        for last in range(window - 1, len(self.reward)):
            if sum(self.reward[last - window + 1 : last + 1]) / window >= level:
                return self.ended_s[last] - self.ended_s[0]
        return None

    def final_reward(self, window: int = 10) -> float:
        """Mean reward of the last `window` batches."""
        tail = self.reward[-window:]
        return sum(tail) / len(tail)
