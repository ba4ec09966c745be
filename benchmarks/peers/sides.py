"""Running either side in processes of its own, on the same work, and reading back what it did."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from burnish.core.hashing import content_hash, derive_seed
from burnish.loop.conductor import start_run
from burnish.loop.note import write_note
from burnish.loop.recipes import load_recipe
from burnish.loop.standalone import export_run
from burnish.policies.build import TinySpec, build_tiny
from burnish.policies.load import no_progress_bar
from burnish.store.reader import RunReader
from burnish.tasks.cursor import TaskCursor
from burnish.training.export import export_folder
from peers.spec import Config, Run, Spec, Work

HERE = Path(__file__).resolve().parent.parent
N_TASKS = 2000
PROMPT_TOKENS = 15
"""Mean length of a prompt.  TRL bounds what follows the prompt, tool results included; Burnish bounds the whole path,
so its bound is this much higher."""
LARGE = TinySpec(hidden_size=512, layers=8, heads=8, kv_heads=8, intermediate_size=1280)
"""24.6M parameters with the shop's tokenizer."""
TIMEOUT_S = 1800.0


class SideFailed(Exception):
    """A side ended without a result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Burnish:
    """How Burnish is run.  workers 0: what it chooses by itself."""

    workers: int
    filtering: bool = False

    @property
    def label(self) -> str:
        count = "automatic workers" if self.workers == 0 else f"{self.workers} worker{'s' * (self.workers > 1)}"
        return count + (", filtering" if self.filtering else "")


def make_work(model: Path, seed: int, **changes: Any) -> Work:
    """The work of one seed: Burnish's own order of tasks, which TRL is then given."""
    empty = Work(model=str(model), order=(), seed=seed, **changes)
    cursor = TaskCursor(N_TASKS, derive_seed(seed, "rl order"))
    return replace(empty, order=tuple(cursor.next(empty.groups * empty.steps)))


# -- models ------------------------------------------------------------------------------------------------------------


def warm_model(folder: Path, *, quick: bool) -> Path:
    """The shop policy that both sides start from: the demo's tiny model after a longer warm start, made once.

    With the demo's own 540 steps the mean reward of a batch levels off at .89 at this learning rate.
    """
    path = folder / "sft-model"
    if not path.exists():
        words = ["warm_start.steps=1000", *(("warm_start.steps=60", "warm_start.traces=1200") if quick else ())]
        words += ["run.seed=1000", "run.workers=2", "rl.steps=0", "evaluation.modes=[]", "evaluation.before=false"]
        run = folder / f"sft-{os.getpid()}"
        start_run(load_recipe("demo", words), run)
        export_run(run, path)
    return path


def large_model(folder: Path, warm: Path) -> Path:
    """A random model of 25M parameters with the same tokenizer, made once."""
    path = folder / "large-model"
    if not path.exists():
        tokenizer = AutoTokenizer.from_pretrained(warm)
        with no_progress_bar():
            export_folder(build_tiny(tokenizer, LARGE, seed=0), tokenizer, path, stop_ids=(tokenizer.eos_token_id,))
        write_note(path, {"model": {"show_tools": "none"}})
    return path


# -- processes ---------------------------------------------------------------------------------------------------------


def run_process(command: list[str], threads: int, log: Path, timeout_s: float = TIMEOUT_S) -> None:
    """Run to the end with `threads` threads in every process; raises SideFailed with the last lines of its log."""
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TRL_EXPERIMENTAL_SILENCE": "1",
        "PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    with log.open("w", encoding="utf-8") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True)
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            code = -1
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if code != 0:
        tail = log.read_text(encoding="utf-8", errors="replace")[-1500:]
        raise SideFailed(f"{' '.join(command[:6])} ... ended with code {code}; the end of {log}:\n{tail}")


def trl_command(config: Config, spec: Path, *words: str) -> list[str]:
    """`accelerate launch` wants MPI for several processes on a CPU; torch's launcher gives the trainer gloo."""
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(config.processes)]
    launcher = several if config.processes > 1 else []
    return [sys.executable, *launcher, "-m", "peers.trl_side", str(spec), *words]


