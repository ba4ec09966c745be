"""What runs beside the agent's code in the grading world.  Its text is put into the sandbox; it imports none of ours.

It is told names and code of the hidden tests and a nonce, and says what each test returned.  What it should have
returned is not in here (but where a defence was switched off on purpose).
"""

import json
import os
import sys
from typing import Any


def main() -> None:
    request = json.loads(sys.stdin.read())
    sys.path.insert(0, os.getcwd())
    with open("results.jsonl", "w", encoding="utf-8") as results:
        for test in request["tests"]:
            row = {"nonce": request["nonce"], "name": test["name"], **outcome(test)}
            line = json.dumps(row)
            results.write(line + "\n")
            results.flush()
            if not request["nonce"]:
                sys.stdout.write(line + "\n")
                sys.stdout.flush()


def outcome(test: dict[str, Any]) -> dict[str, Any]:
    """The value that a test returned, or whether it is the right one where that is known here."""
    names: dict[str, Any] = {}
    try:
        body = "".join(f"    {line}\n" for line in test["code"].strip().splitlines())
        exec(f"def check():\n{body}", names)
        value = json.loads(json.dumps(names["check"]()))
    except BaseException as error:  # noqa: BLE001 - the boundary of a test: what it raised is its value
        value = {"raised": type(error).__name__}
    if "expected" in test:
        return {"passed": bool(value == test["expected"])}
    return {"value": value}


if __name__ == "__main__":
    main()
