"""What a model's makers recommend for sampling, read from its `generation_config.json`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo_common.json_fields import FieldReader, read_json_object


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """Sampling for requests that do not say; None where the model does not say either.

    Values are as published; whether they can be honoured is for the reader to check. `eos_token_ids` ends a sequence,
    besides those of `config.json`.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    eos_token_ids: tuple[int, ...] = ()


def parse_generation_defaults(config: Mapping[str, Any]) -> GenerationDefaults:
    """The defaults that the content of a `generation_config.json` names; other fields are left alone.

    Raises:
        ModelConfigError: a field is of the wrong type; the message names it.
    """
    fields = FieldReader(config, prefix="generation_config.json: ")
    top_k = fields.optional_number("top_k", at_least=0)
    return GenerationDefaults(
        temperature=fields.optional_number("temperature", at_least=0),
        top_p=fields.optional_number("top_p", at_least=0),
        top_k=None if top_k is None else int(top_k),
        min_p=fields.optional_number("min_p", at_least=0),
        repetition_penalty=fields.optional_number("repetition_penalty", at_least=0),
        eos_token_ids=fields.token_ids("eos_token_id"),
    )


def read_generation_defaults(directory: Path) -> GenerationDefaults:
    """The defaults of the model in `directory`; none where it has no `generation_config.json`.

    Raises:
        ModelConfigError: the file is broken.
    """
    path = directory / "generation_config.json"
    return parse_generation_defaults(read_json_object(path)) if path.is_file() else GenerationDefaults()
