"""Token ids to text while they come, one at a time, without ever showing a part of a character."""

import codecs

from octavo_server.frontend.text.tokenizer import TextTokenizer


class Detokenizer:
    """Turns a growing sequence of tokens into text.

    The pieces given out, joined, are the text of the sequence, however it was cut. Special tokens are left out unless
    they are wanted. The bytes of a character wait until it is whole; one that the end cuts off is never shown. Bytes
    that can belong to no character become U+FFFD, one for each maximal part, as Unicode recommends.
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        *,
        at_start: bool = False,
        skip_special: bool = True,
        kept: frozenset[int] = frozenset(),
    ) -> None:
        """Begin; `at_start` where nothing precedes the tokens (else, as in an answer, a prompt does).

        kept: special tokens that are not left out.
        """
        self._left_out = tokenizer.left_out(kept) if skip_special else frozenset()
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._at_start = at_start
        self._whole = tokenizer.whole_texts(self._left_out)
        self._between = not at_start  # between two characters: what the token stands for alone is what it adds

    def add(self, token_id: int) -> str:
        """The text that this token completes; may be empty."""
        if self._between and (text := self._whole[token_id]) is not None:
            return text
        text = self._decode(token_id)
        self._between = not self._at_start and not self._decoder.getstate()[0]
        return text

    def _decode(self, token_id: int) -> str:
        data = self._tokenizer.token_bytes(token_id)
        if token_id in self._left_out or not data:
            return ""  # what has no text opens none: the next one may still be the first
        if self._at_start:
            self._at_start = False
            data = self._tokenizer.first_bytes(token_id)
        return self._decoder.decode(data)
