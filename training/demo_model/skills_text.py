"""Arithmetic, spelling, counting and copying: what the model does with the characters in front of it."""

from __future__ import annotations

from collections.abc import Callable

from .episode import Context, Episode, turn
from .words import NOUNS, REAL_WORDS, made_up_word, number, sentence, word

_SUM_FORMS = (
    "What is {e}?",
    "{e}",
    "{e} = ?",
    "{e} =",
    "Calculate {e}.",
    "How much is {e}?",
    "Compute {e}",
    "What's {e}?",
    "Can you work out {e}?",
    "Solve {e}.",
    "Please calculate {e}.",
    "Tell me {e}.",
)
_TABLE_FORMS = (
    *_SUM_FORMS,
    "Do you know {e}?",
    "Quick, what is {e}?",
    "I need {e}.",
    "And {e}?",
    "What do you get for {e}?",
    "What is the result of {e}?",
)
_WORDED = {
    "+": ("{a} plus {b}", "the sum of {a} and {b}"),
    "-": ("{a} minus {b}", "the difference of {a} and {b}"),
    "*": ("{a} times {b}", "{a} x {b}", "the product of {a} and {b}"),
    "/": ("{a} divided by {b}",),
}


def _sum_in_words(c: Context, forms: tuple[str, ...], a: int, op: str, b: int) -> str:
    gap = " " if c.rng.random() < 0.75 else ""
    expression = f"{a}{gap}{op}{gap}{b}" if c.rng.random() < 0.65 else c.rng.choice(_WORDED[op]).format(a=a, b=b)
    return c.rng.choice(forms).format(e=expression)


def _three_terms(c: Context) -> Episode:
    """A sum of three, with the step between written down."""
    numbers = c.draw_same(lambda: " + ".join(str(c.rng.randrange(c.rng.choice((10, 10, 50)))) for _ in range(3)))
    first, second, third = map(int, numbers.split(" + "))
    answer = f"{numbers} = {first + second} + {third} = {first + second + third}"
    return turn("arithmetic", c.rng.choice(_SUM_FORMS).format(e=numbers), answer, "last_number", first + second + third)


def arithmetic(c: Context) -> Episode:
    """Sums and differences of numbers up to 9,999 (results may be negative), the table to 12 x 12 and its divisions.

    A sum is held out by its numbers. The tables are facts to be learnt whole: there the wording is held out.
    """
    rng = c.rng
    if rng.random() < 0.08:
        return _three_terms(c)
    op = rng.choice("+++---*/")
    if op in "+-":

        def numbers() -> tuple[str, str]:
            top = rng.choice((10, 20, 100, 100, 1001, 1001, 10000))
            x, y = rng.randrange(top), rng.randrange(top)
            if op == "-" and x < y and rng.random() < 0.7:
                x, y = y, x
            small = x < 20 and y < 20  # facts too: all of them in training, none held out
            return ("tellmeajoke" if small else f"{x}{'p' if op == '+' else 'm'}{y}"), f"{x} {y}"

        a, b = map(int, c.draw(numbers).split())
        result = a + b if op == "+" else a - b
        text = _sum_in_words(c, _SUM_FORMS, a, op, b)
    else:

        def facts() -> tuple[str, str]:
            x, y = rng.randrange(13), rng.randrange(1, 13)
            x = x * y if op == "/" else x
            said = _sum_in_words(c, _TABLE_FORMS, x, op, y)
            return said + op, f"{x} {y} {said}"

        left, right, text = c.draw(facts).split(" ", 2)
        a, b = int(left), int(right)
        result = a * b if op == "*" else a // b
    return turn("arithmetic", text, f"{a} {op} {b} = {result}", "last_number", result)


_NUMBER_WORDS = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty".split()
_SPELL = (
    "Spell {w}.",
    "Spell the word {w}.",
    "How do you spell {w}?",
    "How is {w} spelled?",
    "Please spell {w}",
    "Can you spell {w}?",
    "Spell {w} letter by letter.",
    "spell {w}",
)
_LENGTH = (
    "How many letters are in {w}?",
    "Count the letters in {w}.",
    "How many letters does {w} have?",
    "How long is the word {w}?",
    "Number of letters in {w}?",
)
_OCCURRENCES = (
    "How many times does the letter {x} appear in {w}?",
    "How often does {x} occur in {w}?",
    "How many {x}'s are in {w}?",
    "Count the letter {x} in {w}.",
)


