"""A request in the simulated fleet."""


class Job:
    """A request on its way: what it asks (`output` in tokens), and how far it is.

    `computed`: tokens of it in the KV cache by prefill; `first`: when its first token was there, seconds, -1 before.
    `length`: tokens to compute before it (goes on to) decode: its prompt, and after a loss those of its answer, too.
    """

    __slots__ = (
        "arrival",
        "blocks",
        "cached",
        "computed",
        "epoch",
        "first",
        "handed",
        "length",
        "output",
        "prompt",
        "remaining",
        "start_step",
        "weight",
    )

    def __init__(self, arrival: float, prompt: int, output: int, blocks: tuple[int, ...] = ()) -> None:
        self.arrival = arrival
        self.prompt = self.length = prompt
        self.output = self.remaining = output
        self.blocks = blocks
        self.first = self.handed = -1.0
        self.cached = self.computed = self.start_step = self.epoch = 0
        self.weight = 0
