"""Reading Python that a model wrote, without running it."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator

_MAX_CHARS = 100_000
_MAX_NESTING = 80


def parsed(text: str) -> ast.Module | None:
    """The tree, None where the text is no Python, or too long or too deep to look at safely."""
    if len(text) > _MAX_CHARS or max((_depth(line) for line in text.splitlines()), default=0) > _MAX_NESTING:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _depth(line: str) -> int:
    """An upper bound of how deep one line nests."""
    return sum(line.count(mark) for mark in "([{") + (len(line) - len(line.lstrip())) // 2 if len(line) > 80 else 0


def dotted(node: ast.expr) -> str:
    """ "a.b.c" of an attribute or name, "" of anything else.

    >>> dotted(ast.parse("os.path.join", mode="eval").body)
    'os.path.join'
    """
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return ""
    return ".".join([node.id, *reversed(parts)])


def real_names(tree: ast.Module) -> dict[str, str]:
    """Local name -> what was imported under it.

    >>> real_names(ast.parse("import os as o; from sys import exit as e"))
    {'o': 'os', 'e': 'sys.exit'}
    """
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {item.asname or item.name.partition(".")[0]: item.name for item in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {item.asname or item.name: f"{node.module or ''}.{item.name}" for item in node.names}
    return names


def resolved(node: ast.expr, names: dict[str, str]) -> str:
    """`dotted` with imports undone: "os._exit" for `o._exit` after `import os as o`."""
    text = dotted(node)
    head, dot, rest = text.partition(".")
    return names.get(head, head) + dot + rest


def calls(tree: ast.AST, names: dict[str, str]) -> Iterator[tuple[str, ast.Call]]:
    """Every call with the resolved name of what is called."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield resolved(node.func, names), node


def at_import(tree: ast.Module) -> Iterator[ast.stmt]:
    """Statements that run when the module is imported: all of the top level but definitions and the main block."""
    waiting: list[ast.stmt] = list(tree.body)
    while waiting:
        node = waiting.pop(0)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or _is_main_block(node):
            continue
        if isinstance(node, ast.ClassDef | ast.If | ast.Try | ast.With | ast.For | ast.While):
            waiting += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
            continue
        yield node


def _is_main_block(node: ast.stmt) -> bool:
    if not isinstance(node, ast.If):
        return False
    return any(isinstance(name, ast.Name) and name.id == "__name__" for name in ast.walk(node.test))


def literal(node: ast.AST) -> str | None:
    """A constant or a tuple, list or dict of them in one spelling, None of anything else."""
    try:
        return repr(ast.literal_eval(node))
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return None
