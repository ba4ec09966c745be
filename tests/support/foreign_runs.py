"""Runs of other domains as their formats write them: an airline on the telephone, a team with a browser and a terminal,
incidents, appointments, a shell, a calendar, a trip.  What went wrong in each is known, since it was made up."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Foreign:
    """One record and the truth about it.  agent: the member of the team, "" without a team."""

    row: Any
    step: int
    category: str
    owner: str = "agent"
    agent: str = ""
    policy: str = ""


def said(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": text}


def asked(name: str, answer: Any, **arguments: Any) -> list[dict[str, Any]]:
    """A call in OpenAI's form and its result."""
    call = {"id": name, "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
    text = answer if isinstance(answer, str) else json.dumps(answer)
    return [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": name, "name": name, "content": text},
    ]


# an airline, as tau-bench writes it

BOOKED = {
    "reservation_id": "K7QX2M",
    "user_id": "lena_voss_4821",
    "cabin": "basic_economy",
    "status": "confirmed",
    "flights": [{"flight_number": "SKY214", "date": "2025-03-14", "price": 182}],
}
FLIGHTS = [
    {"flight_number": "SKY220", "date": "2025-04-03", "available_seats": {"economy": 4}, "prices": {"economy": 205}},
    {"flight_number": "SKY241", "date": "2025-04-03", "available_seats": {"economy": 9}, "prices": {"economy": 231}},
]
CALLED = [
    said("system", "You help users with flights.  Ask for a yes before you change anything."),
    said("user", "Hi, user id lena_voss_4821.  I need to move reservation K7QX2M to April 3rd, 2025."),
    *asked("get_reservation_details", BOOKED, reservation_id="K7QX2M"),
    *asked("search_direct_flight", FLIGHTS, origin="BOS", destination="SEA", date="2025-04-03"),
]
PROPOSED = [
    said("assistant", "SKY220 costs $205 in economy.  Shall I move you to it and charge credit_card_5512090?"),
    said("user", "Yes, please do."),
]
MOVE = {
    "reservation_id": "K7QX2M",
    "flights": [{"flight_number": "SKY220", "date": "2025-04-03"}],
    "payment_id": "credit_card_5512090",
}
WANTED = {"name": "update_reservation_flights", "kwargs": MOVE}
LEFT = [said("assistant", "You now fly with SKY220."), said("user", "Great, thanks.  ###STOP###")]


def airline(task: int, traj: list[Any], actions: list[Any] | None = None) -> dict[str, Any]:
    info = {"task": {"instruction": "Move the flight to April 3rd.", "actions": actions}} if actions is not None else {}
    return {"task_id": task, "reward": 0.0, "traj": traj, "info": info}


UNKNOWN_CARD = airline(
    1,
    [
        *CALLED,
        *PROPOSED,
        *asked(
            "update_reservation_flights", "Error: payment not found", **MOVE | {"payment_id": "credit_card_8834417"}
        ),
        said("assistant", "I'm sorry, that could not be done."),
        said("user", "Ok.  ###STOP###"),
    ],
)
CANCELLED = airline(
    2,
    [
        *CALLED[:4],
        said("assistant", "I see the reservation.  Shall I look for flights on April 3rd?"),
        said("user", "Actually, just cancel the whole reservation, I do not need it."),
        said("assistant", "I can cancel K7QX2M.  Do you confirm (yes)?"),
        said("user", "Yes."),
        *asked("cancel_reservation", BOOKED | {"status": "cancelled"}, reservation_id="K7QX2M"),
        said("user", "Thanks.  ###STOP###"),
    ],
    [WANTED],
)
TRANSFERRED = airline(
    3,
    [
        *CALLED,
        *asked("transfer_to_human_agents", "Transfer successful", summary="a change of flights"),
        said("assistant", "You are being transferred."),
        said("user", "Okay.  ###STOP###"),
    ],
    [WANTED],
)
FORBIDDEN = airline(4, [*CALLED, *PROPOSED, *asked("update_reservation_flights", BOOKED, **MOVE), *LEFT], [])
AIRLINE_POLICY = """
[tools]
writes = "update_*|cancel_*"
[[rule]]
id = "no_basic_economy"
kind = "state"
tool = "update_reservation_flights"
argument = "reservation_id"
field = "cabin"
allowed = ["economy", "business"]
severity = 0.7
category = "instruction_adherence"
"""

# a team, as AgentRx writes it: events of several members, no schemas


def team(name: str, question: str, *steps: Any) -> dict[str, Any]:
    """Steps are (role, text), or lists of them for events that share a number."""
    rows = []
    for index, step in enumerate([("human", question), *steps], start=1):
        parts = step if isinstance(step, list) else [step]
        rows.append(
            {
                "index": index,
                "substeps": [{"sub_index": n, "role": role, "content": text} for n, (role, text) in enumerate(parts)],
            }
        )
    return {"trajectory_id": name, "instruction": question, "steps": rows}


SEARCHED = "I typed 'reports' into the search bar.  The page shows brochure BR20190044 for $45, and 214 results."
CAPTCHA = "I clicked the link.  403 Forbidden.  Complete the CAPTCHA to verify that you are human."
CRASHED = "The script ran, then exited with Unix exit code: 1\nTraceback (most recent call last):\nModuleNotFoundError"
SCRIPT = "```python\nimport nbconvert_x\nnbconvert_x.run('model.ipynb')\n```"
READ_FILE = "Please read the attached file painting.docx and say what it shows."
GUESS = "Based on general knowledge, estimate how many were built before 1900."
DOWN = "Web surfing error:\n\nplaywright TimeoutError: Timeout 30000ms exceeded."
TEAMS = [
    Foreign(
        row=team(
            "guess",
            "How many bridges does the catalogue list?",
            ("Orchestrator (-> WebSurfer)", "Find the catalogue of bridges."),
            ("WebSurfer", SEARCHED),
            [("Orchestrator (thought)", "No progress. " + GUESS), ("Orchestrator (-> Assistant)", GUESS)],
            ("Assistant", "About a third were built before 1900, say 23."),
            ("Orchestrator (final answer)", "FINAL ANSWER: 23"),
        ),
        step=4,
        category="invention",
        agent="Orchestrator",
    ),
    Foreign(
        row=team(
            "missing file",
            "Which museum has the painting?",
            ("Orchestrator (-> FileSurfer)", READ_FILE),
            ("FileSurfer", "Error: File not found: painting.docx"),
            ("Orchestrator (-> FileSurfer)", READ_FILE),
            ("FileSurfer", "Error: File not found: painting.docx"),
            ("Orchestrator (final answer)", "FINAL ANSWER: Unable to determine"),
        ),
        step=2,
        category="invalid_invocation",
        agent="Orchestrator",
    ),
    Foreign(
        row=team(
            "barred",
            "What was the closing price?",
            ("Orchestrator (-> WebSurfer)", "Open the historical prices."),
            ("WebSurfer", CAPTCHA),
            ("Orchestrator (-> WebSurfer)", "Try once more to open the historical prices, please."),
            ("WebSurfer", CAPTCHA),
            ("Orchestrator (final answer)", "FINAL ANSWER: I could not find it."),
        ),
        step=3,
        category="guardrail",
        agent="WebSurfer",
    ),
    Foreign(
        row=team(
            "crash",
            "Run the notebook and report its accuracy.",
            ("Orchestrator (-> Assistant)", "Write a script that runs model.ipynb."),
            ("Assistant", SCRIPT),
            ("ComputerTerminal", CRASHED),
            ("Assistant", SCRIPT),
            ("ComputerTerminal", CRASHED),
            ("Orchestrator (final answer)", "FINAL ANSWER: none"),
        ),
        step=3,
        category="invalid_invocation",
        agent="Assistant",
    ),
    Foreign(
        row=team(
            "down",
            "What is the capacity of the reservoir?",
            ("Orchestrator (-> WebSurfer)", "Find the report on reservoirs."),
            ("WebSurfer", "I typed 'reservoir report' into the search bar."),
            ("WebSurfer", DOWN),
            ("Orchestrator (final answer)", "FINAL ANSWER: none"),
        ),
        step=4,
        category="system_failure",
        owner="environment",
        agent="WebSurfer",
    ),
    Foreign(
        row=team(
            "from nowhere",
            "Which year did the village hall open?",
            ("Orchestrator (-> WebSurfer)", "Find when the village hall opened."),
            ("WebSurfer", "The page says: foundation stone laid in 1921, opened in 1924."),
            ("Orchestrator (final answer)", "FINAL ANSWER: 1938"),
        ),
        step=4,
        category="invention",
        agent="Orchestrator",
    ),
]
HEALTHY_TEAM = team(
    "healthy",
    "Which year did the village hall open?",
    ("Orchestrator (-> WebSurfer)", "Find when the village hall opened."),
    ("WebSurfer", CAPTCHA),
    ("Orchestrator (-> WebSurfer)", "Use another page."),
    ("WebSurfer", "The page says: brochure BR20190044, $45.  The hall opened in 1924."),
    ("Orchestrator (final answer)", "FINAL ANSWER: 1924"),
)

# incidents: one agent, calls as JSON in the text


def incident(name: str, question: str, *steps: tuple[str, Any]) -> dict[str, Any]:
    rows: list[Any] = []
    for what, more in steps:
        if what == "says":
            rows.append(("assistant", more))
            continue
        arguments, answer = more
        call = {"tool_calls": [{"id": what, "function": {"name": what, "arguments": json.dumps(arguments)}}]}
        rows += [("assistant", json.dumps(call)), ("tool", answer if isinstance(answer, str) else json.dumps(answer))]
    return team(name, question, *rows)


LOOKED_UP = (
    "get_incident",
    ({"incident_id": "INC0045812"}, {"incident_id": "INC0045812", "host": "srch-eu-03", "status": "active"}),
)
INCIDENT_POLICY = """
[[rule]]
id = "logs_first"
kind = "before"
tool = "restart_*|clear_*"
needs = "query_logs"
severity = 0.8
category = "instruction_adherence"
"""
INCIDENTS = [
    Foreign(
        row=incident(
            "no logs",
            "INC0045812: search is slow.  Mitigate.",
            LOOKED_UP,
            ("restart_service", ({"host": "srch-eu-03"}, {"ok": True})),
            ("query_logs", ({"host": "srch-eu-03"}, [{"message": "pool exhausted"}])),
            ("says", "The service was restarted."),
        ),
        step=4,
        category="instruction_adherence",
        policy=INCIDENT_POLICY,
    ),
    Foreign(
        row=incident(
            "other host",
            "INC0045812: disk is full.  Mitigate.",
            LOOKED_UP,
            ("clear_disk", ({"target": {"host": "srch-eu-05", "path": "/var/tmp"}}, {"ok": True})),
            ("says", "Space was cleared."),
        ),
        step=4,
        category="invention",
    ),
    Foreign(
        row=incident(
            "metrics down",
            "INC0045812: latency is high.  Find the cause.",
            LOOKED_UP,
            ("metrics.query", ({"metric": "p99"}, "Error: 503 Service Unavailable")),
            ("metrics.query", ({"metric": "p99"}, "Error: 503 Service Unavailable")),
            ("says", "The metrics are not available."),
        ),
        step=5,
        category="system_failure",
        owner="environment",
    ),
    Foreign(
        row=incident(
            "not permitted",
            "INC0045812: read the audit log.",
            LOOKED_UP,
            ("read_audit", ({"day": "today"}, {"error": "permission denied: role viewer"})),
            ("says", "I cannot read it."),
        ),
        step=4,
        category="guardrail",
    ),
]
