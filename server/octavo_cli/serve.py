"""`octavo serve MODEL`."""

import importlib.resources
import os
import re
from pathlib import Path
from typing import Any, Final

import click
from click.core import ParameterSource

from octavo_cli.near import no_such_option
from octavo_cli.options import options_of, validated
from octavo_cli.vllm_flags import instead
from octavo_common.pulled_model import missing_part
from octavo_server.access_config import KEY_VARIABLES
from octavo_server.config import ServerConfig
from octavo_server.errors import ConfigError, ModelError
from octavo_server.frontend.engine_child import EngineChild, bytecode_environment
from octavo_server.model_files import check_model_directory

DEMO: Final = "demo"
_VISIBLE: Final = (
    "warning: who lists this machine's processes sees the keys of --api-key; --api-key-file and "
    f"{KEY_VARIABLES[0]} keep them to themselves"
)


class _Serve(click.Command):
    """Knows flags that people bring along from vLLM."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        given = list(args)
        try:
            rest = super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            # Of `-tp` click names the first letter.
            word = next((word for word in given if word.startswith(error.option_name)), error.option_name)
            told = instead(word)
            raise (no_such_option(error) if told is None else click.UsageError(told, ctx)) from error
        if rest:
            raise click.UsageError(f"{rest[0]} is one word too many: a flag of several values is given for each", ctx)
        return rest


@click.command(
    name="serve",
    cls=_Serve,
    short_help="Serve a model through the OpenAI API.",
    context_settings={"allow_extra_args": True},  # refused above, with the remedy
)
@click.argument("model", metavar="MODEL")
@click.pass_context
@options_of(ServerConfig, without={"model"}, envvars={"api_key": KEY_VARIABLES})
def serve(context: click.Context, /, model: str, **options: Any) -> int:
    """Serve a model through the OpenAI API.

    MODEL is a directory in Hugging Face layout (config.json, *.safetensors, tokenizer.json), or `demo` for the small
    model that comes with Octavo.
    """
    directory = model_directory(model)
    if model == DEMO and not options["served_model_name"]:
        options["served_model_name"] = (DEMO,)
    for variable in KEY_VARIABLES:
        if os.environ.get(variable) == "":  # not an open server
            raise click.UsageError(f"{variable} is set but empty: unset it, or give a key")
    if context.get_parameter_source("api_key") == ParameterSource.COMMANDLINE:
        click.echo(_VISIBLE, err=True)
    try:
        check_model_directory(directory, weights=options["load_format"] != "random")
    except ModelError as error:
        raise click.BadParameter(str(error), param_hint="MODEL") from error
    config = validated(ServerConfig, {"model": directory, **options})
    _check_text_flags(config)
    # Before the imports, which take as long as some of its own.
    engine = EngineChild(environment=bytecode_environment(config.compile_cache_dir))
    try:
        from octavo_server.frontend.server import run  # imported late: `--help` answers at once

        return run(config, engine=engine)
    finally:
        engine.discard()


def _check_text_flags(config: ServerConfig) -> None:
    """What flags name must be there before anything is started. Only where they are given: it takes imports.

    Raises:
        click.UsageError: it is not.
    """
    if config.chat_template is None and config.tool_call_parser is None and config.reasoning_parser is None:
        return
    from octavo_server.frontend.text.output_parsers import check_names
    from octavo_server.frontend.text.template_files import check_given

    try:
        check_names(config.tool_call_parser, config.reasoning_parser)
        if config.chat_template is not None:
            check_given(config.chat_template)
    except ConfigError as error:
        raise click.UsageError(str(error)) from error


def model_directory(model: str) -> Path:
    """The model's directory.

    Raises:
        click.BadParameter: there is none.
    """
    if model == DEMO:
        directory = Path(str(importlib.resources.files("octavo_server") / "demo_model"))
        if not (directory / "config.json").is_file():
            raise click.BadParameter("the demo model is missing from this installation", param_hint="MODEL")
        return directory
    directory = Path(model).expanduser()
    if not directory.is_dir():
        if (missing := missing_part(directory)) is not None:
            raise click.BadParameter(f"{directory} {missing}; run `octavo pull` to its end", param_hint="MODEL")
        raise click.BadParameter(
            f"there is no directory {model!r}; {_how_to_get(model)}, or `{DEMO}`", param_hint="MODEL"
        )
    return directory.resolve()


def _how_to_get(model: str) -> str:
    """What to do where a name was given as a directory; names of Hugging Face's hub have at most one slash."""
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", model):
        return "give one in Hugging Face layout"
    name = model.rpartition("/")[2]
    return f"nothing is downloaded: give ./{name} after `octavo pull hf://{model} {name}`"
