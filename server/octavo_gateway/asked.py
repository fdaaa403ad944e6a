"""What a client asks for: as much of a body as routing and resuming need. Values stay the bytes that they came as."""

import dataclasses
import hashlib
import secrets
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeVar

import msgspec

from octavo_common.errors import RequestError
from octavo_common.prefixes import Prompt, prompt_of

Kind = Literal["chat", "completions", "responses", "embeddings", "tokens"]
ROUTES: Final[dict[str, Kind]] = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
    "/v1/responses": "responses",
    "/v1/responses/input_tokens": "responses",
    "/v1/embeddings": "embeddings",
    "/tokenize": "tokens",
    "/detokenize": "tokens",
}
COUNTING: Final = frozenset(
    {"/tokenize", "/detokenize", "/v1/responses/input_tokens"}
)  # compute nothing, cache nothing
RESUME: Final = "octavo_resume"
_PROMPTS: Final[dict[Kind, tuple[str, ...]]] = {
    "chat": ("tools", "messages"),
    "completions": ("prompt",),
    "responses": ("tools", "instructions", "input"),
    "embeddings": ("input",),
    "tokens": ("messages", "prompt", "tokens"),
}
_NULL: Final = msgspec.Raw(b"null")
_TRUE: Final = msgspec.Raw(b"true")
_encode: Final = msgspec.json.Encoder().encode
_fields: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
T = TypeVar("T")


class _Message(msgspec.Struct):
    role: str
    content: msgspec.Raw = _NULL


_messages: Final = msgspec.json.Decoder(list[_Message])


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


@dataclass(slots=True)
class Asked:
    """A body. `size`: its bytes; `resumable`: one stream of one answer, that can go on elsewhere from its tokens.

    wants_ids, wants_usage: the client asked for token ids, or for a stream's usage, itself; max_tokens: the most that
    an answer may have, where it is said.
    """

    path: str
    kind: Kind
    fields: dict[str, msgspec.Raw]
    model: str
    stream: bool
    prompt: Prompt
    size: int
    choices: int
    wants_ids: bool
    wants_usage: bool
    max_tokens: int | None
    previous: str | None = None
    added: dict[str, msgspec.Raw] = field(default_factory=dict)

    @property
    def counts_tokens(self) -> bool:
        """Whether the tokens of its stream are asked for, too."""
        return self.stream and self.kind in ("chat", "completions")

    @property
    def resumable(self) -> bool:
        """Whether its stream can go on elsewhere."""
        return self.counts_tokens and self.choices == 1

    def body(self, **others: Any) -> bytes:
        """What is sent to a replica, with `others` besides."""
        extra = {name: msgspec.Raw(_encode(value)) for name, value in others.items()}
        return _encode({**self.fields, **self.added, **extra})


def parse(path: str, raw: bytes, *, tenant: str | None) -> Asked:
    """The body of a request to `path`. tenant: whose key it came with, where keys keep cached pages apart.

    Raises:
        RequestError: it is no JSON object, names no model, or holds what only a gateway may say.
    """
    kind = ROUTES[path]
    try:
        fields = _fields.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f"the body must be a JSON object: {error}", code="invalid_json") from error
    if RESUME in fields:
        raise RequestError(f"{RESUME}: only a gateway says it to its replicas", param=RESUME, status=403)
    if "model" not in fields:
        raise RequestError("model: this field is required", param="model")
    model = _value(fields, "model", str)
    if model is None:
        raise RequestError("model: Input should be a valid string", param="model")
    prompts = _count(fields.get("prompt")) if kind == "completions" else 1
    choices = _value(fields, "n", int) or 1 if kind in ("chat", "completions") else 1
    limits = ("max_output_tokens",) if kind == "responses" else ("max_completion_tokens", "max_tokens")
    asked = Asked(
        path=path,
        kind=kind,
        fields=fields,
        model=model,
        stream=kind not in ("embeddings", "tokens") and bool(_value(fields, "stream", bool)),
        prompt=_prompt(kind, fields, tenant),
        size=len(raw),
        choices=max(1, choices) * prompts,
        wants_ids=bool(_value(fields, "return_token_ids", bool)),
        wants_usage=(options := _value(fields, "stream_options", _StreamOptions)) is not None
        and bool(options.include_usage),
        max_tokens=next((most for name in limits if (most := _value(fields, name, int)) is not None), None),
        previous=_value(fields, "previous_response_id", str) if kind == "responses" else None,
    )
    _add(asked, tenant)
    return asked


