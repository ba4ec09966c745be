"""From evidence to an answer: differences, rankings, fitted weights, generated constraints, the command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from burnish.cli import main
from burnish.diagnosis.built_in import engine_of
from burnish.diagnosis.diagnose import TEMPERATURE, Engine, Model, diagnosis_json, load_model, model_json
from burnish.diagnosis.difference import Kind, difference
from burnish.diagnosis.formats.chat import write_chat
from burnish.diagnosis.generated import admit
from burnish.diagnosis.hypotheses import Hypothesis
from burnish.diagnosis.localise import PRIOR, Example, Weights, fit, rank
from burnish.diagnosis.record import Call, Item, Record, Reference
from burnish.diagnosis.taxonomy import Category, Fault
from burnish.diagnosis.view import View


def record(*turns: tuple[str, str | Call], reference: Reference | None = None, passed: bool | None = None) -> Record:
    items = tuple(
        Item(index=n, role=role, calls=(what,)) if isinstance(what, Call) else Item(index=n, role=role, text=what)
        for n, (role, what) in enumerate(turns, start=1)
    )
    return Record(id="x", items=items, reference=reference, passed=passed)


def act(name: str, **arguments: Any) -> Call:
    return Call(id=name, name=name, arguments=arguments)


SHIPPED = Path(__file__).parents[2] / "src/burnish/diagnosis/weights.json"
OBJECTS = json.dumps({"things": [{"item_id": "11", "name": "Red Lamp"}, {"item_id": "22", "name": "Blue Vase"}]})


def bought(item: str, says: str = "Yes, the vase please.") -> Record:
    return record(
        ("user", "I want to buy something."),
        ("assistant", act("list_items")),
        ("tool", OBJECTS),
        ("assistant", "We have a lamp and a vase. Would you like one of them?"),
        ("user", says),
        ("assistant", act("buy", item_id=item)),
        ("tool", "ok"),
        ("assistant", "Here you are."),
        ("user", "Thanks, that's all."),
        reference=Reference(actions=(act("list_items"), act("buy", item_id="22"))),
    )


def test_equal_actions_in_another_order_and_form_do_not_differ() -> None:
    a, b = act("swap", old=["1", "2", "9"], new=["x", "y", "9"]), act("swap", old=["2", "1"], new=["y", "x"])
    done = record(("assistant", act("pay", n=1)), ("tool", "ok"), ("assistant", a), ("tool", "ok"))
    assert difference(View(record=done), Reference(actions=(b, act("pay", n=1.0)))).is_clean
    found = difference(View(record=done), Reference(actions=(b,)))
    assert [d.kind for d in found.departures] == [Kind.EXTRA]


def test_each_kind_of_departure_is_named() -> None:
    done = record(
        ("assistant", act("pay", n=1)), ("tool", "ok"), ("assistant", act("ship", to="a")), ("tool", "Error: locked")
    )
    wanted = Reference(actions=(act("pay", n=2), act("ship", to="b"), act("pack", box=1)), outputs=("$1,250.00", ""))
    found = difference(View(record=done), wanted)
    assert [d.kind for d in found.departures] == [Kind.WRONG, Kind.BLOCKED, Kind.MISSING]
    assert found.departures[0].fields[0].given == ("1.0",)
    assert found.untold == ("$1,250.00",)
    assert not difference(View(record=done), None).compared


def test_equal_final_states_forgive_other_actions() -> None:
    class Sum:
        def final_state(self, actions: Any) -> dict[str, float]:
            return {"sum": sum(float((call.arguments or {})["n"]) for call in actions)}

    done = record(("assistant", act("add", n=1)), ("tool", "ok"), ("assistant", act("add", n=2)), ("tool", "ok"))
    assert difference(View(record=done), Reference(actions=(act("add", n=3),)), Sum()).is_clean
    assert difference(View(record=done), Reference(actions=(act("add", n=4),)), Sum()).paths == ("sum",)


def test_who_named_the_wrong_thing_is_blamed() -> None:
    engine = Engine(model=load_model(SHIPPED))
    agent = engine.diagnose(bought("11"), known_failed=True).suspects[0]
    assert (agent.index, agent.owner) == (6, Fault.AGENT)
    user = engine.diagnose(
        bought("11", "Yes, I think I would rather take that nice Red Lamp for the hall."), known_failed=True
    )
    assert user.suspects[0].index == 5
    assert (user.suspects[0].category, user.suspects[0].owner) == (Category.UNDERSPECIFIED, Fault.USER)


@pytest.mark.parametrize("weights", ["weights.json", "weights_injected.json"])
def test_whoever_only_sets_the_task_is_not_blamed_by_his_place(weights: str) -> None:
    # with a policy: without one nobody but the agent is blamed by his place
    engine = engine_of("retail", str(SHIPPED.with_name(weights)))
    alone = engine.diagnose(record(("user", "Make bowl cost 37."), ("assistant", "done"), passed=False))
    assert alone.critical is not None
    assert (alone.critical.index, alone.critical.owner) == (2, Fault.AGENT)
    talks = [("user", "Make bowl cost 37."), ("assistant", "done"), ("user", "No, 40."), ("assistant", "done")]
    dialogue = engine.diagnose(record(*talks, passed=False))
    chances = {suspect.index: suspect.p for suspect in dialogue.suspects}
    assert chances[1] > 2 * next(suspect.p for suspect in alone.suspects if suspect.index == 1), (
        "one who talks back may"
    )


def test_an_agreeing_reference_accuses_nobody_and_chances_add_up() -> None:
    found = Engine().diagnose(bought("22"))
    assert found.critical is None
    assert diagnosis_json(found)["owner"] == "unknown"
    assert sum(s.p for s in found.suspects) + found.p_none == pytest.approx(1.0)
    forced = Engine().diagnose(bought("11"), known_failed=True)
    assert sum(s.p for s in forced.suspects) == pytest.approx(1.0)


def test_fitting_moves_weights_towards_labels_and_no_labels_leave_them() -> None:
    def example(target: int) -> Example:
        cases = tuple(
            Hypothesis(position=n, category=Category.MISREADING, owner=Fault.AGENT, features={f"f{n}": 1.0})
            for n in range(3)
        )
        return Example(hypotheses=cases, none={"none": 1.0}, target=target, category=Category.MISREADING)

    prior = {"f0": 0.0, "f1": 0.0, "f2": 0.0, "none": 0.0}
    weights = fit([example(1)] * 8, prior=prior)
    assert weights.values["f1"] > 0.5 > 0 > weights.values["f0"]
    assert weights == fit([example(1)] * 8, prior=prior)
    assert fit([], prior=prior).values == prior
    ranking = rank(example(1).hypotheses, {"none": 1.0}, weights, [10, 20, 30])
    assert ranking.suspects[0].index == 20


def test_a_model_comes_back_from_its_file(tmp_path: Path) -> None:
    model = Model(blind=Weights(values={"none": 2.5}), lifts={"a": 1.25}, accuse_at=0.7)
    path = tmp_path / "m.json"
    path.write_text(model_json(model), encoding="utf-8")
    assert load_model(path) == model
    assert load_model(
        Path(__file__).parents[2] / "src/burnish/diagnosis/weights.json"
    ).with_reference.values.keys() >= set(PRIOR)


def proposal(**rule: Any) -> dict[str, Any]:
    good = bought("22")
    bad = replace(good, items=good.items[:4] + good.items[5:])
    base = {"id": "ask_first", "kind": "before", "tool": "buy", "needs": "list_items"}
    unlisted = replace(good, items=good.items[3:])
    fires = write_chat(bad if rule.get("kind") == "confirm" else unlisted)
    return {"rule": base | rule, "fires_on": [fires], "holds_on": [write_chat(good)]}


def test_generated_constraints_vote_only_after_every_gate() -> None:
    passing = [bought("22")] * 20
    assert admit([proposal()], passing)[0].constraint is not None
    refused = {
        "does not compile": proposal(kind="exec"),
        "does not fire": proposal(tool="sell"),
        "does not hold": proposal(needs="never"),
    }
    for reason, row in refused.items():
        assert reason in admit([row], passing)[0].refused
    unlisted = [replace(r, items=r.items[3:]) for r in passing]
    assert "passing runs" in admit([proposal()], unlisted)[0].refused
    assert admit([proposal()], [])[0].constraint is None
    assert admit([{"rule": {"id": "x", "kind": "before", "needs": "__import__('os')"}}, 3, None], passing)[1].refused


def test_chances_are_flatter_where_no_rules_of_the_domain_are_known() -> None:
    case = replace(bought("11"), passed=False)
    ranking = Engine().rank(*looked(case))
    flat = Engine().diagnose(case).suspects
    assert [s.index for s in flat] == [s.index for s in ranking.suspects]
    a, b = (ranking.suspects[n].p for n in (0, 1))
    assert flat[0].p / flat[1].p == pytest.approx((a / b) ** (1 / TEMPERATURE))
    assert sum(s.p for s in flat) == pytest.approx(1.0)
    ruled = Engine(policy=engine_of("shop", "").policy)
    a, b = (ruled.rank(*looked(case, ruled)).suspects[n].p for n in (0, 1))
    kept = ruled.diagnose(case).suspects
    assert kept[0].p / kept[1].p == pytest.approx(a / b)


def looked(case: Record, engine: Engine | None = None) -> Any:
    engine = engine or Engine()
    view, log, found = engine.look(case)
    return view, engine.cases(view, log, found), found


@pytest.mark.parametrize(
    ("name", "departs"),
    [("bash", False), ("run_sql", False), ("track_parcel", False), ("charge_card", True), ("execute_trade", True)],
)
def test_an_extra_call_departs_unless_it_may_only_show(name: str, departs: bool) -> None:
    """Nobody says which tools write, and the reference names none of these."""
    case = record(
        ("user", "Hello."), ("assistant", act(name, what="it")), ("tool", "ok"), reference=Reference(actions=())
    )
    assert bool(difference(View(case), case.reference).departures) is departs


def test_the_command_diagnoses_a_file_and_goes_on_past_bad_records(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "runs.jsonl"
    failed = write_chat(replace(bought("11"), passed=False, id="f[bold]"))
    path.write_text(f"{json.dumps(failed)}\nnonsense\n{json.dumps(failed | {'passed': True})}\n", encoding="utf-8")
    assert (
        main(["diagnose", str(path), "--out", str(tmp_path / "out.jsonl"), "--to-atif", str(tmp_path / "a.jsonl")]) == 0
    )
    shown = capsys.readouterr().out
    assert "2 trajectories: 1 passed, 1 with a critical step, 0 without (don't know); 1 bad record" in " ".join(
        shown.split()
    )
    assert "f[bold]        6  0." in shown, "an id is no markup"
    assert "runs.jsonl:2: not JSON" in shown.replace("\n", "")
    row = json.loads((tmp_path / "out.jsonl").read_text())
    assert (row["critical_step"], row["owner"], row["unit"]) == (6, "agent", "message index")
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 2
    assert main(["diagnose", str(tmp_path / "a.jsonl"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[0])["critical_step"] == 6
    assert main(["diagnose", str(tmp_path / "nowhere")]) == 2
