"""Runs of domains that no rule was written for: an airline, teams, incidents, appointments, a shell, a calendar."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.foreign_runs import (
    AIRLINE_POLICY,
    CALLED,
    CANCELLED,
    FORBIDDEN,
    HEALTHY_TEAM,
    INCIDENTS,
    LEFT,
    MOVE,
    PROPOSED,
    TEAMS,
    TRANSFERRED,
    UNKNOWN_CARD,
    WANTED,
    Foreign,
    airline,
    asked,
    incident,
    said,
    team,
)

from burnish.cli import main
from burnish.diagnosis.built_in import engine_of
from burnish.diagnosis.diagnose import Diagnosis, diagnosis_json
from burnish.diagnosis.difference import difference
from burnish.diagnosis.reading import read_records
from burnish.diagnosis.record import Record
from burnish.diagnosis.view import ToolKinds, View

AIRLINES = [
    Foreign(row=UNKNOWN_CARD, step=9, category="invention"),
    Foreign(row=CANCELLED, step=6, category="underspecified_intent", owner="user"),
    Foreign(row=TRANSFERRED, step=7, category="intent_plan_misalignment"),
    Foreign(row=FORBIDDEN, step=9, category="instruction_adherence", policy=AIRLINE_POLICY),
]
CHATS = [
    Foreign(
        row={
            "id": "budget",
            "passed": False,
            "messages": [
                said("user", "Plan 3 days in Porto."),
                *asked("search_hotels", [{"hotel": "Casa Azul", "price": 90}], city="Porto"),
                said("assistant", "Stay at Casa Azul; with the train it comes to 395 euros."),
            ],
        },
        step=4,
        category="invention",
    ),
    Foreign(
        row={
            "id": "event",
            "passed": False,
            "messages": [
                said("user", "Move my meeting with Ana to Friday."),
                *asked("calendar.search", [{"event_id": "ev_9931", "title": "Ana"}], query="Ana"),
                *asked("calendar.update", {"success": False, "reason": "it is locked"}, event_id="ev_9931"),
                said("assistant", "I moved your meeting with Ana to Friday."),
            ],
        },
        step=4,
        category="invalid_invocation",
    ),
]


def read(row: Any, folder: Path) -> Record:
    path = folder / "row.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    (record,) = read_records(path)
    assert isinstance(record, Record)
    return record


def found(case: Foreign, folder: Path) -> Diagnosis:
    policy = folder / "policy.toml"
    policy.write_text(case.policy, encoding="utf-8")
    engine = engine_of(str(policy) if case.policy else "")
    return engine.diagnose(read(case.row, folder), known_failed=True)


def name_of(case: Foreign) -> str:
    return str(case.row.get("trajectory_id") or case.row.get("task_id") or case.row["id"])


@pytest.mark.parametrize("case", [*AIRLINES, *TEAMS, *INCIDENTS, *CHATS], ids=name_of)
def test_the_critical_step_of_a_domain_without_rules_of_its_own(case: Foreign, tmp_path: Path) -> None:
    row = diagnosis_json(found(case, tmp_path))
    assert (row["critical_step"], row["category"], row["owner"]) == (case.step, case.category, case.owner)
    assert row["agent"] == case.agent


def test_what_browsers_and_terminals_show_is_no_claim_and_trouble_that_passes_is_no_failure(tmp_path: Path) -> None:
    record = read(HEALTHY_TEAM, tmp_path)
    log = engine_of().diagnose(record).log
    assert {violation.constraint for violation in log.violations} == {"report_recovered"}
    talk = {**HEALTHY_TEAM, "steps": [*HEALTHY_TEAM["steps"][:4], HEALTHY_TEAM["steps"][4]]}
    talk["steps"][4] = {"index": 5, "substeps": [{"role": "Writer", "content": "See brochure BR20190044, $45."}]}
    claimed = {violation.constraint for violation in engine_of().diagnose(read(talk, tmp_path)).log.violations}
    assert {"claim_amount", "claim_identifier"} <= claimed


def test_chances_of_messages_that_share_a_number_are_those_of_one_step(tmp_path: Path) -> None:
    case = TEAMS[0]
    suspects = found(case, tmp_path).suspects
    indices = [suspect.index for suspect in suspects]
    assert len(indices) == len(set(indices))
    assert sum(suspect.p for suspect in suspects) == pytest.approx(1.0)


def test_a_date_said_in_words_was_said_and_another_was_not(tmp_path: Path) -> None:
    def fired(date: str, words: str) -> bool:
        row = {"messages": [said("user", words), *asked("book_room", "ok", date=date), said("assistant", "Done.")]}
        log = engine_of().diagnose(read(row, tmp_path)).log
        return any(violation.constraint == "ungrounded" for violation in log.violations)

    assert not fired("2025-04-03", "Book the room on April 3rd.")
    assert not fired("2025-04-07", "Book the room for next Monday.")
    assert fired("2025-04-09", "Book the room on April 3rd.")


def test_values_inside_objects_of_lists_are_looked_at(tmp_path: Path) -> None:
    def fired(flight: str) -> bool:
        move = {**MOVE, "payment_id": "gift", "flights": [{"flight_number": flight, "date": "2025-04-03"}]}
        row = airline(1, [*CALLED, *PROPOSED, *asked("update_reservation_flights", "ok", **move), *LEFT])
        return any(v.constraint == "ungrounded" for v in engine_of().diagnose(read(row, tmp_path)).log.violations)

    assert not fired("SKY220")
    assert fired("SKY999")


def test_objects_in_lists_are_equal_whatever_the_order_of_their_fields(tmp_path: Path) -> None:
    turned = {**MOVE, "flights": [dict(reversed(list(MOVE["flights"][0].items())))]}  # type: ignore[index]
    other = {**MOVE, "flights": [{"flight_number": "SKY241", "date": "2025-04-03"}]}
    for done, clean in ((turned, True), (other, False)):
        row = airline(1, [*CALLED, *PROPOSED, *asked("update_reservation_flights", "ok", **done), *LEFT], [WANTED])
        record = read(row, tmp_path)
        assert difference(View(record=record), record.reference).is_clean is clean
    change = difference(View(record=record), record.reference).departures[0].fields[0]
    assert (change.given, change.wanted) == (("sky241",), ("sky220",))


def test_a_user_for_whom_nothing_speaks_is_not_blamed_without_a_policy(tmp_path: Path) -> None:
    row = {**TRANSFERRED, "info": {}}
    diagnosis = engine_of().diagnose(read(row, tmp_path), known_failed=True)
    assert diagnosis.critical is not None
    assert str(diagnosis.critical.owner) == "agent"
    assert all(str(suspect.owner) == "agent" or suspect.why for suspect in diagnosis.suspects)


def test_to_try_again_what_was_down_is_no_repetition_and_anything_else_is(tmp_path: Path) -> None:
    def fired(answer: Any) -> bool:
        step = ("metrics.query", ({"metric": "p99"}, answer))
        log = engine_of().diagnose(read(incident("x", "Find the cause.", step, step), tmp_path)).log
        return any(violation.constraint == "repeated" for violation in log.violations)

    assert not fired("Error: 503 Service Unavailable")
    assert fired({"p99": 812})


def test_a_planned_tool_that_is_never_called_is_an_omission(tmp_path: Path) -> None:
    plan = "1. search_hotels in Porto\n2. search_trains to Porto\n3. make_budget of both"
    turns = [said("user", "Plan 3 days."), said("assistant", plan), *asked("search_hotels", "ok", city="Porto")]
    skipped = {"messages": [*turns, *asked("make_budget", "ok", days=3), said("assistant", "Stay there.")]}
    violations = engine_of().diagnose(read(skipped, tmp_path)).log.violations
    assert [(v.constraint, v.index) for v in violations if v.constraint == "plan_skipped"] == [("plan_skipped", 5)]
    whole = {"messages": [*turns, *asked("search_trains", "ok"), *asked("make_budget", "ok", days=3)]}
    assert not [v for v in engine_of().diagnose(read(whole, tmp_path)).log.violations if v.constraint == "plan_skipped"]


@pytest.mark.parametrize(
    ("name", "writes"),
    [
        ("get_user", False),
        ("listFiles", False),
        ("calendar.search", False),
        ("web_search", False),
        ("mcp__files__read_text", False),
        ("transfer_to_human_agents", False),
        ("checkout_cart", True),
        ("listen_on_port", True),
        ("update_status", True),
        ("bash", True),
    ],
)
def test_the_words_of_a_tools_name_say_whether_it_writes(name: str, writes: bool) -> None:
    assert ToolKinds().is_write(name) is writes


def test_the_command_names_the_member_of_a_team_in_eighty_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    path = tmp_path / "runs.json"
    path.write_text(json.dumps([case.row for case in TEAMS]), encoding="utf-8")
    assert main(["diagnose", str(path)]) == 0
    assert f"{len(TEAMS)} without (don't know)" in " ".join(capsys.readouterr().out.split())
    assert main(["diagnose", str(path), "--failed"]) == 0
    shown = capsys.readouterr().out
    assert "agent (WebSurfer)" in shown
    assert "environment (WebSurfer)" in shown
    assert max(len(line) for line in shown.splitlines()) <= 80


def test_the_name_of_a_lone_assistant_is_no_member_of_a_team(tmp_path: Path) -> None:
    lone = read(team("lone", "Say hi.", ("Assistant", "Hi.")), tmp_path)
    assert [item.agent for item in lone.items] == ["", ""]
    assert [item.agent for item in read(TEAMS[3].row, tmp_path).items][2] == "Assistant"


def test_who_asks_for_the_very_thing_has_consented_unless_a_policy_wants_a_yes(tmp_path: Path) -> None:
    def fired(words: str) -> bool:
        row = {
            "messages": [said("user", "Hi."), said("user", words), *asked("close_account", "ok", account_id="AC-10")]
        }
        log = engine_of().diagnose(read(row, tmp_path)).log
        return any(violation.constraint == "consent" for violation in log.violations)

    assert not fired("Close my account please.")
    assert not fired("I do not need AC-10 anymore.")
    assert fired("What is the weather like?")


def test_what_a_result_confirms_was_no_invention(tmp_path: Path) -> None:
    def fired(answer: Any) -> bool:
        row = {"messages": [said("user", "What is my balance?"), *asked("get_balance", answer, account_id="AC-100200")]}
        log = engine_of().diagnose(read(row, tmp_path)).log
        return any(violation.constraint == "ungrounded" for violation in log.violations)

    assert not fired({"account_id": "AC-100200", "balance": 12})
    assert fired({"balance": 12})
    assert fired("Error: AC-100200 does not exist")


def test_the_last_tool_that_was_called_alone_ends_a_run_and_cuts_off_a_talk(tmp_path: Path) -> None:
    def fired(*before: Any, tool: str = "create_file") -> bool:
        row = {"messages": [said("user", "Write the file."), *before, *asked(tool, "ok", file="a")]}
        log = engine_of().diagnose(read(row, tmp_path)).log
        return any(violation.constraint == "unanswered" for violation in log.violations)

    talk = (said("assistant", "Which name?"), said("user", "Create file a."))
    assert fired(*talk)
    assert not fired(*talk, tool="submit_file")
    assert not fired()


@pytest.mark.parametrize(("outcome", "owner"), [("", "agent"), ("error:infrastructure", "infrastructure")])
def test_a_record_that_just_stops_is_the_agents_unless_it_says_that_something_broke(
    outcome: str, owner: str, tmp_path: Path
) -> None:
    talk = [said("user", "Hi."), said("assistant", "Shall I book it?"), said("user", "Yes, go ahead and book it.")]
    row = {"messages": talk, "outcome": outcome, "passed": False}
    critical = engine_of().diagnose(read(row, tmp_path)).critical
    assert critical is not None
    assert (critical.index, str(critical.category), str(critical.owner)) == (3, "system_failure", owner)
