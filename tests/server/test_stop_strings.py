"""Stop strings against an oracle that looks at one character at a time."""

from hypothesis import example, given
from hypothesis import strategies as st

from octavo_server.frontend.text.stop_strings import StopStrings

PIECES = st.lists(st.text(alphabet="abc\n", max_size=6), max_size=12)
STOPS = st.lists(st.text(alphabet="abc\n", min_size=1, max_size=4), max_size=4)


def oracle(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The text and the stop string that ends it, if one does."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            longest = max(ending, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(pieces=PIECES, stops=STOPS)
@example(pieces=["ab", "cab"], stops=["bca", "abc"])
@example(pieces=["aa", "ab"], stops=["aab"])
def test_the_answer_ends_before_the_first_stop_string(pieces: list[str], stops: list[str]) -> None:
    checker = StopStrings(stops)
    shown = "".join(checker.add(piece) for piece in pieces)
    shown += checker.end()
    assert (shown, checker.found) == oracle("".join(pieces), stops)


@given(pieces=PIECES, stops=STOPS)
def test_nothing_is_shown_that_a_later_piece_could_take_back(pieces: list[str], stops: list[str]) -> None:
    checker, shown, text = StopStrings(stops), "", ""
    for piece in pieces:
        shown, text = shown + checker.add(piece), text + piece
        for stop in stops:
            assert oracle(text + stop, stops)[0].startswith(shown)


@given(pieces=PIECES, stops=STOPS, first=st.integers(0, 12))
@example(pieces=["ab", "c"], stops=["b", "abc"], first=1)
@example(pieces=["aab", "aab"], stops=["ab"], first=1)
def test_stop_strings_may_be_in_the_text_and_need_not_count_from_the_beginning(
    pieces: list[str], stops: list[str], first: int
) -> None:
    """Those that are complete before the piece `first` end nothing; a character of a later piece may complete one."""
    kept = StopStrings(stops, included=True)
    shown = "".join(kept.add(piece, may_end=index >= first) for index, piece in enumerate(pieces)) + kept.end()
    text, free = "".join(pieces), len("".join(pieces[:first]))
    for end in range(free + 1, len(text) + 1):
        if found := [stop for stop in stops if text[:end].endswith(stop)]:
            assert (shown, kept.found) == (text[:end], max(found, key=len))
            return
    assert (shown, kept.found) == (text, None)


@given(pieces=PIECES)
def test_without_stop_strings_text_passes_at_once(pieces: list[str]) -> None:
    checker = StopStrings([])
    assert [checker.add(piece) for piece in pieces] == pieces
