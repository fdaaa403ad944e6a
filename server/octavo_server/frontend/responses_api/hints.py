"""What is told of fields that chats have, and responses have otherwise or not at all."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from octavo_server.frontend.generation_fields import VARIABLE

_CHATS: Final = "/v1/chat/completions takes it"
PROMPT_HINTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "extra_body": "it belongs to the openai client, which puts what is in it into the body itself",
        "messages": "/v1/chat/completions takes them; here they are the input",
        "response_format": 'here it stands in text: {"format": {"type": "json_schema", "name": …, "schema": …}}',
        "reasoning_effort": 'here it stands in reasoning: {"effort": …}',
        "verbosity": 'here it stands in text: {"verbosity": …}',
    }
)
HINTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        **PROMPT_HINTS,
        "max_tokens": "here it is max_output_tokens",
        "max_completion_tokens": "here it is max_output_tokens",
        "logprobs": "here it is top_logprobs",
        "functions": "here they are tools",
        "enable_thinking": VARIABLE,
        "thinking": VARIABLE,
        **dict.fromkeys(
            (
                "add_generation_prompt",
                "allowed_token_ids",
                "bad_words",
                "continue_final_message",
                "documents",
                "include_reasoning",
                "n",
                "prompt_logprobs",
                "return_token_ids",
                "return_tokens_as_token_ids",
                "truncate_prompt_tokens",
            ),
            _CHATS,
        ),
    }
)
FLAT: Final[Mapping[str, str]] = MappingProxyType(
    {"function": 'what chats have in it stands beside the type: {"type": "function", "name": …}'}
)
