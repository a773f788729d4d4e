"""Reading a metric: a text expression, a name of the catalogue, or a name with options."""

from __future__ import annotations

import ast
import inspect
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from autosegloss.errors import AutoseglossError, InputError, ParseError, cut, did_you_mean, shown
from autosegloss.metric import expr as e
from autosegloss.metric.catalogue import METRICS, OF_CLASSES

Value = e.Expr | float | int | bool | str
_CATALOGUE: Final = {**METRICS, **OF_CLASSES}
_FUNCTIONS: Final[dict[str, Callable[..., e.Expr]]] = {**e.BUILDERS, **_CATALOGUE}
"""What a text may call."""

_MAX_LENGTH: Final = 20_000  # characters; far above any metric, far below what troubles Python's parser
_DEEPEST: Final = 150  # levels of the syntax tree: far above any metric, and within Python's recursion limit
_TOO_DEEP: Final = "the expression is nested too deeply to be read."
_SHOWN: Final = 100  # characters of a line that a message repeats
LONGEST_NAME: Final = 60  # characters of the name of a metric, which heads a column
_LONGEST_REASON: Final = 700  # characters; with the line, a message stays below 1,000
_OPERATORS: Final[dict[type[ast.operator], Callable[[e.Expr, e.Expr], e.Expr]]] = {
    ast.BitAnd: lambda a, b: a & b,
    ast.BitOr: lambda a, b: a | b,
    ast.BitXor: lambda a, b: a ^ b,
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
}


def metric(
    spec: str | e.Expr | Mapping[str, object], /, *, class_names: Sequence[str] | None = None, **options: object
) -> e.Expr:
    """The metric that a name, a text or an expression stands for.

    Args:
        spec: A name of the catalogue ("miou"), a text expression ("0.5 * miou + 0.5 * bf1(radius=3)"), a mapping with
            the key `name` and options ({"name": "bf1", "radius": 3}), a mapping with a name of your own and an
            expression ({"name": "symptom", "expression": "iou(2)"}), or an expression, which is returned as it is.
        class_names: The names of all classes in the order of their numbers: classes that the metric names become
            numbers. Without it they stay names, and the metric can't be evaluated.
        **options: Options of a catalogue metric, e.g. `radius=3` or `classes=[1, 2]`.

    Returns:
        An expression whose value is one number.

    Raises:
        InputError: The name, a class or an option is unknown.
        ParseError: The text is not an expression.
        ExprError: The value is not one number.

    Example:
        >>> import autosegloss as asl
        >>> str(asl.metric("gacc"))
        'class_sum(total(pred & target)) / class_sum(total(target))'
        >>> asl.metric("iou(leaf)", class_names=["background", "leaf"]) is asl.metric("miou", classes=[1])
        True
    """
    expr = _metric(spec, options)
    return expr if class_names is None else e.with_class_names(expr, class_names)


def _metric(spec: str | e.Expr | Mapping[str, object], options: Mapping[str, object]) -> e.Expr:
    if isinstance(spec, Mapping):
        return _from_mapping({str(key): value for key, value in spec.items()}, options)
    if isinstance(spec, str) and (spec.strip().isidentifier() or options):
        name = spec.strip()
        if name not in _CATALOGUE:
            hint = (
                _class_hint(name)
                or did_you_mean(name, _CATALOGUE)
                or (f"; `autosegloss metrics` lists them, and the IoU of a class is `iou({cut(name)})`")
            )
            raise InputError(f"unknown metric `{cut(name)}`{hint}.")
        return e.check_scalar(_call(_CATALOGUE[name], name, (), options))
    if options:
        raise InputError(f"options ({cut(', '.join(options))}) belong to a catalogue metric, not to an expression.")
    return e.check_scalar(parse(spec) if isinstance(spec, str) else spec)


