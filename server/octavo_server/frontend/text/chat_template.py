"""A model's chat template, rendered by a process that can be killed: see `template_worker.py`.

There is one from the start on, and a second while the first is busy, so that messages that make a template slow hold
back one other chat at a time. Short chats are sent there by the event loop, others by threads.
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any, Final, Literal, TypeAlias, TypedDict, Unpack

from octavo_server.errors import ModelError, RequestError
from octavo_server.frontend.text.line_exchange import LineExchange
from octavo_server.frontend.text.line_process import LinePool, LineProcess, Stopped, reply_of
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
_WORKER: Final = "octavo_server.frontend.text.template_worker"
_GRACE_SECONDS: Final = 15.0  # beyond the CPU time after which the process ends itself: where the machine is busy
READ_HERE_BYTES: Final = 64 * 1024  # of an answer that the event loop reads: a fraction of a millisecond


class How(TypedDict, total=False):
    """How a chat is rendered, where not as usual: without tools and variables, up to where an answer begins."""

    tools: Sequence[Mapping[str, Any]] | None
    variables: Mapping[str, Any]
    add_generation_prompt: bool
    continue_final_message: bool


@dataclass(frozen=True, slots=True, eq=False)
class _Chat:
    """One that waits to be rendered; no two are the same."""

    caller: bytes
    render: Callable[[], str]
    question: Callable[[], bytes] | None


_Found: TypeAlias = str | bytes | Stopped  # a text, the answer that holds it, or why there is none


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
        self._turns: Turns[_Chat, _Found] = Turns(self._run, RENDERERS, _MOST_WAITING, _MOST_WAITING)
        self._turns_of_long: Turns[_Chat, _Found] = Turns(self._run_long, 1, _MOST_WAITING, _MOST_WAITING)
        self.source = "\n".join(sources.values())
        self.knows_developer_role = "developer" in self.source
        reads = _names_read(self._processes)
        self.knows_tools = "tools" in reads
        self.variables = frozenset(reads) - RESERVED - set(special_tokens)

    async def in_turn(
        self, caller: bytes, length: int, render: Callable[[], str], question: Callable[[], bytes] | None = None
    ) -> str:
        """Run what renders with this template beside the event loop, in threads that nothing else waits for.

        Callers take turns; chats of long texts, of `length` characters together, take one of the threads at most.
        question: makes what `render` asks the process, in a moment; then no thread is needed.

        Raises:
            RequestError: as `render` does.
        """
        chat = _Chat(caller, render, question)
        found = await (self._turns_of_long if length > SHORT_TEXT else self._turns).result(chat, caller)
        if isinstance(found, Stopped):
            return _refused_or_failed(found)
        if isinstance(found, str):
            return found
        if len(found) <= READ_HERE_BYTES:
            return _text_of(reply_of(found))
        return await asyncio.get_running_loop().run_in_executor(self._threads, lambda: _text_of(reply_of(found)))

    def _run(self, chat: _Chat) -> "asyncio.Future[_Found]":
        """The text, or the answer that holds it."""
        line = None if chat.question is None else chat.question()
        process = None if line is None else self._processes.idle()
        if process is None or line is None:
            return asyncio.get_running_loop().run_in_executor(self._threads, chat.render)
        return self._exchanged(process, line)

    def _exchanged(self, process: LineProcess, line: bytes) -> "asyncio.Future[_Found]":
        loop = asyncio.get_running_loop()
        found: asyncio.Future[_Found] = loop.create_future()

        def done(answer: bytes, *, late: bool) -> None:
            if answer:
                self._processes.give_back(process)
                found.set_result(answer)
                return
            with contextlib.suppress(RuntimeError):  # the threads are closed, and nobody waits any more
                ended = loop.run_in_executor(self._threads, partial(process.stopped, late=late))
                ended.add_done_callback(lambda ended: found.set_result(ended.result()))

        LineExchange(process, line, self._processes.patience, done)
        return found

    async def _run_long(self, chat: _Chat) -> _Found:
        return await self._turns.result(chat, chat.caller)

    def render(self, messages: Sequence[Mapping[str, Any]], **how: Unpack[How]) -> str:
        """The prompt as transformers renders it: up to where the assistant's answer begins, or into its last message.

        Raises:
            RequestError: the template refuses these messages, takes too long, or needs too much memory; it does not
                read one of the variables; the last message cannot be continued. 503: it was not rendered, by no fault
                of theirs.
        """
        return self.asked(self.question(messages, **how))

    def asked(self, question: Mapping[str, Any]) -> str:
        """What comes of a question; raises as `render` does."""
        try:
            reply = self._processes.ask(question)
        except Stopped as error:
            return _refused_or_failed(error)
        return _text_of(reply)

    def question(self, messages: Sequence[Mapping[str, Any]], **how: Unpack[How]) -> dict[str, Any]:
        """What a process is asked to render.

        Raises:
            RequestError: the template does not read one of the variables; a message is begun and continued.
        """
        chat = {"tools": None, "variables": {}, "add_generation_prompt": True, "continue_final_message": False, **how}
        self.check_variables(how.get("variables", {}))
        if chat["continue_final_message"] and chat["add_generation_prompt"]:
            raise RequestError(
                "continue_final_message: it needs add_generation_prompt: false, which begins no new message",
                param="continue_final_message",
            )
        return {"messages": messages, **chat}

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


def _text_of(reply: Mapping[str, Any]) -> str:
    """The prompt. Raises RequestError where there is none."""
    if "text" in reply:
        return str(reply["text"])
    if "cannot_continue" in reply:
        reason = reply["cannot_continue"]
        raise RequestError(f"continue_final_message: {reason}", param="continue_final_message")
    reason = reply["refused"]
    raise RequestError(f"the model's chat template refuses these messages: {reason}", param="messages")


def _refused_or_failed(error: Stopped) -> str:
    """Raises RequestError: whose fault it was that nothing was rendered."""
    if error.by_question:
        return _text_of({"refused": str(error)})
    raise RequestError(
        f"the chat could not be rendered now, try again: {error}",
        code="unavailable",
        status=HTTPStatus.SERVICE_UNAVAILABLE,
        type="server_error",
    ) from error


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
