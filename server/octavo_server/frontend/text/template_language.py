"""The language of chat templates: sandboxed Jinja with the filters and globals that transformers gives them.

And what can be known of a template by reading it, before it ever runs.
"""

import datetime
import json
from collections.abc import Iterator
from typing import Any, Literal

import jinja2
from jinja2 import meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

# What a template takes for a message's content: a string, a list of parts, or it looks which of them it is.
Content = Literal["string", "parts", "either"]


def environment() -> ImmutableSandboxedEnvironment:
    """What templates are written for."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    made.filters["tojson"] = _tojson
    made.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
        "namespace": _Namespace,
        "dict": _dict,
    }
    return made


def names_read(template: nodes.Template) -> set[str]:
    """Variables that a template may take from outside, globals left out.

    Also those that it sets itself, but not before each place that reads them: it may have set them in one branch.
    """
    return meta.find_undeclared_variables(template)


def content_read(template: nodes.Template) -> Content:
    """How a template takes content: as parts if it iterates over it, as either if it also asks whether it is a string.

    A guess by what published templates do: content is what is called so, or set from what is.
    """
    content = _Field(template, "content")
    if not any(content.is_in(loop.iter) for loop in template.find_all(nodes.For)):
        return "string"
    return "either" if content.is_tested(template, "string") else "parts"


def takes_text_arguments(template: nodes.Template) -> bool:
    """Whether a template looks what a call's arguments are, and so shows them also where they are no mapping."""
    return _Field(template, "arguments").is_tested(template, "string", "mapping")


class _Field:
    """A field of messages where a template reads it, also by the names that it sets from it."""

    def __init__(self, template: nodes.Template, field: str) -> None:
        self._field, self._names = field, {field}
        for assign in template.find_all(nodes.Assign):
            if isinstance(assign.target, nodes.Name) and self.is_in(assign.node):
                self._names.add(assign.target.name)

    def is_in(self, expression: nodes.Node) -> bool:
        """Whether an expression is a form of it."""
        return any(self._is_called_so(node) for node in _core(expression))

    def is_tested(self, template: nodes.Template, *tests: str) -> bool:
        """Whether the template asks one of these of it."""
        return any(test.name in tests and self.is_in(test.node) for test in template.find_all(nodes.Test))

    def _is_called_so(self, node: nodes.Node) -> bool:
        if isinstance(node, nodes.Name):
            return node.name in self._names
        if isinstance(node, nodes.Getitem):
            return isinstance(node.arg, nodes.Const) and node.arg.value == self._field
        return isinstance(node, nodes.Getattr) and node.attr == self._field


def _core(expression: nodes.Node) -> Iterator[nodes.Node]:
    """What an expression is a form of: behind filters and slices, on both sides of an `if` or an `or`."""
    forms: list[nodes.Node | None] = []
    if isinstance(expression, nodes.Filter) or (
        isinstance(expression, nodes.Getitem) and isinstance(expression.arg, nodes.Slice)
    ):
        forms = [expression.node]
    elif isinstance(expression, nodes.CondExpr):
        forms = [expression.expr1, expression.expr2]
    elif isinstance(expression, nodes.Or):
        forms = [expression.left, expression.right]
    else:
        yield expression
    for form in forms:
        if form is not None:
            yield from _core(form)


class _GenerationTag(Extension):
    """`{% generation %}…{% endgeneration %}` marks what the assistant said, for training; only its content counts."""

    tags = {"generation"}  # noqa: RUF012 (declared so by jinja2)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        # A scope of its own: what is set inside does not reach the outside, as with the block that transformers makes.
        return nodes.Scope(body, lineno=line)


class _Namespace(Namespace):
    """Keeps no name with an underscore in front: by these, what a template sets could pose as Python's own."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *values = args  # a template may set `self`
        names = dict(*values, **kwargs)
        for name in names:
            _check_name(name)
        Namespace.__init__(self, names)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace keeps no {name!r}: names that begin with an underscore are Python's")


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    """The function, without the methods of the class."""
    return dict(*args, **kwargs)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON for a prompt, not for a page: nothing is escaped that JSON does not ask for."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.datetime.now().strftime(format)
