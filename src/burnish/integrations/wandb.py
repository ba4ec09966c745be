"""Export of a stored run to Weights & Biases (https://docs.wandb.ai/ref/python)."""

from __future__ import annotations

from burnish.core.errors import ConfigError
from burnish.integrations.trackers import COLUMNS, TrackedRun, load_tracker

AXES = ("sft", "rl", "eval")


def export(run: TrackedRun, project: str) -> str:
    """Write a run to a project as a new run; returns where it is.

    Where and whether it is sent is wandb's own business (WANDB_MODE=offline keeps it in a local folder).  Each phase
    has its own axis, PHASE/step.  Raises ConfigError where wandb is missing or refuses.
    """
    wandb = load_tracker("wandb")
    try:
        made = wandb.init(
            project=project, name=run.name, config=dict(run.config), reinit="create_new", settings={"silent": True}
        )
        for phase in AXES:
            made.define_metric(f"{phase}/step", hidden=True)
            made.define_metric(f"{phase}/*", step_metric=f"{phase}/step")
        for step in run.steps:
            made.log({**step.values, f"{step.phase}/step": step.step})
        if run.events:
            made.log({"findings_and_decisions": wandb.Table(columns=list(COLUMNS), data=run.event_rows())})
        made.finish()
    except wandb.Error as error:
        raise ConfigError(f"wandb did not take the run: {error}; `wandb login`, or set WANDB_MODE=offline") from error
    return str(made.dir if made.offline else made.url)
