"""Writes a trace for `octavo simulate` with statistics of one's own: `python benchmarks/synthetic_trace.py --help`.

Lengths are lognormal. Arrivals are Poisson with a rate that wanders: an Ornstein-Uhlenbeck process of its logarithm, so
that load rises and falls without a period.
"""

import argparse
import math
import random
import sys


def main() -> None:
    """Print the trace as CSV, in the columns of Azure's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=5.0, help="mean requests a second")
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--prompt", type=float, default=1000.0, help="mean tokens")
    parser.add_argument("--output", type=float, default=200.0, help="mean tokens")
    parser.add_argument("--spread", type=float, default=1.0, help="of the logarithm of lengths")
    parser.add_argument("--swing", type=float, default=0.5, help="standard deviation of the logarithm of the rate")
    parser.add_argument("--memory", type=float, default=600.0, help="seconds in which the rate forgets where it was")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    chance = random.Random(given.seed)
    time, next_step, level = 0.0, 0.0, chance.gauss(0, given.swing)
    print("TIMESTAMP,ContextTokens,GeneratedTokens")
    while time < given.seconds:
        while next_step <= time:  # the rate is constant for ten seconds
            fade = math.exp(-10.0 / given.memory)
            level = fade * level + chance.gauss(0, given.swing * math.sqrt(1 - fade * fade))
            next_step += 10.0
        time += chance.expovariate(given.rate * math.exp(level - given.swing**2 / 2))
        prompt, output = (
            max(1, round(chance.lognormvariate(math.log(mean) - given.spread**2 / 2, given.spread)))
            for mean in (given.prompt, given.output)
        )
        sys.stdout.write(f"{time:.3f},{prompt},{output}\n")


if __name__ == "__main__":
    main()
