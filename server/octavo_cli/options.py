"""Command-line options made from a pydantic model: a field is a flag, its description the help."""

import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import click
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

C = TypeVar("C", bound=Callable[..., Any])
M = TypeVar("M", bound=BaseModel)


def flag(field: str) -> str:
    """`max_model_len` → `--max-model-len`."""
    return f"--{field.replace('_', '-')}"


def options_of(
    model: type[BaseModel], *, without: Iterable[str] = (), envvars: Mapping[str, Sequence[str]] | None = None
) -> Callable[[C], C]:
    """A decorator that gives a command an option for each field, in their order, but for those in `without`.

    `envvars` names environment variables that stand in for flags that are not given.
    """
    left_out = set(without)
    fields = [(name, field) for name, field in model.model_fields.items() if name not in left_out]

    def decorate(command: C) -> C:
        for name, field in reversed(fields):
            command = _option(name, field, (envvars or {}).get(name, ()))(command)
        return command

    return decorate


def validated(model: type[M], values: Mapping[str, Any]) -> M:
    """The model with these values, of which None and () are left to the model's default.

    Raises:
        click.UsageError: a value is out of bounds; one line that names the flag.
    """
    given = {name: value for name, value in values.items() if value is not None and value != ()}
    try:
        return model.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else ""
        value = given.get(name)
        # What may be given several times may be secret, and is not repeated.
        shown = "" if value is None else f"{flag(name)}: " if isinstance(value, tuple) else f"{flag(name)} {value}: "
        raise click.UsageError(f"{shown}{first['msg'][:1].lower()}{first['msg'][1:]}") from error


class _WithOtherNames(click.Option):
    """An option of several names. click takes the last value; this refuses names that say different things."""

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        for name in self.opts:
            parser.add_option(obj=self, opts=[name], dest=name, action="store", nargs=self.nargs)

    def handle_parse_result(
        self, ctx: click.Context, opts: Mapping[str, Any], args: list[str]
    ) -> tuple[Any, list[str]]:
        given = {name: opts[name] for name in self.opts if name in opts}
        if len({self.type_cast_value(ctx, value) for value in given.values()}) > 1:
            shown = " and ".join(f"{name} {value}" for name, value in given.items())
            raise click.UsageError(f"{shown} are two names of one flag: give one of them", ctx)
        known = {} if self.name is None or not given else {self.name: list(given.values())[-1]}
        return super().handle_parse_result(ctx, known, args)


def _option(name: str, field: FieldInfo, envvars: Sequence[str]) -> Callable[[C], C]:
    kind, multiple = _kind(field.annotation)
    default = f"  [default: {field.default}]" if field.default is not None and not multiple else ""
    names = [flag(name), *(flag(other) for other in _other_names(field))]
    if kind is click.BOOL:
        default = "" if field.default is None else f"  [default: {'yes' if field.default else 'no'}]"
        names = [f"{one}/{one.replace('--', '--no-', 1)}" for one in names]
    return click.option(
        *names,
        name,
        cls=_WithOtherNames if len(names) > 1 else click.Option,
        type=kind,
        multiple=multiple,
        default=None,  # when it is not given: the default stands in the model alone
        envvar=envvars or None,
        show_envvar=bool(envvars),
        help=f"{field.description or ''}{default}",
    )


def _other_names(field: FieldInfo) -> list[str]:
    """Further names of the flag: `json_schema_extra={"flags": ["kv_offloading_size"]}`."""
    extra = field.json_schema_extra
    names = extra.get("flags", []) if isinstance(extra, dict) else []
    return [str(name) for name in names] if isinstance(names, list) else []


def _kind(annotation: Any) -> tuple[click.ParamType[Any], bool]:
    """(click's type, whether the flag may be given several times) for a field's annotation."""
    if get_origin(annotation) in (types.UnionType, Union):
        (annotation,) = (member for member in get_args(annotation) if member is not type(None))
    if get_origin(annotation) is Annotated:  # its bounds are checked with the whole configuration
        annotation = get_args(annotation)[0]
    if get_origin(annotation) is Literal:
        return click.Choice(list(get_args(annotation))), False
    if get_origin(annotation) is tuple:
        return click.STRING, True
    kinds: dict[Any, click.ParamType[Any]] = {
        int: click.INT,
        float: click.FLOAT,
        str: click.STRING,
        bool: click.BOOL,
        Path: click.Path(path_type=Path),
    }
    if annotation not in kinds:
        raise TypeError(f"there is no option for a field of type {annotation}")
    return kinds[annotation], False
