"""Lists by filter agree with reading everything; a whole trajectory is the stored one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from synthetic_run import HOSTILE, SyntheticRun, finished_run

from burnish.core.errors import ConfigError, StoreError
from burnish.reports.data import RunData
from burnish.reports.failures import Failures
from burnish.reports.sample import choose_sample
from burnish.reports.trajectories import MAX_PAGE, Filter, list_trajectories, read_trajectories, read_trajectory
from burnish.store.reader import RunReader
from burnish.store.rows import StoredTrajectory

Keep = Callable[[StoredTrajectory], bool]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SyntheticRun:
    made = finished_run(tmp_path_factory.mktemp("runs") / "first", rl_steps=5)
    made.writer.close()
    return made


@pytest.fixture(scope="module")
def reader(run: SyntheticRun) -> RunReader:
    return RunReader(run.folder)


@pytest.fixture(scope="module")
def everything(reader: RunReader) -> list[StoredTrajectory]:
    return [row for info in reader.steps() if info.segment for row in reader.trajectories(info.phase, info.step)]


def names(reader: RunReader, **filters: str) -> set[str]:
    page = list_trajectories(reader, Filter.parse(filters | {"limit": str(MAX_PAGE)}))
    assert page["total"] == len(page["rows"])
    return {row["id"] for row in page["rows"]}


def is_full(row: StoredTrajectory) -> bool:
    return row.phase == "rl" and row.reward is not None and row.reward >= 1


@pytest.mark.parametrize(
    ("filters", "keep"),
    [
        ({"phase": "sft"}, lambda row: row.phase == "sft"),
        ({"phase": "rl", "step": "3"}, lambda row: (row.phase, row.step) == ("rl", 3)),
        ({"fate": "failed"}, lambda row: row.fate == "failed"),
        ({"outcome": "truncated:turns"}, lambda row: row.trajectory.outcome.label == "truncated:turns"),
        ({"outcome": "error:environment"}, lambda row: row.trajectory.outcome.label == "error:environment"),
        ({"reward": "full", "phase": "rl"}, is_full),
        ({"reward": "zero"}, lambda row: row.reward is not None and row.reward <= 0),
        ({"reward": "none"}, lambda row: row.reward is None),
        ({"text": "ORDERS-1"}, lambda row: "orders-1" in row.trajectory.task_id),
        ({"text": "is lost.", "phase": "rl"}, lambda row: row.phase == "rl" and "lost" in row.trajectory.answer),
        ({"text": "no such text"}, lambda row: False),
    ],
)
def test_filters_agree_with_reading_everything(
    reader: RunReader, everything: list[StoredTrajectory], filters: dict[str, str], keep: Keep
) -> None:
    assert names(reader, **filters) == {row.trajectory.id for row in everything if keep(row)}


@pytest.mark.parametrize("text", ['"status":"shipped"', "Zoë 🙂", "urgent", "unreadable"])
def test_text_is_found_inside_messages_however_json_spells_it(reader: RunReader, text: str) -> None:
    assert len(names(reader, text=text, phase="rl", step="1")) == 24


@pytest.mark.parametrize("text", ["' OR 1=1 --", '"; DROP TABLE trajectories', "\\", "%", "\x00", "🙂'"])
def test_text_is_a_value_and_never_sql(reader: RunReader, text: str) -> None:
    assert list_trajectories(reader, Filter.parse({"text": text, "fate": text}))["total"] == 0


def test_pages_join_to_the_whole_list_newest_rl_step_first(reader: RunReader) -> None:
    pages = [list_trajectories(reader, Filter(offset=offset, limit=50)) for offset in range(0, 250, 50)]
    ids = [row["id"] for page in pages for row in page["rows"]]
    assert len(ids) == len(set(ids)) == pages[0]["total"]
    assert ids[0] == "rl/000005/0000/00"
    assert ids[-1].startswith("sft/")


@pytest.mark.parametrize("values", [{"step": "x"}, {"offset": "1.5"}, {"reward": "big"}, {"limit": "many"}])
def test_a_filter_that_cannot_be_is_refused(values: dict[str, str]) -> None:
    with pytest.raises(ConfigError):
        Filter.parse(values)


def test_a_filter_is_bounded() -> None:
    wanted = Filter.parse({"offset": "-5", "limit": "100000", "text": "x" * 5000})
    assert (wanted.offset, wanted.limit, len(wanted.text)) == (0, MAX_PAGE, 200)


def test_a_whole_trajectory_is_the_stored_one(reader: RunReader) -> None:
    row = reader.trajectories("rl", 2)[5]
    whole = json.loads(json.dumps(read_trajectory(reader, row.trajectory.id), allow_nan=False))
    assert whole["seed"] == str(row.trajectory.seed)
    assert whole["outcome"] == row.trajectory.outcome.label
    assert whole["grades"][0]["evidence"] == row.grades[0].evidence
    assert whole["final_state"] == row.trajectory.final_state
    assert [member["id"] for member in whole["group"]] == [f"rl/000002/0001/{n:02d}" for n in range(4)]
    for node, shown in zip(row.trajectory.nodes, whole["nodes"], strict=True):
        assert shown["ids"] == list(node.token_ids)
        assert shown["versions"] == (3 if node.is_action else -1)
        assert (shown["fork"], shown["parent"]) == (node.fork, node.parent)
        if node.is_action:
            assert shown["logprobs"] == [round(value, 3) for value in node.logprobs]
        else:
            assert shown["logprobs"] is None
            assert all(math.isnan(value) for value in node.logprobs)
    assert whole["nodes"][1]["messages"][0]["tool_calls"][0]["name"] == "get_order"


def test_an_unknown_trajectory_is_named(reader: RunReader) -> None:
    with pytest.raises(StoreError, match="no trajectory 'rl/9'"):
        read_trajectory(reader, "rl/9")
    assert [one["id"] for one in read_trajectories(reader, ["nope", "rl/000001/0001/00"])] == ["rl/000001/0001/00"]


def test_the_sample_is_bounded_and_comes_from_all_over_the_run(reader: RunReader) -> None:
    sample = choose_sample(reader, Failures(reader))
    steps = {(one["phase"], one["step"]) for one in sample}
    assert {("rl", 1), ("rl", 3), ("rl", 5), ("sft", 0)} <= steps
    assert {one["fate"] for one in sample} >= {"trained", "filtered", "failed", "held_out", "demonstration"}
    assert any(phase == "eval" for phase, _ in steps)
    assert len({one["id"] for one in sample}) == len(sample)
    small = choose_sample(reader, Failures(reader), max_bytes=60_000)
    assert 0 < len(json.dumps(small, separators=(",", ":"))) < 60_000
    assert choose_sample(reader, Failures(reader), max_bytes=0) == []


def test_what_failed_is_diagnosed_in_the_sample_as_in_the_live_page(run: SyntheticRun) -> None:
    data = RunData(run.folder)
    sample = data.sample()["trajectories"]
    for one in sample[:: max(1, len(sample) // 20)]:
        assert one["diagnosis"] == data.trajectory(one["id"])["diagnosis"]
    failed = {one["id"] for one in sample if one["diagnosis"]}
    assert failed == {one["id"] for one in sample if one["phase"] != "sft" and (one["reward"] or 0.0) < 1.0}
    assert {one["phase"] for one in sample if one["id"] in failed} == {"rl", "eval"}


def test_a_run_without_trajectories_has_an_empty_sample(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "run")
    assert choose_sample(RunReader(run.folder), Failures(RunReader(run.folder))) == []
    run.writer.close()


def test_data_reads_again_only_when_the_run_has_something_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = SyntheticRun(tmp_path / "run", spoil=HOSTILE)
    run.commit_rl_step()
    data = RunData(run.folder)
    asked: list[str] = []
    query = RunReader.query

    def counted(self: RunReader, sql: str, parameters: object = None) -> object:
        asked.append(sql)
        return query(self, sql, parameters)  # type: ignore[arg-type]

    monkeypatch.setattr(RunReader, "query", counted)
    first = [data.overview(), data.list(Filter()), data.trajectory("rl/000001/0001/00")]
    n_asked = len(asked)
    again = [data.overview(), data.list(Filter()), data.trajectory("rl/000001/0001/00")]
    assert again == first
    assert len(asked) == n_asked
    run.commit_rl_step()
    assert data.overview()["revision"] != first[0]["revision"]
    assert data.list(Filter())["total"] == 48
    assert len(asked) > n_asked
    run.writer.close()
