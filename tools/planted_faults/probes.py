"""Puts a probe before the statement that a fault changes."""

import ast
from collections.abc import Iterable, Iterator

from tools.planted_faults.fault import Fault

_PROBE = '__import__("tools.planted_faults.probe", fromlist=["reached"]).reached("{name}")\n'


def with_probes(text: str, faults: Iterable[Fault]) -> str:
    """Return a module that tells when the statements of its faults are reached.

    A fault outside of all functions gets no probe: it is reached by whoever imports the module.

    Args:
        text: the module.
        faults: that are planted in it.

    Raises:
        FaultError: if a fault's text is not there exactly once.
        SyntaxError: if the module does not parse.
    """
    tree, lines = ast.parse(text), text.splitlines(keepends=True)
    places = []
    for fault in faults:
        statement = _statement(tree, fault.place(text), lines)
        if statement is not None:
            places.append((statement.lineno, statement.col_offset, fault.name))
    for line, column, name in sorted(places, reverse=True):
        lines.insert(line - 1, " " * column + _PROBE.format(name=name))
    return "".join(lines)


def _statement(tree: ast.Module, line: int, lines: list[str]) -> ast.stmt | None:
    """Find the innermost statement of a function that holds the line and can follow another."""
    found: ast.stmt | None = None
    node: ast.AST | None = tree
    is_inside = False
    while node is not None:
        is_inside = is_inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        node = next((child for child in _children(node) if _holds(child, line)), None)
        if isinstance(node, ast.stmt) and is_inside and not _is_elif(node, lines):
            found = node
    return found


def _children(node: ast.AST) -> Iterator[ast.stmt | ast.ExceptHandler | ast.match_case]:
    for field in ("body", "orelse", "handlers", "finalbody", "cases"):
        yield from getattr(node, field, ())


def _holds(node: ast.stmt | ast.ExceptHandler | ast.match_case, line: int) -> bool:
    if isinstance(node, ast.match_case):
        first, last = node.pattern.lineno, node.body[-1].end_lineno
    else:
        first, last = node.lineno, node.end_lineno
    return first <= line <= (last or first)


def _is_elif(node: ast.stmt, lines: list[str]) -> bool:
    return isinstance(node, ast.If) and lines[node.lineno - 1].lstrip().startswith("elif ")
