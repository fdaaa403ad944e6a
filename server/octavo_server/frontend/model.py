"""What the API process must know of the model: its tokenizer, chat template, sampling defaults and vocabulary."""

import logging
import math
from dataclasses import dataclass, field
from pathlib import Path

from octavo_common.generation_config import GenerationDefaults, read_generation_defaults
from octavo_common.json_fields import ModelConfigError
from octavo_common.model_config import read_model_config
from octavo_common.pooling_config import PoolingConfig, read_pooling_config
from octavo_server.errors import ModelError
from octavo_server.frontend.generation_fields import MAX_REPETITION_PENALTY, MIN_REPETITION_PENALTY
from octavo_server.frontend.text.chat_template import ChatTemplate, ContentFormat
from octavo_server.frontend.text.output_parsers import OutputFormat, choose_format
from octavo_server.frontend.text.template_files import load_chat_template
from octavo_server.frontend.text.tokenizer import TextTokenizer

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """What is used where a request does not say; `top_k` 0 is off."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model's text side. `chat_template` is None where the model has none: it cannot chat.

    `format`: how its chats write thoughts and tool calls; `kept_ids`: special tokens that it is known by.
    `generates`: False for one without a language-model head. `embedding`: how its hidden states become one, by its
    files.
    """

    tokenizer: TextTokenizer
    chat_template: ChatTemplate | None
    defaults: SamplingDefaults
    vocab_size: int
    embedding: PoolingConfig
    format: OutputFormat = field(default_factory=lambda: OutputFormat(None, None))
    kept_ids: frozenset[int] = frozenset()
    generates: bool = True

    @property
    def tasks(self) -> list[str]:
        """What it can be asked for."""
        return ["generate", "embed"] if self.generates else ["embed"]

    @property
    def hidden_markers(self) -> tuple[str, ...]:
        """The texts of those that are special: no part of what is said."""
        special = self.kept_ids & self.tokenizer.special_ids
        return tuple(self.tokenizer.token_bytes(token_id).decode() for token_id in special)


def load_model(
    directory: Path,
    chat_template: str | None = None,
    content_format: ContentFormat = "auto",
    parsers: tuple[str | None, str | None] = (None, None),
) -> ServedModel:
    """Read a model's text side; takes up to seconds for large vocabularies.

    `chat_template`, a file or the template itself, is used instead of the model's. `parsers`: names of those of tool
    calls and of thoughts; None: what the template shows.

    Raises:
        ModelError: a file is missing, broken, or of a kind that is not supported.
        ConfigError: the chat template that is given cannot be used; there is no parser of such a name.
    """
    try:
        config, embedding = read_model_config(directory), read_pooling_config(directory)
        published = read_generation_defaults(directory)
    except ModelConfigError as error:
        raise ModelError(str(error)) from error
    tokenizer = TextTokenizer(directory)
    template = load_chat_template(directory, tokenizer.config, tokenizer.named_tokens, chat_template, content_format)
    if not config.generates:
        log.info("the model has no language-model head: it makes embeddings, and no text")
    elif template is None:
        log.warning("the model has no chat template: it answers /v1/completions only")
    added = tokenizer.added_tokens()
    form = choose_format(template.source if template is not None else "", *parsers, token_ids=added)
    return ServedModel(
        tokenizer,
        template,
        sampling_defaults(published),
        config.vocab_size,
        embedding,
        format=form,
        kept_ids=frozenset(added[marker] for marker in form.kept_markers if marker in added),
        generates=config.generates,
    )


def sampling_defaults(published: GenerationDefaults) -> SamplingDefaults:
    """What the model's makers recommend, as far as it is possible here; what is not is ignored with a warning."""
    wanted = {
        "temperature": (published.temperature, 0.0, 2.0),
        "top_p": (published.top_p, 0.0, 1.0),
        "top_k": (published.top_k, 0, math.inf),
        "min_p": (published.min_p, 0.0, 1.0),
        "repetition_penalty": (published.repetition_penalty, MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY),
    }
    taken: dict[str, float] = {}
    for name, (value, low, high) in wanted.items():
        if value is None:
            continue
        if low <= value <= high:
            taken[name] = value
        else:
            log.warning("generation_config.json: %s %s is ignored; allowed are %s to %s", name, value, low, high)
    return SamplingDefaults(
        temperature=taken.get("temperature", 1.0),
        top_p=taken.get("top_p", 1.0),
        top_k=int(taken.get("top_k", 0)),
        min_p=taken.get("min_p", 0.0),
        repetition_penalty=taken.get("repetition_penalty", 1.0),
    )
