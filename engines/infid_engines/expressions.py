"""Integer expressions of shapes in launch descriptions: `(queries + 127) // 128`."""

from __future__ import annotations

import ast
import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any

_OPERATORS: Mapping[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
}


def evaluate(expression: str, names: Mapping[str, Any], constant: Callable[[int], Any] = int) -> Any:
    """Evaluate an expression of names, integers, `+`, `-`, `*`, `//` and parentheses.

    Args:
        expression: the text.
        names: values of the names: integers, or symbols that support these operators.
        constant: converts an integer literal, if the symbols need their own kind.

    Returns:
        The value.

    Raises:
        ValueError: the text contains something else, or an unknown name.
    """

    def value(node: ast.expr) -> Any:
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            return _OPERATORS[type(node.op)](value(node.left), value(node.right))
        if isinstance(node, ast.Constant) and type(node.value) is int:
            return constant(node.value)
        if isinstance(node, ast.Name) and node.id in names:
            return names[node.id]
        raise ValueError(f"{expression!r} is not an expression of {', '.join(names)} (at {ast.unparse(node)!r})")

    return value(_parsed(expression))


def names_in(expression: str) -> set[str]:
    """Return the names in an expression.

    Raises:
        ValueError: it is not an expression.
    """
    return {node.id for node in ast.walk(_parsed(expression)) if isinstance(node, ast.Name)}


@functools.cache  # a launch evaluates 20 of them, always the same
def _parsed(expression: str) -> ast.expr:
    try:
        return ast.parse(expression, mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"{expression!r} is not an expression ({error.msg})") from error
