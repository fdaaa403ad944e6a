"""A model's chat template, rendered by a process that can be killed: see `template_worker.py`.

There is one from the start on, and a second while the first is busy, so that messages that make a template slow hold
back one other chat at a time.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, Final, Literal

from octavo_server.errors import ModelError, RequestError
from octavo_server.frontend.text.line_process import LinePool, Stopped
from octavo_server.frontend.text_threads import SHORT_TEXT
from octavo_server.frontend.turns import Turns

ContentFormat = Literal["auto", "string", "openai"]
RENDER_SECONDS: Final = 5.0
RENDERERS: Final = 2
_MOST_WAITING: Final = 2**20  # chats: the bound is on open requests
# What the server gives to every template, and no request may set.
RESERVED: Final = frozenset(
    {"messages", "tools", "add_generation_prompt", "chat_template", "raise_exception", "strftime_now"}
    | {f"{kind}_token" for kind in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")}
)
_NO_VARIABLES: Final[Mapping[str, Any]] = MappingProxyType({})
_WORKER: Final = "octavo_server.frontend.text.template_worker"
_GRACE_SECONDS: Final = 15.0  # beyond the CPU time after which the process ends itself: where the machine is busy


@dataclass(frozen=True, slots=True, eq=False)
class _Chat:
    """One that waits to be rendered; no two are the same."""

    caller: bytes
    render: Callable[[], str]


class ChatTemplate:
    """Renders messages to the prompt of a chat. Safe to use from several threads.

    `source`: the text, of several templates one behind the other. `variables`: what a request may set, names that the
    template reads and the server does not give it (`documents` among them). `knows_tools`: whether it reads `tools`.
    """

    def __init__(
        self,
        source: str | Mapping[str, str],
        special_tokens: Mapping[str, str],
        seconds: float = RENDER_SECONDS,
        content_format: ContentFormat = "auto",
    ) -> None:
        """Compile a template, or several by name, of which "default" is one and "tool_use" serves chats with tools.

        `special_tokens` are the variables `bos_token`, `eos_token` and so on. `content_format`: what the template
        takes for a message's content, a string or OpenAI's list of parts; auto: found out by reading it.

        Raises:
            ModelError: a template has a syntax error, or cannot be compiled within `seconds`.
        """
        sources = {"default": source} if isinstance(source, str) else dict(source)
        start = {
            "sources": sources,
            "special_tokens": dict(special_tokens),
            "seconds": seconds,
            "content_format": content_format,
        }
        self._processes = LinePool(_WORKER, start, seconds + _GRACE_SECONDS)
        self._threads = ThreadPoolExecutor(RENDERERS, thread_name_prefix="chat template")
        self._turns = Turns(self._run, RENDERERS, _MOST_WAITING, _MOST_WAITING)
        self._turns_of_long = Turns(self._run_long, 1, _MOST_WAITING, _MOST_WAITING)
        self.source = "\n".join(sources.values())
        self.knows_developer_role = "developer" in self.source
        reads = _names_read(self._processes)
        self.knows_tools = "tools" in reads
        self.variables = frozenset(reads) - RESERVED - set(special_tokens)

    async def in_turn(self, caller: bytes, length: int, render: Callable[[], str]) -> str:
        """Run what renders with this template beside the event loop, in threads that nothing else waits for.

        Callers take turns; chats of long texts, of `length` characters together, take one of the threads at most.
        """
        chat = _Chat(caller, render)
        return await (self._turns_of_long if length > SHORT_TEXT else self._turns).result(chat, caller)

    async def _run(self, chat: "_Chat") -> str:
        return await asyncio.get_running_loop().run_in_executor(self._threads, chat.render)

    async def _run_long(self, chat: "_Chat") -> str:
        return await self._turns.result(chat, chat.caller)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] = _NO_VARIABLES,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
    ) -> str:
        """The prompt as transformers renders it: up to where the assistant's answer begins, or into its last message.

        Raises:
            RequestError: the template refuses these messages, takes too long, or needs too much memory; it does not
                read one of the variables; the last message cannot be continued. 503: it was not rendered, by no fault
                of theirs.
        """
        self.check_variables(variables)
        if continue_final_message and add_generation_prompt:
            raise RequestError(
                "continue_final_message: it needs add_generation_prompt: false, which begins no new message",
                param="continue_final_message",
            )
        chat = {
            "messages": messages,
            "tools": tools,
            "variables": dict(variables),
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
        }
        try:
            reply = self._processes.ask(chat)
        except Stopped as error:
            if not error.by_question:
                raise RequestError(
                    f"the chat could not be rendered now, try again: {error}",
                    code="unavailable",
                    status=HTTPStatus.SERVICE_UNAVAILABLE,
                    type="server_error",
                ) from error
            reply = {"refused": str(error)}
        if "text" in reply:
            return str(reply["text"])
        if "cannot_continue" in reply:
            reason = reply["cannot_continue"]
            raise RequestError(f"continue_final_message: {reason}", param="continue_final_message")
        reason = reply["refused"]
        raise RequestError(f"the model's chat template refuses these messages: {reason}", param="messages")

    def check_variables(self, variables: Mapping[str, Any]) -> None:
        """Raises RequestError where one of them is not on the list of what a request may set."""
        for name in variables:
            if name not in self.variables:
                allowed = ", ".join(sorted(self.variables)) or "none"
                raise RequestError(
                    f"chat_template_kwargs.{name}: this model's chat template has no such variable that a request may "
                    f"set; it has: {allowed}",
                    param=f"chat_template_kwargs.{name}",
                )

    def close(self) -> None:
        """End the processes, also those that are busy."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._processes.close()


def _names_read(processes: LinePool) -> list[str]:
    """The names that the template reads, once a process has compiled it."""
    try:
        reply = processes.begin()
    except Stopped as error:
        raise ModelError(f"the model's chat template cannot be compiled: {error}") from error
    if "invalid" in reply:
        processes.close()
        raise ModelError(f"the model's chat template is not valid Jinja: {reply['invalid']}")
    reads: list[str] = reply["reads"]
    return reads
