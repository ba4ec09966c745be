"""An agent program as anyone writes it: a loop around an OpenAI client, with a calculator as its tool.

    OPENAI_BASE_URL=http://localhost:8000/v1 OPENAI_API_KEY=x python examples/agent_program.py "What is 7 * 8 + 1?"

Nothing in `solve` knows of training.  `agent` is what is trained: it takes a task as the program may see it and the
address of the policy, and returns the answer.

    burnish train tasks.jsonl environment.program=agent_program.py

or from Python:

    from burnish.rollout.programs import run_programs
    trajectories = await run_programs(plans, program=agent, renderer=renderer, sampler=sampler, params=params)

The policy's tokens and their log-probabilities are recorded behind that address, as in any other rollout.
"""

from __future__ import annotations

import ast
import json
import operator
import sys

from openai import OpenAI

OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.USub: operator.neg}

CALCULATOR = {
    "type": "function",
    "function": {
        "name": "calculate",
        "description": "The value of an arithmetic expression such as (2 + 3) * 4.",
        "parameters": {
            "type": "object",
            "properties": {"expression": {"type": "string"}},
            "required": ["expression"],
        },
    },
}


def calculate(expression: str) -> str:
    """The value of an expression, or what is wrong with it, for the model to read."""

    def value(node):
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return node.value
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATIONS:
            return OPERATIONS[type(node.op)](value(node.left), value(node.right))
        if isinstance(node, ast.UnaryOp) and type(node.op) in OPERATIONS:
            return OPERATIONS[type(node.op)](value(node.operand))
        raise ValueError(f"{ast.unparse(node)} is no number, sum, difference or product")

    try:
        return str(value(ast.parse(expression, mode="eval").body))
    except (SyntaxError, ValueError) as error:
        return f"Error: {error}"


def solve(client: OpenAI, model: str, question: str) -> str:
    """Ask, calculate what the model asks for, ask again, until it answers in words."""
    messages = [{"role": "user", "content": question}]
    while True:
        reply = client.chat.completions.create(model=model, messages=messages, tools=[CALCULATOR])
        message = reply.choices[0].message
        if not message.tool_calls:
            return message.content or ""
        messages.append(message.model_dump(exclude_none=True))
        for call in message.tool_calls:
            try:
                result = calculate(**json.loads(call.function.arguments))
            except TypeError as error:
                result = f"Error: {error}"
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})


def agent(task) -> str:
    """What training calls, on a thread of its own; task is a `burnish.rollout.programs.TaskView`."""
    with OpenAI(base_url=task.base_url, api_key=task.api_key) as client:
        return solve(client, task.model, task.prompt)


if __name__ == "__main__":
    print(solve(OpenAI(), "policy", sys.argv[1]))
