"""Embeddings as clients get them: cut, normalized, and spelled in JSON."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from octavo_server.errors import RequestError

encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Form:
    """What embeddings are to be like: of `dimensions` numbers, of length 1 if `normalized`, in base64 or as numbers."""

    dimensions: int
    normalized: bool
    base64: bool


class Embedding(msgspec.Struct):
    """One of the answer's `data`."""

    index: int
    embedding: list[float] | str
    object: str = "embedding"


def spell(first: int, vectors: Sequence[bytes], form: Form) -> bytes:
    """JSON of some embeddings, with commas between them. Its work grows with them.

    first: the index of the first one. vectors: float32 little-endian each, as the engine gives them.
    """
    import numpy as np

    numbers = np.frombuffer(b"".join(vectors), dtype="<f4").reshape(len(vectors), -1)[:, : form.dimensions]
    if form.normalized:
        # In float64, so that whole vectors and cut ones come out alike; one of zeros stays what it is.
        lengths = np.sqrt(np.square(numbers, dtype=np.float64).sum(axis=1, keepdims=True))
        numbers = (numbers / np.maximum(lengths, np.finfo(np.float64).tiny)).astype("<f4")
    spelled = [base64.b64encode(row.tobytes()).decode() if form.base64 else row.tolist() for row in numbers]
    return b",".join(encode(Embedding(first + at, one)) for at, one in enumerate(spelled))


def dimensions(asked: int | None, whole: int, allowed: tuple[int, ...] | None) -> int:
    """How long embeddings are to be.

    whole: as the model makes them. allowed: what they may be cut to; None: any length.

    Raises:
        RequestError: what is asked for is longer, or means nothing, as the model was not trained for it.
    """
    if asked is None or asked == whole:
        return whole
    if asked > whole:
        raise _refusal(f"this model's embeddings have {whole} dimensions, and {asked} are asked for")
    if allowed is None or asked in allowed:
        return asked
    if allowed:
        raise _refusal(
            f"this model was trained for embeddings of {', '.join(map(str, allowed))} or all {whole} dimensions; "
            "give one of these"
        )
    raise _refusal(
        "embeddings of this model cannot be cut, for all that its config.json says (is_matryoshka, "
        f"matryoshka_dimensions); leave it out or give {whole}. If the model was trained for it, the server's owner "
        "can say so by --matryoshka"
    )


def _refusal(message: str) -> RequestError:
    return RequestError(f"dimensions: {message}", param="dimensions")