def _from_mapping(given: Mapping[str, object], options: Mapping[str, object]) -> e.Expr:
    """A name with options, or a name of the user's own with the expression that it stands for."""
    own = {key: value for key, value in given.items() if key != "name"}
    name = given.get("name")
    if not isinstance(name, str):
        hint = ""
        if len(given) == 1 and next(iter(given)) in _CATALOGUE:
            ((only, value),) = given.items()
            hint = f" Did you mean `{only}({cut(str(value), 60)})`?"
        raise InputError(
            f"a metric with options needs a name, as in {{name: biou, radius: 3}}, got {shown(dict(given))}.{hint}"
        )
    if "expression" not in own:
        return _metric(name, {**own, **options})
    if len(own) > 1 or options:
        more = ", ".join([key for key in own if key != "expression"] + list(options))
        raise InputError(f"metric `{cut(name)}`: {cut(more)} can't stand beside `expression`; write options inside it.")
    expression = own["expression"]
    if not isinstance(expression, str | e.Expr):
        raise InputError(f"metric `{cut(name)}`: expression must be a text such as iou(2), got {shown(expression)}.")
    if not name.strip() or not name.isprintable() or len(name) > LONGEST_NAME:
        raise InputError(f"a metric's name must be 1 to {LONGEST_NAME} printable characters, got {shown(name)}.")
    expr = _metric(expression, {})
    if name in OF_CLASSES or (name in METRICS and METRICS[name]() != expr):
        raise InputError(f"the name `{name}` belongs to another metric of the catalogue; choose another name.")
    return expr


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
        with warnings.catch_warnings():  # what Python finds odd, as `1if`, is refused below
            warnings.simplefilter("ignore")
            tree = ast.parse(_bracketed(text), mode="eval")
    except SyntaxError as error:
        if "too many nested" in error.msg:
            raise ParseError(_TOO_DEEP) from None
        digits = "the limit" in error.msg and "digits" in error.msg
        reason = "a number has too many digits" if digits else _spelling(text) or error.msg
        raise ParseError(_at(text, reason, error.lineno, (error.offset or 1) - 1)) from None
    except (RecursionError, MemoryError):
        raise ParseError(_TOO_DEEP) from None
    except ValueError as error:
        raise ParseError(f"the text can't be read as an expression: {error}.") from None
    if tree.body.lineno == 1:  # the bracket put in front was closed by the text
        raise ParseError(_at(text, "the brackets do not match", None, 0))
    if _depth(tree) > _DEEPEST:
        raise ParseError(_TOO_DEEP)
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
                if node.id in OF_CLASSES:
                    raise self.error(node, f"`{node.id}` needs a class, as in {node.id}(2) or {node.id}(name)")
                if node.id in e.BUILDERS:
                    raise self.error(node, f"`{node.id}` is a function; call it: {node.id}(...)")
                guess = _class_hint(node.id) or did_you_mean(node.id, [*self.names, *_FUNCTIONS])
                raise self.error(node, f"unknown name `{cut(node.id)}`{guess}; the leaves are pred and target.")
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
                if name in ("pred", "target") or name in _FUNCTIONS:
                    raise self.error(node, f"`{name}` has a meaning already; choose another name.")
                self.names[name] = self.operand(node.value)
                return self.names[name]
            case ast.Call(func=ast.Name(id=name)):
                return self.call(node, name)
            case ast.Subscript(value=ast.Name(id=name)) | ast.Attribute(value=ast.Name(id=name)) if name in _CATALOGUE:
                given = node.attr if isinstance(node, ast.Attribute) else ast.unparse(node.slice)
                raise self.error(node, f"this has no place in an expression; write {_of_class(name, given)}")
            case _:
                raise self.error(
                    node, "this has no place in an expression; allowed: pred, target, & | ^ ~ + - * /, calls, numbers"
                )

    def call(self, node: ast.Call, name: str) -> e.Expr:
        build = _FUNCTIONS.get(name)
        if build is None:
            hint = did_you_mean(name, _FUNCTIONS) or (
                f"; known: {', '.join(e.BUILDERS)}, and the metrics, which `autosegloss metrics` lists"
            )
            raise self.error(node, f"unknown function `{cut(name)}`{hint}.")
        parameters = list(inspect.signature(build).parameters)
        arguments: list[Any] = []
        selects = "classes" in parameters and name in _CATALOGUE
        for parameter, argument in zip([*parameters, *[""] * len(node.args)], node.args, strict=False):
            if selects and parameter != "classes" and self.may_be_classes(argument):
                several = name in OF_CLASSES and len(node.args) > 1
                given = ", ".join(map(ast.unparse, node.args)) if several else ast.unparse(argument)
                written = _of_class(name, f"[{given}]" if several else given)
                raise self.error(argument, f"this is no option of {name}; if it names a class, write {written}")
            arguments.append(self.option(parameter, argument))
        options: dict[str, Any] = {}
        for keyword in node.keywords:
            if keyword.arg is None:
                raise self.error(node, "`**` has no place in an expression")
            if keyword.arg in options:
                raise self.error(keyword.value, f"`{keyword.arg}` is given twice")
            try:
                _check_option(name, keyword.arg, parameters)
            except InputError as error:
                raise self.error(node, str(error)) from error
            unset = isinstance(keyword.value, ast.Constant) and keyword.value.value is None
            options[keyword.arg] = None if unset else self.option(keyword.arg, keyword.value)
        return _call(build, name, arguments, options)

    def may_be_classes(self, node: ast.expr) -> bool:
        """Whether an argument is a list, or a name that has no meaning here."""
        unknown = isinstance(node, ast.Name) and node.id not in self.names and node.id not in _FUNCTIONS
        return unknown or isinstance(node, ast.List | ast.Tuple)

    def option(self, name: str, node: ast.expr) -> object:
        """An argument; those named `classes` and `weights` may be lists, and classes may be bare names."""
        several = node.elts if isinstance(node, ast.List | ast.Tuple) else None
        if name == "classes":
            return [self.class_of(each) for each in (several if several is not None else [node])]
        if name == "weights" and several is not None:
            return [self.read(each) for each in several]
        return self.read(node)

    def class_of(self, node: ast.expr) -> int | str:
        match node:
            case ast.Name(id=name) if name in self.names or name in _FUNCTIONS:
                raise self.error(node, f'`{name}` has a meaning already; a class of this name is quoted: "{name}"')
            case ast.Name(id=name):
                return name
            case ast.Constant(value=str() | int() as value) if not isinstance(value, bool):
                return value
            case _:
                raise self.error(
                    node, 'a class is its number, 0 or more, or its name; other names are quoted, as in "grey matter"'
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
    if "class" in options and "class" not in allowed and "classes" in allowed and "classes" not in options:
        options = {"classes" if option == "class" else option: value for option, value in options.items()}
    for option in options:
        _check_option(name, option, allowed)
    if name in OF_CLASSES and not arguments and not options:
        raise InputError(f"`{name}` needs a class, as in {name}(2) or {name}(name).")
    try:
        signature.bind(*arguments, **options)
    except TypeError as error:
        raise InputError(f"{name}{signature_text(build)}: {error}.") from None
    return build(*arguments, **options)


def _check_option(name: str, option: str, allowed: Sequence[str]) -> None:
    """Raise InputError for an option that a function does not have."""
    if option not in allowed:
        over = option in ("class", "classes", "weights") and name in _CATALOGUE
        guess = " (it does not average over classes)" if over else did_you_mean(option, allowed)
        raise InputError(f"{name}: unknown option `{cut(option)}`{guess}; allowed: {', '.join(allowed) or 'none'}.")


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
    message = cut(message, _LONGEST_REASON)
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
    printed = "".join(character if character.isprintable() else "?" for character in shown)
    return f"{message}\n  {printed}\n  {' ' * caret}^"


def _depth(tree: ast.AST) -> int:
    """The levels of a syntax tree."""
    level: list[ast.AST] = [tree]
    depth = 0
    while level:
        level = [child for node in level for child in ast.iter_child_nodes(node)]
        depth += 1
    return depth


def _spelling(text: str) -> str | None:
    """What to write instead, where a text that is not Python looks like the metric of one class."""
    if column := re.fullmatch(r"\s*iou\s+of\s+(.{1,100})", text, re.IGNORECASE):
        return f"this is the name of a column; as a metric, write {_of_class('iou', column[1].strip())}"
    if keyword := re.search(r"\b([a-z_0-9]{1,30})\(\s*class\s*=\s*([^,()]{1,100})", text):
        return f"`class` is a word of Python; write {_of_class(keyword[1], keyword[2])}"
    if hint := _class_hint(text):
        return f"this is no expression{hint}"
    if re.search(r"\biou\(|\bclasses\s*=", text):
        return 'this can\'t be read; names of classes with spaces or other characters are quoted, as in "grey matter"'
    return None


def _of_class(name: str, given: str) -> str:
    """How the metric of one class is written."""
    given = cut(given.strip().strip("'\""), 60)
    plain = given.isidentifier() or given.isdecimal() or given.startswith("[")
    text = given if plain else f'"{given}"'
    return f"{name}({text})" if name in OF_CLASSES else f"{name}(classes={text})"


def _class_hint(text: str) -> str:
    """A hint where a text joins a metric and a class, as in `iou_2`, `iou2`, `iou symptom` and `symptom_iou`."""
    if len(text) > _SHOWN:
        return ""
    for pattern in (r"([a-z_]+?)(?:[\s_.:]+(\w[\w -]*)|(\d+))", r"(\w[\w -]*?)[\s_]+([a-z]+)"):
        if found := re.fullmatch(pattern, text.strip(), re.IGNORECASE):
            one, other = [part for part in found.groups() if part is not None]
            metric, given = (one, other) if one.lower() in _CATALOGUE else (other, one)
            if metric.lower() in _CATALOGUE:
                return f" (did you mean `{_of_class(metric.lower(), given)}`?)"
    return ""
