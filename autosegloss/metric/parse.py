"""Reading a metric: a text expression, a name of the catalogue, or a name with options."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping
from typing import Final

from autosegloss.errors import AutoseglossError, InputError, ParseError, cut, did_you_mean, shown
from autosegloss.metric import expr as e
from autosegloss.metric.catalogue import METRICS

Value = e.Expr | float | int | bool | str

_MAX_LENGTH: Final = 20_000  # characters; far above any metric, far below what troubles Python's parser
_TOO_DEEP: Final = "the expression is nested too deeply to be read."
_SHOWN: Final = 100  # characters of a line that a message repeats
_OPERATORS: Final[dict[type[ast.operator], Callable[[e.Expr, e.Expr], e.Expr]]] = {
    ast.BitAnd: lambda a, b: a & b,
    ast.BitOr: lambda a, b: a | b,
    ast.BitXor: lambda a, b: a ^ b,
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
}


def metric(spec: str | e.Expr | Mapping[str, object], /, **options: object) -> e.Expr:
    """The metric that a name, a text or an expression stands for.

    Args:
        spec: A name of the catalogue ("miou"), a text expression ("0.5 * miou + 0.5 * bf1(radius=3)"), a mapping with
            the key `name` and options ({"name": "bf1", "radius": 3}), or an expression, which is returned as it is.
        **options: Options of a catalogue metric, e.g. `radius=3`.

    Returns:
        An expression whose value is one number.

    Raises:
        InputError: The name or an option is unknown.
        ParseError: The text is not an expression.
        ExprError: The value is not one number.

    Example:
        >>> import autosegloss as asl
        >>> str(asl.metric("gacc"))
        'class_sum(total(pred & target)) / class_sum(total(target))'
    """
    if isinstance(spec, Mapping):
        named = {str(key): value for key, value in spec.items()}
        name = named.pop("name", None)
        if not isinstance(name, str):
            raise InputError(
                f"a metric with options needs a name, as in {{name: biou, radius: 3}}, got {shown(dict(spec))}."
            )
        return metric(name, **{**named, **options})
    if isinstance(spec, str) and (spec.strip().isidentifier() or options):
        name = spec.strip()
        if name not in METRICS:
            raise InputError(
                f"unknown metric `{cut(name)}`{did_you_mean(name, METRICS)}; known: {', '.join(sorted(METRICS))}."
            )
        return e.check_scalar(_call(METRICS[name], name, (), options))
    if options:
        raise InputError(f"options ({', '.join(options)}) belong to a catalogue metric, not to an expression.")
    return e.check_scalar(parse(spec) if isinstance(spec, str) else spec)


def parse(text: str) -> e.Expr:
    """The expression a text stands for; `parse(str(expr))` is `expr`.

    The text is Python syntax: the leaves `pred` and `target`, the operators & | ^ ~ + - * /, the functions of the
    expression language (`total`, `class_mean`, ...), the metrics of the catalogue, numbers, and `(name := part)` to
    name a part for what follows. It is read through Python's `ast` with a white list; nothing is executed.

    Raises:
        ParseError: With the text and the place.

    Example:
        >>> parse("class_sum(total(pred & target)) / class_sum(total(target))") is METRICS["gacc"]()
        True
    """
    if not isinstance(text, str):
        raise ParseError(f"an expression must be a string, got {type(text).__name__}.")
    if not text.strip():
        raise ParseError("an expression is missing: the text is empty.")
    text = text.replace("\r\n", "\n").replace("\r", "\n")  # Python counts both as ends of lines
    if len(text) > _MAX_LENGTH:
        raise ParseError(f"the expression has {len(text)} characters; at most {_MAX_LENGTH} are read.")
    try:
        tree = ast.parse(_bracketed(text), mode="eval")
    except SyntaxError as error:
        raise ParseError(_at(text, error.msg, error.lineno, (error.offset or 1) - 1)) from None
    except (RecursionError, MemoryError):
        raise ParseError(_TOO_DEEP) from None
    except ValueError as error:
        raise ParseError(f"the text can't be read as an expression: {error}.") from None
    if tree.body.lineno == 1:  # the bracket put in front was closed by the text
        raise ParseError(_at(text, "the brackets do not match", None, 0))
    try:
        return _Reader(text).operand(tree.body)
    except RecursionError:
        raise ParseError(_TOO_DEEP) from None


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.names: dict[str, e.Expr] = {"pred": e.pred, "target": e.target}

    def read(self, node: ast.expr) -> Value:
        try:
            return self._read(node)
        except ParseError:
            raise
        except AutoseglossError as error:  # what a builder refuses, shown with its place
            raise self.error(node, str(error)) from error

    def _read(self, node: ast.expr) -> Value:
        match node:
            case ast.Name():
                if node.id in self.names:
                    return self.names[node.id]
                if node.id in METRICS:
                    return METRICS[node.id]()
                if node.id in e.BUILDERS:
                    raise self.error(node, f"`{node.id}` is a function; call it: {node.id}(...)")
                guess = did_you_mean(node.id, [*self.names, *METRICS, *e.BUILDERS])
                raise self.error(node, f"unknown name `{node.id}`{guess}; the leaves are pred and target.")
            case ast.Constant(value=bool() | int() | float() | str() as value):
                return value
            case ast.BinOp() if type(node.op) in _OPERATORS:
                left, right = self.operand(node.left), self.operand(node.right)
                return _OPERATORS[type(node.op)](left, right)
            case ast.UnaryOp(op=ast.Invert()):
                return ~self.operand(node.operand)
            case ast.UnaryOp(op=ast.USub()):
                inner = self.read(node.operand)
                if isinstance(inner, int | float) and not isinstance(inner, bool):
                    return -inner  # a plain number, as an option wants it
                return -self.operand(node.operand)
            case ast.NamedExpr(target=ast.Name(id=name)):
                if name in ("pred", "target") or name in METRICS or name in e.BUILDERS:
                    raise self.error(node, f"`{name}` has a meaning already; choose another name.")
                self.names[name] = self.operand(node.value)
                return self.names[name]
            case ast.Call(func=ast.Name(id=name)):
                build = e.BUILDERS.get(name) or METRICS.get(name)
                if build is None:
                    guess = did_you_mean(name, [*METRICS, *e.BUILDERS])
                    raise self.error(
                        node, f"unknown function `{name}`{guess}; known: {', '.join([*e.BUILDERS, *METRICS])}."
                    )
                arguments = [self.read(argument) for argument in node.args]
                options: dict[str, Value | None] = {}
                for keyword in node.keywords:
                    if keyword.arg is None:
                        raise self.error(node, "`**` has no place in an expression")
                    if keyword.arg in options:
                        raise self.error(keyword.value, f"`{keyword.arg}` is given twice")
                    unset = isinstance(keyword.value, ast.Constant) and keyword.value.value is None
                    options[keyword.arg] = None if unset else self.read(keyword.value)
                return _call(build, name, arguments, options)
            case _:
                raise self.error(
                    node, "this has no place in an expression; allowed: pred, target, & | ^ ~ + - * /, calls, numbers"
                )

    def operand(self, node: ast.expr) -> e.Expr:
        value = self.read(node)
        if isinstance(value, bool | str):
            raise self.error(node, f"{shown(value)} is neither an expression nor a number")
        try:
            return e.as_expr(value)
        except AutoseglossError as error:
            raise self.error(node, str(error)) from error

    def error(self, node: ast.expr, message: str) -> ParseError:
        line = _bracketed(self.text).split("\n")[node.lineno - 1]
        column = len(line.encode()[: node.col_offset].decode(errors="ignore"))  # ast counts bytes
        return ParseError(_at(self.text, message, node.lineno, column))


def _call(
    build: Callable[..., e.Expr], name: str, arguments: tuple[()] | list[Value], options: Mapping[str, object]
) -> e.Expr:
    signature = inspect.signature(build)
    allowed = list(signature.parameters)
    for option in options:
        if option not in allowed:
            names = f"{', '.join(allowed)}" if allowed else "none"
            raise InputError(
                f"{name}: unknown option `{cut(option)}`{did_you_mean(option, allowed)}; allowed: {names}."
            )
    try:
        signature.bind(*arguments, **options)
    except TypeError as error:
        raise InputError(f"{name}{signature_text(build)}: {error}.") from None
    return build(*arguments, **options)


def signature_text(build: Callable[..., e.Expr]) -> str:
    """The parameters of a builder as a user writes them: `(radius=5, background=True)`."""
    parts = []
    for parameter in inspect.signature(build).parameters.values():
        default = parameter.default
        parts.append(parameter.name if default is inspect.Parameter.empty else f"{parameter.name}={default!r}")
    return f"({', '.join(parts)})"


def _bracketed(text: str) -> str:
    """The text in brackets on lines of their own, which let an expression run over several lines."""
    return f"(\n{text}\n)"


def _at(text: str, message: str, line_number: int | None, column: int) -> str:
    """The message, the line of the text it is about, and a caret below the place.

    Lines are counted in the bracketed text; a place on the brackets is shown as the end of the text.
    """
    lines = text.rstrip().split("\n")
    number = (line_number or 1) - 2
    if not 0 <= number < len(lines):
        number, column = len(lines) - 1, len(lines[-1])
    line = lines[number]
    indent = len(line) - len(line.lstrip())
    shown = line.strip()
    caret = min(max(column - indent, 0), len(shown))
    if len(shown) > _SHOWN:  # a window around the place
        start = max(0, min(caret - _SHOWN // 2, len(shown) - _SHOWN))
        shown, caret = shown[start : start + _SHOWN], caret - start
    return f"{message}\n  {shown}\n  {' ' * caret}^"
