"""How many files the process may have open: each connection is one, and shells allow few."""

import logging
import resource
from typing import Final

log = logging.getLogger(__name__)

OTHERS: Final = 64  # descriptors that are no client's: sockets of our own, pipes, files of the model
_MOST: Final = 2**20  # where the system sets no bound


def raise_limit() -> int:
    """Raise the limit as far as this process may; returns what it is then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST if hard == resource.RLIM_INFINITY else hard
    if soft == resource.RLIM_INFINITY:
        return _MOST
    if soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError) as error:  # some systems allow less than they say
            log.debug("the limit of open files stays at %d: %s", soft, error)
            return soft
    return max(soft, wanted)


def check_limit(requests: int) -> None:
    """Warn if the limit does not suffice for so many open requests."""
    limit = raise_limit()
    if limit < requests + OTHERS:
        log.warning(
            "this process may have %d files open, and so about %d connections, but --max-num-seqs and "
            "--max-queued-requests allow %d requests: further clients will not be let in; raise the hard limit "
            "(ulimit -Hn, LimitNOFILE=) or lower those two",
            limit,
            max(0, limit - OTHERS),
            requests,
        )