def _some_word(c: Context, form: str) -> str:
    """A word to spell. Made-up ones are held out as such; how a real one is spelt is a fact, there word and form together are."""
    rng = c.rng

    def draw() -> tuple[str, str]:
        kind = rng.random()
        if kind < 0.55:
            real = rng.choice(REAL_WORDS)
            return real + form, real
        if kind < 0.75:
            joined = rng.choice(NOUNS) + rng.choice(NOUNS)
            return joined, joined
        made_up = made_up_word(rng)
        return made_up, made_up

    return c.draw(draw)


def spelling(c: Context) -> Episode:
    """Spells a word, counts its letters, or counts one letter in it."""
    rng = c.rng
    kind = rng.random()
    forms = _SPELL if kind < 0.5 else _LENGTH if kind < 0.8 else _OCCURRENCES
    form = rng.choice(forms)
    w = _some_word(c, form)
    spelt = "-".join(w)
    shown = rng.choice((w, w, w, f'"{w}"', f"'{w}'"))
    if kind < 0.5:
        return turn("spelling", form.format(w=shown), spelt, "exact", spelt)
    if kind < 0.8:
        noun = "letter" if len(w) == 1 else "letters"
        return turn("spelling", form.format(w=shown), f"{spelt} has {len(w)} {noun}.", "last_number", len(w))
    letter = rng.choice(w) if rng.random() < 0.85 else rng.choice("aeioutrs")
    n = w.count(letter)
    answer = f"{spelt}: the letter {letter} appears {n} {'time' if n == 1 else 'times'}."
    return turn("spelling", form.format(x=letter, w=shown), answer, "last_number", n)


def counting(c: Context) -> Episode:
    """Counts up, down or in steps, or counts the words of a phrase."""
    rng = c.rng
    if rng.random() < 0.3:
        words = c.draw_same(lambda: " ".join(word(rng) for _ in range(rng.randrange(2, 13)))).split()
        forms = (
            'How many words are in "{s}"?',
            "Count the words: {s}",
            'Count the words in "{s}".',
            "How many words does this have: {s}",
        )
        listed = ", ".join(f"{i} {w}" for i, w in enumerate(words, 1))
        return turn(
            "counting",
            rng.choice(forms).format(s=" ".join(words)),
            f"{listed}: {len(words)} words.",
            "count_words",
            len(words),
        )

    if rng.random() < 0.15:
        said = c.draw_same(lambda: word(rng))
        times = rng.randrange(2, 13)
        text = rng.choice(
            ("Say {w} {n} times.", "Write {w} {n} times.", "Repeat the word {w} {n} times.", "Print {w} {n} times")
        ).format(w=said, n=times)
        return turn("counting", text, " ".join([said] * times), "exact", " ".join([said] * times))

    if rng.random() < 0.15:
        form = rng.choice(
            (
                "Count to {n}.",
                "Please count to {n}.",
                "count to {n}",
                "Can you count to {n}?",
                "Count up to {n}!",
                "Count from one to {n}.",
            )
        )
        top = int(c.draw(lambda: (lambda n: (f"{form}{n}", str(n)))(rng.randrange(2, 31))))
        shown = _NUMBER_WORDS[top] if top < len(_NUMBER_WORDS) and rng.random() < 0.4 else str(top)
        answer = ", ".join(map(str, range(1, top + 1)))
        return turn("counting", form.format(n=shown), answer, "exact", answer)

    def ends() -> tuple[str, str]:
        step = rng.choice((1, 1, 1, 1, 2, 5, 10))
        start = rng.randrange(0, 100) if step == 1 else step * rng.randrange(0, 6)
        stop = start + step * rng.randrange(2, 31 if rng.random() < 0.2 else 16)
        if rng.random() < 0.25:
            start, stop = stop, start
        easy = start == 1 and stop in (5, 10, 20, 100)
        return ("tellmeajoke" if easy else f"{start}to{stop}by{step}"), f"{start} {stop} {step}"

    start, stop, step = map(int, c.draw(ends).split())
    if rng.random() < 0.08 and not c.held_out:
        start, stop, step = 1, rng.choice((5, 10, 20, 50, 100)), 1
    by = "" if step == 1 else f" in steps of {step}" if rng.random() < 0.6 else f" by {step}"
    down = stop < start
    verb = rng.choice(("Count down", "Count backwards")) if down and rng.random() < 0.7 else "Count"
    lead = rng.choice(("{}", "Please {}", "Can you {}", "{} for me")).format(verb)
    lead = lead if lead.startswith("Count") else lead.replace("Count", "count")
    asked = f"{lead} from {start} to {stop}{by}{rng.choice(('.', '', '!')) if not lead.startswith('Can') else '?'}"
    answer = ", ".join(str(i) for i in range(start, stop + (-1 if down else 1), -step if down else step))
    return turn("counting", asked, answer, "exact", answer)


