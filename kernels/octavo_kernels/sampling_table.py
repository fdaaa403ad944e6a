"""What the sampling kernels must know of a request: a row of one table on the device, which the host fills once.

A row is `COLUMNS` words of 8 bytes; the last ones hold float32 numbers, two a word. The kernels themselves write
POSITION and LENGTH as tokens are drawn, so that nothing has to go up from the host between one token and the next.
"""

from typing import Final

import triton.language as tl

COLUMNS: Final = 16
COLUMN_BYTES: Final = 8

# int64
STREAM: Final = tl.constexpr(0)  # opens the stream of the positions' keys, see `sampling_noise`
POSITION: Final = tl.constexpr(1)  # where the next token will stand in its sequence
TOP_K: Final = tl.constexpr(2)  # 0: off
FLAGS: Final = tl.constexpr(3)
MIN_UNTIL: Final = tl.constexpr(4)  # before this position the model's ends are excluded
ENTRIES: Final = tl.constexpr(5)  # address of the entries, see `logit_entries`
CAPACITY: Final = tl.constexpr(6)
LENGTH: Final = tl.constexpr(7)
BIASED: Final = tl.constexpr(8)
WORDS: Final = tl.constexpr(9)  # address of the bad words of several tokens
NUM_WORDS: Final = tl.constexpr(10)
WORD_LENGTH: Final = tl.constexpr(11)

# float32, by their place in a row of twice as many
INVERSE_TEMPERATURE: Final = tl.constexpr(24)  # 0: greedy
TOP_P: Final = tl.constexpr(25)  # 1 or more: off
MIN_P: Final = tl.constexpr(26)  # its logarithm; -inf: off
REPETITION: Final = tl.constexpr(27)
PRESENCE: Final = tl.constexpr(28)
FREQUENCY: Final = tl.constexpr(29)

# FLAGS
FEW: Final = tl.constexpr(1)  # top-k of at most `few_tokens.MOST_FEW`: chosen among the likeliest tokens of groups
CUT: Final = tl.constexpr(2)  # min-p, top-p or a larger top-k: passes over the row
ADJUSTED: Final = tl.constexpr(4)  # has entries
COUNTED: Final = tl.constexpr(8)  # its tokens are counted in the entries
WORDED: Final = tl.constexpr(16)  # has bad words of several tokens
SAVED: Final = tl.constexpr(32)  # what the entries change is put back, for log-probabilities
