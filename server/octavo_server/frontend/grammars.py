"""Grammars, compiled beside the event loop by a process that can be killed: see `text/grammar_worker.py`."""

from octavo_server.frontend.structured import GrammarSource


class Grammars:
    """Compiles grammars to see whether they can be served, and remembers those that can."""

    async def compile(self, source: GrammarSource) -> str:
        """The text for `SamplingParams.grammar`.

        Raises:
            RequestError: the grammar is wrong, or too much work to compile; `source.param` is the field.
        """
        raise NotImplementedError
