"""Forks: what may change, where they start, what they carry along."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from letter_runs import LETTERS, changed, run_letters, weights

from burnish.core.errors import CheckpointError, ConfigError, RunStopped
from burnish.loop import conductor
from burnish.loop.conductor import resume_run
from burnish.loop.fork import fork_run, forked_recipe
from burnish.loop.manifest import stored_recipe
from burnish.loop.replay import replay_step
from burnish.loop.standalone import stored_policy
from burnish.store.layout import RunLayout
from burnish.store.reader import RunReader
from burnish.store.rows import RunState
from burnish.training.checkpoint import load_checkpoint


def fork(parent: Path, folder: Path, *overrides: str, checkpoint: str = "") -> Path:
    fork_run(parent, forked_recipe(parent, overrides), folder, checkpoint=checkpoint)
    return folder


def rl_steps(run: Path) -> list[int]:
    return [info.step for info in RunReader(run).steps("rl")]


# -- keys -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("override", ["model.lora.rank=2", "model.path=x", "warm_start.steps=9", "warm_start.lr=1.0"])
def test_what_the_weights_are_made_of_cannot_change(plain_run: Path, override: str) -> None:
    with pytest.raises(ConfigError, match=rf"fork cannot change {override.partition('=')[0]}: .*may change: run, "):
        forked_recipe(plain_run, [override])


def test_mistyped_keys_are_told_before_anything_else(plain_run: Path) -> None:
    for word, message in (
        ("rl.stpes=3", "did you mean 'rl.steps'"),
        ("modle.path=x", "did you mean 'model.path'"),
        ("rl.steps", "not of the form"),
        ("rl.lr=fast", "fork of plain: rl.lr = 'fast'"),
    ):
        with pytest.raises(ConfigError, match=message):
            forked_recipe(plain_run, [word])


def test_everything_else_is_the_parents(plain_run: Path) -> None:
    before, after = stored_recipe(plain_run), forked_recipe(plain_run, ["rl.lr=0.5", "limits.max_turns=3"])
    assert (after.rl.lr, after.limits.max_turns) == (0.5, 3)
    assert (after.model, after.warm_start, after.environment) == (before.model, before.warm_start, before.environment)
    assert (after.run.name, Path(after.run.root)) == ("", plain_run.parent)
    assert after.rl.model_copy(update={"lr": before.rl.lr}) == before.rl


# -- where it starts ------------------------------------------------------------------------------------------------


def test_a_finished_run_goes_on_with_more_steps(plain_run: Path, tmp_path) -> None:
    child = fork(plain_run, tmp_path / "more", "rl.steps=7")
    reader = RunReader(child)
    assert rl_steps(child) == [6, 7]
    assert reader.status().state is RunState.FINISHED
    origin = reader.manifest()["parent"]
    assert (origin["run"], origin["checkpoint"]) == ("plain", "final")
    assert [event.kind for event in reader.events()] == ["forked"]
    assert changed(weights(plain_run, "final"), weights(child, "final"))
    assert not changed(weights(plain_run, "final"), weights(child, "rl-000005"))
    assert replay_step(child, 7, lambda text: None).bit_equal


def test_baselines_are_kept_where_that_is_asked_for(plain_run: Path, tmp_path) -> None:
    def state(run: Path, checkpoint: str):
        return load_checkpoint(RunLayout(run).checkpoints, checkpoint, repair=False).state

    recipe, children = forked_recipe(plain_run, []), {}
    for keep in (True, False):
        children[keep] = tmp_path / f"keep-{keep}"
        fork_run(plain_run, recipe, children[keep], checkpoint="rl-000002", keep_baselines=keep)
    parent, kept, anew = (state(run, "final") for run in (plain_run, children[True], children[False]))
    assert (kept["health"], kept["control"]) == (parent["health"], parent["control"])
    assert (anew["health"], anew["control"]) != (parent["health"], parent["control"])
    first = state(children[True], "rl-000002")
    assert first["marks"] == [{"name": "rl-000002", "step": 2, "verified": True}]
    assert first["reservoir"] is None
    other = forked_recipe(plain_run, ["health.baseline_steps=20"])
    with pytest.raises(ConfigError, match="baselines do not fit"):
        fork_run(plain_run, other, tmp_path / "no", checkpoint="rl-000002", keep_baselines=True)
    assert not (tmp_path / "no").exists()


def test_a_fork_with_nothing_changed_does_what_the_parent_did(plain_run: Path, tmp_path) -> None:
    child = fork(plain_run, tmp_path / "same", checkpoint="rl-000002")
    assert rl_steps(child) == [3, 4, 5]
    theirs, mine = RunReader(plain_run), RunReader(child)
    for step in (3, 4, 5):
        assert mine.step_scalars("rl", step)["loss"] == theirs.step_scalars("rl", step)["loss"]
    assert not changed(weights(plain_run, "final"), weights(child, "final"))
    # Its own books begin anew.
    [before, after] = [load_checkpoint(RunLayout(r).checkpoints, "final").state["ledger"] for r in (plain_run, child)]
    assert after["dispatched"] == 3 * 12
    assert before["dispatched"] == 5 * 12


def test_a_changed_learning_rate_matters(plain_run: Path, tmp_path) -> None:
    child = fork(plain_run, tmp_path / "slow", "rl.lr=1e-5", checkpoint="rl-000002")
    theirs, mine = RunReader(plain_run), RunReader(child)
    assert mine.step_scalars("rl", 3)["loss"] == theirs.step_scalars("rl", 3)["loss"]
    assert mine.step_scalars("rl", 4)["loss"] != theirs.step_scalars("rl", 4)["loss"]


def test_after_sft_the_world_may_be_another(plain_run: Path, tmp_path) -> None:
    words = ("environment.options.drawers=2", "rl.steps=2", "environment.seed=1")
    child = fork(plain_run, tmp_path / "smaller", *words, checkpoint="sft-000020")
    assert rl_steps(child) == [1, 2]
    reader = RunReader(child)
    asked = {row.trajectory.messages[0].text for row in reader.trajectories("rl", 1)}
    assert asked <= {"What is in a?", "What is in b?"}
    assert [row.label for row in reader.evaluations()] == ["after_rl", "after_rl"]
    assert not changed(weights(plain_run, "sft-000020"), weights(child, "rl-000000"))
    assert changed(weights(child, "rl-000000"), weights(child, "final"))


def test_other_tasks_start_another_order(plain_run: Path, tmp_path) -> None:
    """The advice to somebody whose tasks have changed is to fork; their number may have changed too."""
    path = tmp_path / "letters.py"
    assert "(24 if" in LETTERS.read_text()
    path.write_text(LETTERS.read_text().replace("(24 if", "(7 if"))
    child = fork(plain_run, tmp_path / "child", f"environment.name={path}", "rl.steps=6")
    assert rl_steps(child) == [6]
    cursor = load_checkpoint(RunLayout(child).checkpoints, "final").state["task_cursor"]
    assert cursor["n_tasks"] == 7


def test_another_seed_draws_other_episodes(plain_run: Path, tmp_path) -> None:
    child = fork(plain_run, tmp_path / "seeded", "run.seed=6", "rl.steps=1", checkpoint="rl-000000")
    first = [row.trajectory.seed for row in RunReader(plain_run).trajectories("rl", 1)]
    second = [row.trajectory.seed for row in RunReader(child).trajectories("rl", 1)]
    assert not set(first) & set(second)


@pytest.mark.parametrize(
    ("checkpoint", "words", "error", "message"),
    [
        ("", (), ConfigError, r"at RL step 5 and rl\.steps is 5; give a larger one, such as rl\.steps=45"),
        ("rl-000004", ("rl.steps=3",), ConfigError, "at RL step 4"),
        ("rl-000099", (), CheckpointError, "no checkpoint rl-000099 in .*; there are: final,"),
        ("rl-000002", ("run.name=x", "environment.options.drwers=2"), ConfigError, "did you mean 'drawers'"),
        ("rl-000002", ("rl.loss=grop",), ConfigError, "did you mean 'grpo'"),
    ],
)
def test_a_fork_that_cannot_be_leaves_nothing(plain_run: Path, tmp_path, checkpoint, words, error, message) -> None:
    with pytest.raises(error, match=message):
        fork(plain_run, tmp_path / "child", *words, checkpoint=checkpoint)
    assert not (tmp_path / "child").exists()


def test_within_the_warm_start_there_is_nothing_to_fork(tmp_path) -> None:
    class Enough:
        step = 0

        def watch(self, progress) -> None:
            self.step = max(self.step, progress.step if progress.phase == "sft" else 0)

        def stop(self) -> bool:
            return self.step >= 3

    from letter_runs import letters_recipe

    stop = Enough()
    with pytest.raises(RunStopped):
        conductor.start_run(letters_recipe(), tmp_path / "early", watch=stop.watch, stop=stop.stop)
    with pytest.raises(ConfigError, match="lies within the warm start"):
        fork(tmp_path / "early", tmp_path / "child", "rl.steps=9")


# -- what it carries along ------------------------------------------------------------------------------------------


def test_the_reference_of_the_kl_term_is_carried_along(rich_run: Path, tmp_path) -> None:
    child = fork(rich_run, tmp_path / "child", checkpoint="rl-000002")
    theirs, mine = RunReader(rich_run), RunReader(child)
    for step in (3, 4, 5):
        key = next(name for name in theirs.step_scalars("rl", step) if name.startswith("kl_reference"))
        assert mine.step_scalars("rl", step)[key] == theirs.step_scalars("rl", step)[key] != 0.0
    assert not changed(weights(rich_run, "rl-000000"), weights(child, "rl-000000"))
    assert replay_step(child, 4, lambda text: None).bit_equal


def test_a_grandchild_still_knows_the_reference(plain_run: Path, tmp_path) -> None:
    child = fork(plain_run, tmp_path / "child", "rl.steps=6")
    grandchild = fork(child, tmp_path / "grandchild", "rl.steps=7", "rl.kl_weight=0.1")
    assert not changed(weights(plain_run, "rl-000000"), weights(grandchild, "rl-000000"))
    scalars = RunReader(grandchild).step_scalars("rl", 7)
    assert any(name.startswith("kl_reference") and value > 0 for name, value in scalars.items())


def test_a_lost_reference_is_said_at_once(plain_run: Path, copied, tmp_path) -> None:
    run = copied(plain_run)
    shutil.rmtree(RunLayout(run).checkpoints / "rl-000000")
    with pytest.raises(ConfigError, match=r"rl\.kl_weight .* need the policy at the start of RL"):
        fork(run, tmp_path / "child", "rl.steps=6", "rl.kl_weight=0.1")
    assert not (tmp_path / "child").exists()


@pytest.mark.parametrize("moment", ["at once", "before the checkpoint"])
def test_an_interrupted_fork_is_resumed_as_a_fork(plain_run: Path, tmp_path, monkeypatch, moment: str) -> None:
    import burnish.loop.fork as module

    name = "conduct" if moment == "at once" else "save_checkpoint"

    def killed(*arguments, **options):
        raise KeyboardInterrupt

    child = tmp_path / "child"
    with monkeypatch.context() as patch:
        patch.setattr(module, name, killed)
        with pytest.raises(KeyboardInterrupt):
            fork(plain_run, child, "rl.steps=6")
    if moment == "at once":
        resume_run(child)
        assert rl_steps(child) == [6]
    else:
        # Training it from nothing would be another run under its name.
        with pytest.raises(CheckpointError, match="no usable checkpoint of its own; fork run plain again"):
            resume_run(child)


def test_frozen_weights_below_adapters_survive_a_change_of_seed(tmp_path) -> None:
    """A model that was built here is built from the seed; its adapters fit no other."""
    words = ("model.lora.rank=2", "rl.steps=1", "warm_start.steps=2")
    parent = run_letters(tmp_path / "parent", *words)
    child = fork(parent, tmp_path / "child", "run.seed=9", "rl.steps=2")
    base = [stored_policy(run)[1].model.get_base_model().state_dict() for run in (parent, child)]
    frozen = [name for name in base[0] if "lora_" not in name]
    assert len(frozen) > 5
    assert all(torch.equal(base[0][name], base[1][name]) for name in frozen)
    assert stored_recipe(child).run.seed == 9
