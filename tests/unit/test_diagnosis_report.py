"""Many diagnoses together: report, comparison, corrections, exports, tags."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from synthetic_run import HOSTILE, finished_run

from burnish.cli import main
from burnish.control.reservoir import Candidate, Reservoir, ReservoirSpec
from burnish.core.errors import ConfigError
from burnish.diagnosis.built_in import policy_of_run
from burnish.diagnosis.comparison import ALL, compare, regressed
from burnish.diagnosis.corrections import Correction, append, of_label, read_corrections
from burnish.diagnosis.diagnose import Engine
from burnish.diagnosis.formats.chat import write_chat
from burnish.diagnosis.markdown import headline, markdown, slice_rows
from burnish.diagnosis.overview import Case, Overview, accuracy, overview_json
from burnish.diagnosis.page import page
from burnish.diagnosis.pairs import Passing, pair, prefix
from burnish.diagnosis.record import Call, Item, Record
from burnish.diagnosis.tags import leaves_loss, near_miss, near_misses, selects, tag_row
from burnish.diagnosis.taxonomy import Category, Fault
from burnish.store.overrides import Override, OverrideKind
from burnish.store.reader import RunReader
from burnish.store.rows import RunState
from burnish.store.writer import RunWriter

ENGINE = Engine()


def record(
    number: int,
    *,
    order: str = "#A1234",
    passed: bool = False,
    task: str = "",
    prompt: str = "Cancel order #A1234.",
    **extra: Any,
) -> Record:
    """An agent that cancels an order: the right one, or one that nobody has ever named (message 4)."""
    turns: list[tuple[str, str | Call]] = [
        ("user", prompt),
        ("assistant", Call(id="c1", name="find_order", arguments={"text": "order"})),
        ("tool", '{"order_id": "#A1234", "status": "pending"}'),
        ("assistant", Call(id="c2", name="cancel_order", arguments={"order_id": order})),
        ("tool", "ok"),
        ("assistant", "It is done."),
    ]
    items = tuple(
        Item(index=n, role=role, calls=(what,)) if isinstance(what, Call) else Item(index=n, role=role, text=what)
        for n, (role, what) in enumerate(turns, start=1)
    )
    return Record(id=f"r{number}", items=items, passed=passed, task_id=task or f"t{number}", extra=extra)


def wrong(number: int, **more: Any) -> Record:
    return record(number, order="#Z9999", **more)


def looked(*records: Record, corrections: tuple[Correction, ...] = ()) -> Overview:
    overview, words = Overview(name="runs"), {row.trajectory_id: row for row in corrections}
    for one in records:
        overview.add(one, None if one.passed else ENGINE.diagnose(one), words.get(one.id))
    return overview


def case_of(one: Record) -> Case:
    (case,) = looked(one).cases
    return case


def write(path: Path, *records: Record) -> str:
    path.write_text("".join(json.dumps(write_chat(one)) + "\n" for one in records), encoding="utf-8")
    return str(path)


# -- overview --------------------------------------------------------------------------------------------------------


def test_failures_alike_are_one_cluster_and_stand_in_their_place() -> None:
    found = looked(*(wrong(n) for n in range(7)), record(9, passed=True))
    (key, cluster), *others = found.ordered_clusters()
    assert not others
    assert key == ("invention", "agent", "ungrounded", "cancel_order")
    assert (cluster.count, len(cluster.examples)) == (7, 5)
    assert found.heat == Counter({("invention", 5): 7})
    assert (found.runs, found.passed, found.accused) == (8, 1, 7)


def test_slices_follow_the_steps_of_a_run() -> None:
    rows = [wrong(n, step=n, tags={"skill": "change"}) for n in range(4)]
    rows += [record(n, passed=True, step=n, tags={"skill": "lookup"}) for n in range(4, 8)]
    found = overview_json(looked(*rows))
    by_slice = {(row["slice"], row["steps"]): row for row in found["slices"]}
    assert by_slice["all", "0"]["failed"] == 1
    assert by_slice["skill=change", "3"]["invention"] == 1
    assert by_slice["skill=lookup", "7"]["failed"] == 0
    assert found["teachable"] == {"skill": {"change": 1.0, "lookup": 0.0}}


def test_every_slice_is_told_however_many_steps_there_were() -> None:
    kinds = ("lookup", "change", "sum", "note")
    found = looked(*(wrong(n, step=n, tags={"skill": kinds[n % 4]}) for n in range(64)))
    for spans in (1, 3):
        rows = slice_rows(found, spans=spans)
        names = Counter(row[0] for row in rows)
        assert names == {"all": 8, **{f"skill={kind}": spans for kind in kinds}}
        assert sum(int(row[2]) for row in rows) == 128, "each run stands once under all and once under its skill"


def test_it_stays_bounded() -> None:
    found = looked(*(wrong(n, tags={"name": str(n)}) for n in range(500)))
    assert found.accused == 500
    assert 100 <= len(found.cases) <= 200
    numbers = [int(case.record.id[1:]) for case in found.cases]
    assert (numbers[0], {b - a for a, b in pairwise(numbers)}) == (0, {4})
    assert numbers[-1] >= 496, "the end of a run is seen too"
    assert len(found.slices) <= 200


# -- report ----------------------------------------------------------------------------------------------------------


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.handlers: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.handlers += [name for name, _ in attrs if name.startswith("on")]


def test_strangers_words_are_no_markup() -> None:
    spoilt = replace(wrong(1, prompt=HOSTILE, tags={HOSTILE[:50]: HOSTILE[:50]}), id=HOSTILE)
    made = page(looked(spoilt, wrong(2)))
    tags = _Tags()
    tags.feed(made)
    assert tags.tags["script"] == 1
    assert tags.tags["img"] == 0
    assert not tags.handlers
    assert "window.hacked = 1</script>" not in made
    text = markdown(looked(spoilt, wrong(2)))
    assert "<script>" not in text
    assert all(
        line.count("|") == line.count("\\|") + 7 for line in text.splitlines() if line.startswith("| 1 | invention")
    )


def test_it_says_what_it_wrote_and_how_much(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, folder = write(tmp_path / "a.jsonl", wrong(1), record(2, passed=True)), tmp_path / "data"
    words = ["--export", str(folder), "--out", str(tmp_path / "o.jsonl"), "--report", str(tmp_path / "r.html")]
    assert main(["diagnose", path, *words]) == 0
    shown = capsys.readouterr().out
    for name, rows in (("data/pairs.jsonl", " (0 rows)"), ("data/prefixes.jsonl", " (1 row)"), ("o.jsonl", " (1 row)")):
        assert f"wrote {tmp_path / name}{rows}\n" in shown
    assert f"wrote {tmp_path / 'r.html'}\n" in shown
    assert main(["diagnose", path, "--json"]) == 0
    assert "wrote" not in capsys.readouterr().out, "JSON lines alone"


def test_the_timeline_shows_where_and_why(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", wrong(1), record(2, passed=True))
    for name in ("r.html", "r.md"):
        assert main(["diagnose", path, "--report", str(tmp_path / name)]) == 0
    text = (tmp_path / "r.md").read_text()
    assert "### r1: message 4, invention, agent" in text
    assert "**critical**" in text
    made = (tmp_path / "r.html").read_text()
    assert '<tr class="critical"><td>4' in made
    assert "was never seen before it was used" in made
    assert "http" not in made
    assert main(["diagnose", path, "--report", str(tmp_path / "r.pdf")]) == 2


def test_it_fits_a_terminal_of_80_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [replace(wrong(n), id=f"a/very/long/name/of/a/trajectory/that/goes/on/{n}") for n in range(25)]
    assert main(["diagnose", write(tmp_path / "a.jsonl", *rows)]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert "invention" in shown


# -- comparison ------------------------------------------------------------------------------------------------------


def test_more_failures_are_a_regression_and_fewer_or_as_many_are_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = [record(n, passed=n % 10 > 0, order="#A1234" if n % 10 else "#Z9999") for n in range(30)]
    bad = [record(n, passed=n % 2 > 0, order="#A1234" if n % 2 else "#Z9999") for n in range(30)]
    a, b = write(tmp_path / "a.jsonl", *bad), write(tmp_path / "b.jsonl", *good)
    assert main(["diagnose", a, "--compare", b]) == 4
    assert "regressed: failed, invention" in capsys.readouterr().out
    assert main(["diagnose", b, "--compare", a]) == 0
    assert main(["diagnose", a, "--compare", a]) == 0
    capsys.readouterr()
    assert main(["diagnose", a, "--compare", b, "--json"]) == 4
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["compared"]
    assert (rows[0]["name"], rows[0]["n_tasks"]) == ("failed", 30)
    assert main(["diagnose", a, "--compare", str(tmp_path / "none")]) == 2


def test_chance_is_no_regression() -> None:
    def side(failures: int) -> Overview:
        rows = [wrong(n) if n < failures else record(n, passed=True) for n in range(30)]
        return looked(*rows)

    assert not regressed(compare(side(11), side(10)))
    assert regressed(compare(side(22), side(10)))


def test_files_without_common_tasks_are_compared_by_their_shares() -> None:
    now = looked(*(wrong(n) for n in range(20)), *(record(n, passed=True) for n in range(20, 40)))
    before = looked(*(record(n, passed=True) for n in range(100, 140)))
    changes = compare(now, before)
    assert (changes[0].name, changes[0].n_tasks, changes[0].is_worse) == (ALL, 0, True)
    # Newcombe (1998), method 10: 20 of 40 against 0 of 40, at 1 - 0.05 / 2 for two rows
    assert changes[0].low == pytest.approx(0.298, abs=0.002)
    assert not regressed(compare(before, before))
    with pytest.raises(ValueError, match="at least one"):
        compare(now, Overview())


# -- corrections -----------------------------------------------------------------------------------------------------


def test_what_people_say_counts_and_what_was_said_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, words = write(tmp_path / "a.jsonl", wrong(1), wrong(2)), tmp_path / "words.jsonl"
    append(words, Correction(trajectory_id="r1", index=1, owner=Fault.USER, by="ann", reason="he said it wrongly"))
    first = words.read_text()
    append(words, Correction(trajectory_id="r1", index=2, category=Category.MISREADING, by="ben", reason="no, here"))
    assert words.read_text().startswith(first)
    assert main(["diagnose", path, "--corrections", str(words), "--json"]) == 0
    *rows, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert rows[0]["corrected"] == {"label": "2/misinterpretation/", "by": "ben", "reason": "no, here"}
    assert rows[0]["critical_step"] == 4
    assert last["overview"]["categories"] == {"misinterpretation": 1, "invention": 1}
    said = last["overview"]["reviewed"]
    # Wilson (1927): 0 of 1 and 1 of 1
    assert (said["n"], said["step"][0], said["category"][0], said["owner"][0]) == (1, 0.0, 0.0, 1.0)
    assert said["step"][1:] == pytest.approx([0.0, 0.793], abs=0.001)


@pytest.mark.parametrize(
    "line",
    [
        "nonsense",
        "[]",
        '{"trajectory_id": "r1", "step": 1}',
        '{"trajectory_id": "r1", "step": "x", "by": "a", "reason": "b"}',
    ],
)
def test_a_wrong_correction_names_its_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "words.jsonl"
    path.write_text(f"\n{line}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"words\.jsonl:2: "):
        list(read_corrections(path))


def test_a_correction_of_no_message_changes_nothing() -> None:
    found = looked(wrong(1), corrections=(of_label("r1", "99/guardrail/user"),))
    assert found.cases[0].critical.index == 4
    assert found.cases[0].correction is None
    assert overview_json(found)["reviewed"] == {"n": 0}, "a word on nothing is no review"


def test_reviews_measure_the_diagnosis_by_step_category_and_owner(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = ("4/invention/agent", "4//", "2/invention/agent", "4/misinterpretation/user")
    words = tuple(of_label(f"r{n}", label) for n, label in enumerate(said))
    found = looked(*(wrong(n) for n in range(6)), corrections=words)
    shares = {name: row[0] for name, row in accuracy(found).items()}
    assert (found.reviewed["n"], shares) == (4, {"step": 0.75, "category": 0.75, "owner": 0.75})
    line = "Of 4 that people looked at, right were: step 75% [30%, 95%], category 75%"
    assert line in headline(found)
    assert "people looked at" not in headline(looked(wrong(1)))
    path, file = write(tmp_path / "a.jsonl", wrong(0)), tmp_path / "words.jsonl"
    append(file, replace(words[0], by="ann", reason="so it is"))
    assert main(["diagnose", path, "--corrections", str(file)]) == 0
    out = capsys.readouterr().out
    assert "people looked at" in out
    assert max(map(len, out.splitlines())) <= 80


def test_a_run_keeps_corrections_and_shows_them_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = finished_run(tmp_path / "runs" / "one", rl_steps=2)
    run.writer.set_status(RunState.FINISHED)
    run.writer.close()
    words, root = tmp_path / "words.jsonl", ["--root", str(tmp_path / "runs")]
    assert main(["diagnose", "one", "--json", *root]) == 0
    key = json.loads(capsys.readouterr().out.splitlines()[0])["trajectory_id"]
    append(
        words,
        Correction(trajectory_id=key, index=2, category=Category.GUARDRAIL, owner=Fault.USER, by="ann", reason="x"),
    )
    for _ in range(2):
        assert main(["diagnose", "one", "--corrections", str(words), *root]) == 0
    kept = RunReader(tmp_path / "runs" / "one").overrides()
    assert [(row.kind, row.name, row.label, row.person) for row in kept] == [
        (OverrideKind.LABEL, "diagnosis", "2/guardrail/user", "ann")
    ]
    capsys.readouterr()
    assert main(["diagnose", "one", "--json", *root]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["overview"]["categories"]["guardrail"] == 1
    assert (
        main(["override", "one", key, "--label", "diagnosis=4/invention/agent", "--by", "b", "--reason", "y", *root])
        == 0
    )
    capsys.readouterr()
    assert main(["diagnose", "one", "--json", *root]) == 0
    assert "guardrail" not in json.loads(capsys.readouterr().out.splitlines()[-1])["overview"]["categories"]
    for label, why in (("whatever", "STEP/CATEGORY/OWNER"), ("99/invention/agent", "has messages 1 to")):
        assert main(["override", "one", key, "--label", f"diagnosis={label}", "--by", "b", "--reason", "y", *root]) == 2
        assert why in capsys.readouterr().err
    exported = tmp_path / "exported.jsonl"
    assert main(["overrides", "one", "--corrections", str(exported), *root]) == 0
    assert [row.label for row in read_corrections(exported)] == ["2/guardrail/user", "4/invention/agent"]
    assert main(["overrides", "one", "--corrections", str(exported), *root]) == 1, "nothing is written over"
    with RunWriter.open(tmp_path / "runs" / "one") as writer:
        stray = Override(
            trajectory_id=key, kind=OverrideKind.LABEL, name="diagnosis", label="whatever", person="b", reason="y"
        )
        writer.override(stray)
    assert main(["diagnose", "one", *root]) == 0


def test_a_run_is_read_with_the_policy_of_its_world(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = finished_run(tmp_path / "one", rl_steps=2)
    run.writer.close()
    assert policy_of_run(run.folder) == "shop"
    assert policy_of_run(tmp_path / "none") == ""

    def said(*words: str) -> str:
        capsys.readouterr()
        assert main(["diagnose", str(run.folder), "--json", *words]) == 0
        return capsys.readouterr().out

    assert said() == said("--policy", "shop")
    assert said() != said("--policy", "none")


def test_held_out_episodes_are_diagnosed_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = finished_run(tmp_path / "one", rl_steps=2)
    run.writer.close()
    ids = {}
    for phase in ("rl", "eval"):
        capsys.readouterr()
        assert main(["diagnose", str(run.folder), "--json", "--phase", phase]) == 0
        rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()[:-1]]
        ids[phase] = {row["trajectory_id"].partition("/")[0] for row in rows}
    assert ids == {"rl": {"rl"}, "eval": {"eval"}}


# -- exports ---------------------------------------------------------------------------------------------------------


def test_pairs_are_of_one_task_and_meet_at_the_critical_step() -> None:
    passing = Passing()
    passing.add(record(1, passed=True, task="t"))
    made = pair(case_of(wrong(2, task="t")), passing)
    assert made is not None
    assert (made["unit"], made["chosen_id"], made["rejected_id"]) == ("turn", "r1", "r2")
    assert len(made["prompt"]) == 3
    assert "#A1234" in json.dumps(made["chosen"])
    assert "#Z9999" in json.dumps(made["rejected"])
    start = prefix(case_of(wrong(2, task="t")), passing)
    assert start is not None
    assert start["correction"] == made["chosen"][0]
    assert start["messages"] == made["prompt"]


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (record(1, passed=True, task="u"), "another id"),
        (record(1, passed=True, task="t", prompt="Cancel order #A1234, and be quick."), "one id, other words"),
        (replace(record(1, passed=True), task_id=""), "no id at all"),
    ],
)
def test_different_tasks_are_never_paired(other: Record, why: str) -> None:
    passing = Passing()
    passing.add(other)
    assert pair(case_of(wrong(2, task="t")), passing) is None, why
    assert pair(case_of(replace(wrong(2), task_id="")), passing) is None, why
    start = prefix(case_of(wrong(2, task="t")), passing)
    assert start is not None
    assert start["correction"] is None


def test_the_command_exports_no_pair_of_different_tasks(tmp_path: Path) -> None:
    rows = []
    for n in range(6):
        task: dict[str, Any] = {"task": f"t{n % 3}", "prompt": f"Cancel #A1234 {n % 3}."}
        rows += [wrong(2 * n, **task), record(2 * n + 1, passed=True, **task)]
    by_id = {one.id: one for one in rows}
    assert main(["diagnose", write(tmp_path / "a.jsonl", *rows), "--export", str(tmp_path / "ex")]) == 0
    pairs = [json.loads(line) for line in (tmp_path / "ex" / "pairs.jsonl").read_text().splitlines()]
    assert len(pairs) == 6
    for row in pairs:
        assert by_id[row["chosen_id"]].task_id == by_id[row["rejected_id"]].task_id == row["task_id"]
        assert by_id[row["chosen_id"]].passed
        assert by_id[row["rejected_id"]].passed is False
    assert len((tmp_path / "ex" / "prefixes.jsonl").read_text().splitlines()) == 6


def test_what_another_is_to_blame_for_is_no_lesson() -> None:
    passing = Passing()
    passing.add(record(1, passed=True, task="t"))
    case = case_of(wrong(2, task="t"))
    blamed = replace(case, critical=replace(case.critical, owner=Fault.USER))
    assert pair(blamed, passing) is None
    assert prefix(blamed, passing) is None
    assert near_miss(blamed) is None


# -- tags ------------------------------------------------------------------------------------------------------------


def test_near_miss_counts_turns_before_the_critical_step() -> None:
    case = case_of(wrong(1))
    assert near_miss(case) == pytest.approx(1 / 3, abs=1e-4)
    assert near_miss(case, turns_to_pass=5) == pytest.approx(1 / 5)
    assert (near_miss(case, turns_to_pass=1) or 1.0) < 1.0


def test_the_measure_lets_a_group_into_the_reservoir() -> None:
    late = wrong(2, task="t")
    records = [record(1, passed=True, task="t"), late, replace(record(3, passed=False, task="t"), passed=None)]
    progress = near_misses(ENGINE, records)
    assert progress == {"r2": pytest.approx(1 / 3, abs=1e-4)}
    members = [
        Candidate(
            trajectory_id=one.id,
            group_id="g",
            step=1,
            reward=float(bool(one.passed)),
            success=bool(one.passed),
            progress=progress.get(one.id),
        )
        for one in records[:2]
    ]
    reservoir = Reservoir(ReservoirSpec(near=0.3))
    assert reservoir.offer(members) == ""
    assert reservoir.draw(1, step=2)[0].near_miss_ids == ("r2",)
    assert Reservoir(ReservoirSpec(near=0.5)).offer(members) != ""


def test_only_typed_or_proven_owners_leave_the_loss() -> None:
    case = case_of(wrong(1))
    blamed = replace(case, critical=replace(case.critical, owner=Fault.ENVIRONMENT))
    assert tag_row(blamed)["leaves_loss"] is False
    assert leaves_loss(replace(wrong(1), outcome="error:environment"))
    assert not leaves_loss(replace(wrong(1), outcome="error:model"))
    assert leaves_loss(wrong(1), proven=True)


def test_rows_can_be_chosen_by_their_tags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = tag_row(case_of(wrong(1, tags={"skill": "change"})))
    assert selects(row, {"category": "invention", "skill": "change"})
    assert not selects(row, {"category": "invention", "skill": "lookup"})
    path = write(tmp_path / "a.jsonl", wrong(1), wrong(2))
    assert main(["diagnose", path, "--where", "category=guardrail", "--json"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert main(["diagnose", path, "--where", "owner=agent", "--json"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert main(["diagnose", path, "--where", "nonsense"]) == 2
    assert main(["diagnose", path, "--tag"]) == 2


def test_a_run_gets_its_tags_beside_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = finished_run(tmp_path / "runs" / "one", rl_steps=4)
    run.writer.set_status(RunState.FINISHED)
    run.writer.close()
    before = {path: path.read_bytes() for path in (tmp_path / "runs" / "one").rglob("*.parquet")}
    for _ in range(2):
        assert main(["diagnose", "one", "--tag", "--root", str(tmp_path / "runs")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "runs" / "one" / "diagnosis.jsonl").read_text().splitlines()]
    assert rows
    assert {row["tags"]["diagnosis.owner"] for row in rows} == {"agent"}
    assert all(0.0 <= row["near_miss"] < 1.0 and row["step"] >= 1 for row in rows)
    assert {path: path.read_bytes() for path in before} == before
    shown = capsys.readouterr().out
    assert "slice" in shown
    assert "1 " in shown
