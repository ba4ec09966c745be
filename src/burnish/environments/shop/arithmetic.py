"""The calculator's own grammar: whole numbers, `+ - *`, signs and parentheses, bounded in length, depth and size.

    sum     = product {("+" | "-") product}
    product = factor {"*" factor}
    factor  = ["-" | "+"] factor | "(" sum ")" | digits

Nothing is handed to Python's own evaluation.  The time is linear in the length of the text, which is capped, and every
intermediate value is capped, so that no input can make it slow or large.
"""

from __future__ import annotations

import re

from burnish.core.errors import ToolError

MAX_CHARS = 100
MAX_DEPTH = 16
MAX_DIGITS = 9
MAX_VALUE = 10**12

_TOKEN = re.compile(r"[0-9]+|[^ ]")
_SYMBOLS = frozenset("+-*()")


class _Reader:
    """Recursive descent over the tokens of one expression."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens
        self.at = 0
        self.depth = 0

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self) -> str:
        token = self.peek()
        self.at += 1
        return token

    def sum(self) -> int:
        value = self.product()
        while self.peek() in ("+", "-"):
            value = bounded(value + self.product() if self.take() == "+" else value - self.product())
        return value

    def product(self) -> int:
        value = self.factor()
        while self.peek() == "*":
            self.take()
            value = bounded(value * self.factor())
        return value

    def factor(self) -> int:
        token = self.take()
        if token.isdigit():
            if len(token) > MAX_DIGITS:
                raise ToolError(f"a number may have {MAX_DIGITS} digits, got {len(token)}")
            return int(token)
        if token not in ("-", "+", "("):
            raise ToolError(f"expected a number, got {token!r}" if token else "the expression ends too early")
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ToolError(f"signs and parentheses may nest {MAX_DEPTH} deep")
        value = self.sum() if token == "(" else self.factor()
        if token == "(" and self.take() != ")":
            raise ToolError("a parenthesis is not closed")
        self.depth -= 1
        return -value if token == "-" else value


def bounded(value: int) -> int:
    """`value` itself; ToolError where its size passes `MAX_VALUE`."""
    if abs(value) > MAX_VALUE:
        raise ToolError("the result is too large")
    return value


def evaluate(expression: str) -> int:
    """The value of an expression.  Raises ToolError, which the policy sees, for anything outside the grammar.

    >>> evaluate("3*47 + 2*(15-4)")
    163
    """
    if len(expression) > MAX_CHARS:
        raise ToolError(f"an expression may have {MAX_CHARS} characters, got {len(expression)}")
    tokens: list[str] = _TOKEN.findall(expression)
    if not all(token in _SYMBOLS or (token.isascii() and token.isdigit()) for token in tokens):
        raise ToolError("use whole numbers, + - * and parentheses")
    reader = _Reader(tokens)
    value = reader.sum()
    if reader.at < len(tokens):
        raise ToolError(f"did not expect {reader.peek()!r} after a complete expression")
    return value
