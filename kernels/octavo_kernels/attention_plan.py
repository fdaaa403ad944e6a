"""Plans the reference attention of a step, once for all layers: which tiles of keys are read, in which batches."""

from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F

from octavo_kernels.metadata import AttentionMetadata

ROW_TILE: Final = 8
KEY_TILE: Final = 64
# Elements of working memory: of K gathered at once, and of scores held at once (unless one row needs more).
GATHER_ELEMENTS: Final = 1 << 19
SCORE_ELEMENTS: Final = 1 << 20
_POSITIONS_AT_ONCE: Final = 256


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """Sizes that a plan depends on."""

    page_size: int
    kv_heads: int
    head_dim: int
    group: int  # query heads for each key head
    window: int | None

    @property
    def pages_per_tile(self) -> int:
        return max(1, KEY_TILE // self.page_size)

    @property
    def tile(self) -> int:
        """Tokens in a tile of keys."""
        return self.pages_per_tile * self.page_size

    @property
    def rows(self) -> int:
        """Rows of every product: the query heads of one key head, filled up."""
        return -(-self.group // ROW_TILE) * ROW_TILE

    @property
    def positions(self) -> int:
        """Positions of a chunk whose query heads fit into the rows of one product."""
        return self.rows // self.group

    def first_visible(self, position: int) -> int:
        """The first position that the token at `position` sees."""
        return 0 if self.window is None else max(0, position - self.window + 1)


@dataclass(frozen=True, slots=True)
class KeyTiles:
    """Some tiles of keys, to be gathered together.

    What is masked must be finite all the same, as 0 · NaN is NaN. So only pages with a visible token are read:

    pages: [n, kv_heads, pages per tile] int64, page · kv_heads + head: each page of a head lies together in the cache.
        Where a page holds no visible token, one of the tile that does stands in.
    stale: [m] int64, rows of the gathered [n · kv_heads · tile, d] that come from hidden tokens of these pages. They
        may hold anything, and are overwritten with zeros.
    """

    pages: torch.Tensor
    stale: torch.Tensor


@dataclass(frozen=True, slots=True)
class DecodePiece:
    """Tiles start to end of a DecodePlan. request: [n] int64, index into the plan's rows. bias: [n, 1, 1, tile]."""

    start: int
    end: int
    request: torch.Tensor
    keys: KeyTiles
    bias: torch.Tensor  # 0 where visible, else -∞


@dataclass(frozen=True, slots=True)
class DecodePlan:
    """Requests with one token in the step, those with the most tiles first, so that those which have a k-th tile are
    always the first ones. Tiles are numbered by k, then by request."""

    rows: torch.Tensor  # [n] int64, rows of q
    spans: list[tuple[int, int]]  # for each k: the number of the first k-th tile, and how many there are
    pieces: list[DecodePiece]


@dataclass(frozen=True, slots=True)
class ChunkPiece:
    """Consecutive positions of one request's chunk, and the tiles of keys that they see."""

    row: int  # of q, of the first position
    position: int  # the first
    count: int
    first_tile: int
    tiles: list[KeyTiles]


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """All the work of a step."""

    decode: list[DecodePlan]
    chunks: list[ChunkPiece]


def plan_attention(metadata: AttentionMetadata, shape: AttentionShape) -> AttentionPlan:
    """Requests with one token go to decode plans, those with more are cut into pieces of a chunk."""
    starts = metadata.query_start.tolist()
    contexts = metadata.context_lens.tolist()
    tables = metadata.block_tables.long()
    tables = F.pad(tables, (0, -tables.shape[1] % shape.pages_per_tile))
    pages = tables.view(len(tables), -1, shape.pages_per_tile)
    single, chunks = [], []
    for request, context in enumerate(contexts):
        count = starts[request + 1] - starts[request]
        if count == 1:
            single.append(request)
        elif count > 1:
            chunks += _chunk_pieces(starts[request], count, context, pages[request], shape)
    decode = [_decode_plan(requests, metadata, pages, shape) for requests in _groups(single, contexts, shape)]
    return AttentionPlan(decode, chunks)


def _groups(requests: list[int], contexts: list[int], shape: AttentionShape) -> list[list[int]]:
    """Requests whose scores fit into the working memory together; longest first."""
    per_token = shape.kv_heads * shape.rows
    groups: list[list[int]] = []
    room = 0
    for request in sorted(requests, key=lambda r: contexts[r], reverse=True):
        first = shape.first_visible(contexts[request] - 1)
        need = (contexts[request] - first + 2 * shape.tile) * per_token
        if need > room:
            groups.append([])
            room = max(SCORE_ELEMENTS, need)
        groups[-1].append(request)
        room -= need
    return groups


def _decode_plan(
    requests: list[int], metadata: AttentionMetadata, pages: torch.Tensor, shape: AttentionShape
) -> DecodePlan:
    device = pages.device
    request = torch.tensor(requests, device=device)
    context = metadata.context_lens.long()[request]
    first = torch.zeros_like(context) if shape.window is None else (context - shape.window).clamp_(min=0)
    first_tile = first // shape.tile
    counts = (context + shape.tile - 1) // shape.tile - first_tile
    order = torch.argsort(counts, descending=True, stable=True)  # a window makes lengths alike, not tiles
    request, context, first, first_tile = (x[order] for x in (request, context, first, first_tile))
    per_k = torch.arange(int(counts.max()), device=device).unsqueeze(1) < counts[order]
    kth, row = per_k.nonzero(as_tuple=True)
    spans, total = [], 0
    for n in per_k.sum(1).tolist():
        spans.append((total, n))
        total += n
    tile = first_tile[row] + kth
    hidden = _hidden_keys(tile, first[row], context[row], shape)
    tile_pages = pages[request[row], tile]
    step = max(1, GATHER_ELEMENTS // (shape.kv_heads * shape.tile * shape.head_dim))
    pieces = []
    for start in range(0, total, step):
        part = slice(start, min(start + step, total))
        bias = torch.zeros(hidden[part].shape, device=device).masked_fill_(hidden[part], -torch.inf)
        keys = _key_tiles(tile_pages[part], hidden[part], shape)
        pieces.append(DecodePiece(start, part.stop, row[part], keys, bias[:, None, None]))
    return DecodePlan(metadata.query_start.long()[request], spans, pieces)


def _chunk_pieces(row: int, count: int, context: int, pages: torch.Tensor, shape: AttentionShape) -> list[ChunkPiece]:
    """Cuts a chunk so that the scores of a piece stay within the working memory."""
    per_position = shape.kv_heads * shape.rows // shape.positions * context
    size = max(shape.positions, min(_POSITIONS_AT_ONCE, SCORE_ELEMENTS // per_position))
    pieces = []
    for offset in range(0, count, size):
        length = min(size, count - offset)
        position = context - count + offset
        first = shape.first_visible(position)
        tile = torch.arange(first // shape.tile, -(-(position + length) // shape.tile), device=pages.device)
        hidden = _hidden_keys(tile, torch.tensor(first), torch.tensor(context), shape)
        tiles = [
            _key_tiles(pages[t : t + 1], mask, shape) for t, mask in zip(tile.tolist(), hidden[:, None], strict=True)
        ]
        pieces.append(ChunkPiece(row + offset, position, length, int(tile[0]), tiles))
    return pieces


def _hidden_keys(tile: torch.Tensor, first: torch.Tensor, end: torch.Tensor, shape: AttentionShape) -> torch.Tensor:
    """[n, tile] bool: which tokens of the tiles with these numbers ([n]) are outside of positions first to end."""
    position = (tile * shape.tile).unsqueeze(1) + torch.arange(shape.tile, device=tile.device)
    return (position < first.to(tile.device).unsqueeze(-1)) | (position >= end.to(tile.device).unsqueeze(-1))


def _key_tiles(pages: torch.Tensor, hidden: torch.Tensor, shape: AttentionShape) -> KeyTiles:
    """pages: [n, pages per tile]; hidden: [n, tile]; each tile has a visible token."""
    by_page = hidden.view(len(pages), shape.pages_per_tile, shape.page_size)
    index = torch.arange(shape.pages_per_tile, device=pages.device)
    unused = by_page.all(2)
    source = torch.where(unused, (~unused).int().argmax(1, keepdim=True), index)  # which page of the tile to show
    shown = by_page.gather(1, source.unsqueeze(2).expand_as(by_page)).view(len(pages), 1, shape.tile)
    stale = shown.expand(-1, shape.kv_heads, -1).flatten().nonzero().squeeze(1)
    head = torch.arange(shape.kv_heads, device=pages.device).unsqueeze(1)
    return KeyTiles(pages.gather(1, source).unsqueeze(1) * shape.kv_heads + head, stale)