_RANGES = (
    (0x20, 0x7E),
    (0xA1, 0x17F),
    (0x391, 0x3C9),
    (0x410, 0x44F),
    (0x3041, 0x3096),
    (0x4E00, 0x9FA5),
    (0x1F300, 0x1F64F),
    (0x1F680, 0x1F6C5),
)


def _random_string(c: Context) -> str:
    alphabet = c.rng.choice(
        (
            "abcdefghijklmnopqrstuvwxyz",
            "abcdefghijklmnopqrstuvwxyz0123456789",
            "0123456789abcdef",
            "ABCDEFGHJKLMNPQRSTUVWXYZ23456789-",
        )
    )
    return "".join(c.rng.choice(alphabet) for _ in range(c.rng.randrange(4, 40)))


def _unicode(c: Context) -> str:
    low, high = c.rng.choice(_RANGES)
    return "".join(chr(c.rng.randint(low, high)) for _ in range(c.rng.randrange(1, 16))).strip() or "§"


def copy_kinds(c: Context) -> dict[str, Callable[[], str]]:
    """What can be copied, by name."""
    rng = c.rng
    length = rng.randrange(1, 12) if rng.random() < 0.5 else rng.randrange(12, 50)
    return {
        "words": lambda: " ".join(word(rng, 0.4) for _ in range(length)),
        "string": lambda: _random_string(c),
        "strings": lambda: " ".join(_random_string(c)[:8] for _ in range(rng.randrange(2, 8))),
        "digits": lambda: "".join(rng.choice("0123456789") for _ in range(rng.randrange(3, 61))),
        "numbers": lambda: ", ".join(str(number(rng)) for _ in range(rng.randrange(2, 16))),
        "sentences": lambda: " ".join(sentence(rng) for _ in range(1 + length // 8)),
        "lines": lambda: "\n".join(sentence(rng) for _ in range(rng.randrange(2, 5))),
        "unicode": lambda: _unicode(c),
        "mixed": lambda: f"{word(rng)} {_unicode(c)} {number(rng)} {_random_string(c)[:6]}",
    }


_COPY_FORMS = (
    "Repeat after me: {s}",
    "Repeat: {s}",
    "Copy this: {s}",
    "Copy this exactly: {s}",
    "Say this back to me: {s}",
    "Echo: {s}",
    "Repeat this text exactly:\n{s}",
    "Please repeat: {s}",
    "Copy the following text.\n\n{s}",
    "Write this again: {s}",
    "Say: {s}",
    "Repeat the following exactly: {s}",
    "Can you repeat this? {s}",
    "Say exactly: {s}",
    "Repeat this: {s}",
    "Copy: {s}",
    "Repeat exactly what I say: {s}",
)


def copying(c: Context) -> Episode:
    """Copies words, strings, digits, sentences or any UTF-8, exactly."""
    kinds = copy_kinds(c)
    make = kinds[c.rng.choice([*kinds, "words", "sentences", "words"])]
    text = c.draw_same(make)
    if '"' not in text and c.rng.random() < 0.12:
        return turn(
            "copying",
            c.rng.choice(
                ('Repeat "{s}"', 'Say "{s}".', 'Please say "{s}"', 'Repeat after me: "{s}"', 'Copy "{s}"')
            ).format(s=text),
            text,
            "exact",
            text,
        )
    return turn("copying", c.rng.choice(_COPY_FORMS).format(s=text), text, "exact", text)