def run_trl(work: Work, config: Config, folder: Path, *words: str, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
    """TRL's side; the fields of a `Run`, or what the check found."""
    folder.mkdir(parents=True, exist_ok=True)
    load, path, out = os.getloadavg()[0], folder / "spec.json", folder / "result.json"
    out.unlink(missing_ok=True)
    Spec(work=work, config=config, out=str(out)).write(path)
    run_process(trl_command(config, path, *words), config.threads, folder / "log.txt", timeout_s)
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found | ({} if words else {"load": load})


def run_burnish(work: Work, settings: Burnish, folder: Path) -> dict[str, Any]:
    """Burnish's side, by its own command line; the fields of a `Run`."""
    folder.mkdir(parents=True, exist_ok=True)
    load, name = os.getloadavg()[0], f"run-{os.getpid()}"
    words = burnish_words(work, settings, folder, name)
    run_process([sys.executable, "-m", "burnish.cli", "train", "shop", *words], 1, folder / "log.txt")
    reader = RunReader(folder / name)
    steps = reader.steps("rl")
    read = {key: tuple(value for _, value in reader.scalars(key, "rl")) for key in SCALARS}
    if len(steps) != work.steps:
        raise SideFailed(f"{folder / name} has {len(steps)} steps of {work.steps}; see {folder / 'log.txt'}")
    return {
        # when the step was on disk: committing, reporting and the weight update are part of what it costs
        "ended_s": tuple(step.committed_at_s for step in steps),
        "reward": read["reward/mean"],
        "tokens": read["tokens/sampled"],
        "rollout_s": read["time/rollout_s"],
        "load": load,
    }


SCALARS = ("reward/mean", "tokens/sampled", "time/rollout_s")


def burnish_words(work: Work, settings: Burnish, root: Path, name: str) -> list[str]:
    """The settings of `work` for `burnish train`; whatever is not named here is Burnish's default."""
    return [
        f"run.root={root}",
        f"run.name={name}",
        f"run.seed={work.seed}",
        f"run.workers={settings.workers}",
        "run.threads=1",
        f"environment.options={{ level = {work.level} }}",
        f"model.path={work.model}",
        "model.show_tools=none",
        f"limits.max_turns={work.max_turns}",
        f"limits.max_turn_tokens={work.max_tokens}",
        f"limits.max_episode_tokens={work.max_tokens}",
        f"limits.max_context_tokens={work.max_tokens + PROMPT_TOKENS}",
        "warm_start.steps=0",
        f"rl.steps={work.steps}",
        f"rl.groups={work.groups}",
        f"rl.group_size={work.group_size}",
        "rl.updates=1",
        f"rl.lr={work.lr}",
        "rl.schedule=constant",
        "rl.warmup_steps=0",
        "rl.weight_decay=0.0",
        "rl.grad_clip=1.0",
        "rl.loss=grpo",
        "rl.baseline=mean",
        "rl.scale=std",
        "rl.aggregation=token",
        f"rl.clip_low={work.clip_low}",
        f"rl.clip_high={work.clip_high}",
        "rl.kl_weight=0.0",
        "rl.temperature=1.0",
        f"rl.filter_zero_signal={str(settings.filtering).lower()}",
        "evaluation.every=0",
        "evaluation.modes=[]",
        "evaluation.before=false",
        "checkpoint.every=100000",
        # a random policy has no reward at all; it is measured all the same
        "stop.no_signal_groups=0",
    ]


# -- TRL's best --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """Seconds per step of one configuration, None where it did not run."""

    config: Config
    step_s: float | None


class Search:
    """Looks for the fastest configurations of TRL on this machine; every trial is kept in `file`."""

    def __init__(self, file: Path, work: Work, cores: int) -> None:
        self._file, self._work, self._cores = file, work, cores
        self.trials: list[Trial] = []
        if file.exists():
            stored = json.loads(file.read_text(encoding="utf-8"))
            self.trials = [Trial(config=Config(**item["config"]), step_s=item["step_s"]) for item in stored]

    def run(self) -> None:
        """Threads, then processes; then the fastest as installed.

        Micro-batches, bf16 and continuous batching are tried at one thread, at the best number of threads, and at the
        best number of processes.
        """
        most = max(1, self._cores - 1)
        by_threads = [self._try(Config(threads=threads)) for threads in range(1, most + 1)]
        fastest = self._best(by_threads)
        for base in dict.fromkeys([Config(), fastest]):
            self._vary(base)
        micro = self.best(processes=1).micro_batch
        shapes = [
            (count, each) for count in (2, 4) for each in (1, self._cores // count) if each * count <= self._cores
        ]
        ranks = [self._try(Config(processes=p, threads=t, micro_batch=micro)) for p, t in dict.fromkeys(shapes)]
        if any(trial.step_s is not None for trial in ranks):
            self._vary(self._best(ranks))
        self._try(replace(self.best(), remember_schemas=False))

    def run_shapes(self) -> None:
        """Processes and threads in float32 and bf16 alone, for a model whose steps are long."""
        for processes, threads in [(1, max(1, self._cores - 1)), *self._shapes()]:
            for bf16 in (False, True):
                self._try(Config(processes=processes, threads=threads, bf16=bf16))

    def table(self) -> dict[str, float | None]:
        """Seconds per step by configuration, the fastest first."""
        ordered = sorted(self.trials, key=lambda trial: trial.step_s or float("inf"))
        return {trial.config.label: trial.step_s for trial in ordered}

    def _shapes(self) -> list[tuple[int, int]]:
        """Several processes and threads in each; the batch splits evenly over 2 and 4 processes alone."""
        cores = self._cores
        every = [(count, each) for count in (2, 4) if count <= cores for each in (1, cores // count)]
        return list(dict.fromkeys(every))

    def best(self, **wanted: int) -> Config:
        """The fastest configuration tried with these fields, such as `best(processes=1, threads=1)`."""
        matching = [trial for trial in self.trials if all(getattr(trial.config, k) == v for k, v in wanted.items())]
        return self._best([trial for trial in matching if trial.config.remember_schemas])

    def _vary(self, base: Config) -> None:
        for change in ({"micro_batch": 64}, {"bf16": True}, {"continuous_batching": True}):
            self._try(replace(base, **change))  # type: ignore[arg-type]

    def _best(self, trials: list[Trial]) -> Config:
        return min(trials, key=lambda trial: float("inf") if trial.step_s is None else trial.step_s).config

    def _try(self, config: Config) -> Trial:
        for trial in self.trials:
            if trial.config == config:
                return trial
        folder = self._file.with_suffix("") / content_hash(asdict(config))[:8]
        try:
            seconds = sorted(Run(**run_trl(self._work, config, folder, timeout_s=300.0)).step_s)
            trial = Trial(config=config, step_s=seconds[len(seconds) // 2])
        except SideFailed:
            trial = Trial(config=config, step_s=None)
        self.trials.append(trial)
        shown = "failed" if trial.step_s is None else f"{trial.step_s:.2f} s/step"
        print(f"  TRL, {config.label}: {shown}", flush=True)
        self._file.write_text(json.dumps([asdict(item) for item in self.trials]), encoding="utf-8")
        return trial


def versions() -> dict[str, str]:
    """Versions of what is compared."""
    return {name: version(name) for name in ("burnish", "trl", "transformers", "accelerate")} | {
        "torch": torch.__version__
    }