def _add(asked: Asked, tenant: str | None) -> None:
    """What the gateway asks for besides: the noise's seed and the tokens, to go on from, and a salt for each tenant."""
    if tenant is not None and asked.path not in COUNTING:
        own = _value(asked.fields, "cache_salt", str)
        if own is not None or asked.fields.get("cache_salt", _NULL) == _NULL:
            asked.added["cache_salt"] = msgspec.Raw(_encode(_salt(tenant, own)))
    if asked.kind in ("chat", "completions") and asked.fields.get("seed", _NULL) == _NULL:
        asked.added["seed"] = msgspec.Raw(str(secrets.randbits(62)).encode())
    if asked.counts_tokens and not asked.wants_ids:
        asked.added["return_token_ids"] = _TRUE
    if asked.counts_tokens and not asked.wants_usage:
        given = _value(asked.fields, "stream_options", dict[str, msgspec.Raw])
        if given is not None or asked.fields.get("stream_options", _NULL) == _NULL:
            asked.added["stream_options"] = msgspec.Raw(_encode({**(given or {}), "include_usage": _TRUE}))


def _salt(tenant: str, own: str | None) -> str:
    """A client's own word stays within its tenant: no other one can guess its pages by it."""
    words = f"{len(tenant)}:{tenant}:{'' if own is None else 'own:' + own}"
    return hashlib.blake2b(words.encode("utf-8", "surrogatepass"), digest_size=16, person=b"octavo salt").hexdigest()


def _prompt(kind: Kind, fields: dict[str, msgspec.Raw], tenant: str | None) -> Prompt:
    """Its bytes as they came; of a chat the roles and contents, whatever else and in what order its client writes."""
    salt = (tenant or "").encode() + bytes(fields.get("cache_salt", b""))
    parts = [bytes(fields[name]) for name in _PROMPTS[kind] if name in fields]
    opening = None
    if kind == "chat" and "messages" in fields:
        try:
            messages = _messages.decode(fields["messages"])
        except (msgspec.DecodeError, UnicodeDecodeError):  # its replica will say what is wrong
            messages = []
        if messages:
            pieces = [b"\x01%b\x02%b" % (each.role.encode(), bytes(each.content)) for each in messages]
            first = next((at for at, each in enumerate(messages) if each.role == "user"), 0)
            opening = sum(map(len, [*parts[:-1], *pieces[: first + 1]]))
            parts[-1:] = pieces
    prompt = prompt_of(b"".join(parts), opening=opening, salt=salt)
    ids = sum(map(_token_ids, parts)) if kind in ("completions", "embeddings") else 0
    return dataclasses.replace(prompt, total=ids) if ids else prompt


def _token_ids(part: bytes) -> int:
    """How many token ids a part is; 0 if it is text."""
    return part.count(b",") + 1 if part[:1] == b"[" and part.lstrip(b"[ \n\t\r")[:1].isdigit() else 0


def _count(prompt: msgspec.Raw | None) -> int:
    """How many prompts there are: one, unless it is a list of texts or of lists."""
    if prompt is None or not bytes(prompt).startswith(b"["):
        return 1
    entries = msgspec.json.decode(prompt, type=list[msgspec.Raw])
    return len(entries) if entries and bytes(entries[0])[:1] in (b'"', b"[") else 1


def _value(fields: dict[str, msgspec.Raw], name: str, kind: type[T]) -> T | None:
    """A field, if it is there and of this kind; what is not is refused by the replica, which says it best."""
    if name not in fields:
        return None
    try:
        return msgspec.json.decode(fields[name], type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
