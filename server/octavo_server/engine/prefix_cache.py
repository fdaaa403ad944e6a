"""What is cached: a tree of pages for each salt, and an index of them by name.

As in RadixAttention (Zheng et al., SGLang, NeurIPS 2024) a prefix is a path from a root; as in vLLM's automatic prefix
caching a page is found by a chained hash. A name only finds a page. What counts is that its parent is the very page
that was matched before it, that its tokens are equal, and that the path begins at the salt's root.
"""

from collections.abc import Iterable

from octavo_server import page_hash
from octavo_server.engine.block_pool import CachedPage


class PrefixIndex:
    """All cached pages, wherever they are. A name stands for one content at a time."""

    def __init__(self) -> None:
        self.pages: dict[bytes, CachedPage] = {}
        self.roots: dict[bytes, CachedPage] = {}  # by salt

    def root(self, salt: bytes) -> CachedPage:
        """Where the sequences of this salt begin."""
        if salt not in self.roots:
            self.roots[salt] = CachedPage(page_hash.root(salt), None, salt)
        return self.roots[salt]

    def match(self, salt: bytes, names: Iterable[bytes]) -> list[CachedPage]:
        """The known pages of these names from a salt's root on. Their tokens are left to compare, all at once."""
        previous, found, get = self.roots.get(salt), [], self.pages.get
        for name in names:
            page = get(name)
            if page is None or page.parent is not previous:
                break
            found.append(page)
            previous = page
        return found

    def child(self, parent: CachedPage, name: bytes, tokens: bytes) -> CachedPage | None:
        """The page with these tokens behind `parent`, a new one if need be; None if the name stands for another."""
        page = self.pages.get(name)
        if page is None:
            page = self.pages[name] = CachedPage(name, parent, tokens, parent.depth + 1)
            parent.refs += 1
        return page if page.parent is parent and page.tokens == tokens else None

    def prune(self, page: CachedPage) -> None:
        """Drops a page that is nowhere and that nothing refers to, and those before it that it alone kept."""
        while page.refs == 0 and page.pins == 0 and page.block is None and page.slot is None:
            if page.parent is None:
                self.roots.pop(page.tokens, None)
                return
            if self.pages.get(page.page_hash) is not page:
                return  # it has been dropped already
            del self.pages[page.page_hash]
            page = page.parent
            page.refs -= 1
