"""Attention over a paged KV cache in plain torch: the definition of correct, and what runs on a CPU.

    o = Σⱼ pⱼ vⱼ / Σⱼ pⱼ,   pⱼ = exp(q · kⱼ · scale − maxⱼ(q · kⱼ · scale)),   j over the positions that q may see

**A row's bits depend on nothing but the row** (see `reference`), so that neither chunking nor batching shows:

- keys are taken in tiles of fixed length, counted from position 0, whatever part of them a step needs;
- every product is of one shape: `ROW_TILE` rows (the query heads of one key head, filled up with zeros, or with further
  positions in a chunk) by one tile of keys;
- the maximum is exact in any order; sums go over a tile, then tile by tile in the order of positions. A tile that a
  row does not see adds exact zeros.

Requests with one token in the step (decode) are worked on together, a tile of keys being one matrix product in a batch;
chunks of prompts one after the other. What a step does in each layer is planned once, on the host.
"""

from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F

from octavo_kernels.metadata import AttentionMetadata

ROW_TILE: Final = 8
KEY_TILE: Final = 64
# Working memory: elements of K gathered at once, and scores of a piece of a chunk held at once.
_GATHER_ELEMENTS: Final = 1 << 19
_SCORE_ELEMENTS: Final = 1 << 22


@dataclass(frozen=True, slots=True)
class _Shape:
    """Sizes that the plan depends on."""

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
        """Rows of every product."""
        return -(-self.group // ROW_TILE) * ROW_TILE

    def first_visible(self, position: int) -> int:
        """The first position that the token at `position` sees."""
        return 0 if self.window is None else max(0, position - self.window + 1)


@dataclass(frozen=True, slots=True)
class _Tiles:
    """Some tiles of keys, each with the request that reads it."""

    start: int  # number of the first one, among all of the step
    end: int
    request: torch.Tensor  # [n] int64, index into _DecodePlan.rows
    pages: torch.Tensor  # [n, pages per tile] int64
    partial: torch.Tensor  # [m] int64: those of them that hold keys which must not be seen
    hidden: torch.Tensor  # [m, 1, 1, tile] bool: which


@dataclass(frozen=True, slots=True)
class _DecodePlan:
    """Requests with one token in the step, those with the most tiles first, so that those which have a k-th tile are
    always the first ones. Tiles are numbered by k, then by request."""

    rows: torch.Tensor  # [n] int64, rows of q
    spans: list[tuple[int, int]]  # for each k: the number of the first k-th tile, and how many there are
    pieces: list[_Tiles]


@dataclass(frozen=True, slots=True)
class _Piece:
    """Consecutive positions of one request's chunk."""

    row: int  # of q, of the first
    position: int  # of the first
    count: int
    context: int
    tiles: range
    pages: torch.Tensor  # [tiles of the request, pages per tile] int64


def paged_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    metadata: AttentionMetadata,
    scale: float,
    sliding_window: int | None = None,
) -> torch.Tensor:
    """Causal attention of every row of q over its own request's pages: [T, heads, d] → [T, heads, d].

    k_cache, v_cache: [pages, page size, kv_heads, d], views of any strides, K and V of this step's tokens already in
    them; heads is a multiple of kv_heads. With a sliding window of w tokens, a token sees itself and the w − 1 before
    it. What lies in pages beyond what a row may see has no influence, NaN included. Works in float32 (in float64 if
    that is q's type).
    """
    _, page_size, kv_heads, head_dim = k_cache.shape
    shape = _Shape(page_size, kv_heads, head_dim, q.shape[1] // kv_heads, sliding_window)
    if shape not in metadata.plans:
        metadata.plans[shape] = _plan(metadata, shape)
    decode, chunk_pieces = metadata.plans[shape]
    out = torch.empty_like(q)
    wide = q.to(torch.promote_types(q.dtype, torch.float32)) * scale
    if decode is not None:
        out[decode.rows] = _decode(wide, k_cache, v_cache, decode, shape).to(q.dtype)
    for piece in chunk_pieces:
        out[piece.row : piece.row + piece.count] = _chunk(wide, k_cache, v_cache, piece, shape).to(q.dtype)
    return out


# --- planning ---------------------------------------------------------------------------------------------------------


def _plan(metadata: AttentionMetadata, shape: _Shape) -> tuple[_DecodePlan | None, list[_Piece]]:
    starts = metadata.query_start.tolist()
    contexts = metadata.context_lens.tolist()
    pages = _pages_by_tile(metadata, shape)
    single, chunks = [], []
    for request, context in enumerate(contexts):
        count = starts[request + 1] - starts[request]
        if count == 1:
            single.append(request)
        elif count > 1:
            chunks += _pieces(starts[request], count, context, pages[request], shape)
    return (_plan_decode(single, metadata, pages, shape) if single else None), chunks


def _pages_by_tile(metadata: AttentionMetadata, shape: _Shape) -> torch.Tensor:
    """[R, tiles, pages per tile] int64; page 0 where a request has no page."""
    tables = metadata.block_tables.long()
    tables = F.pad(tables, (0, -tables.shape[1] % shape.pages_per_tile))
    index = torch.arange(tables.shape[1], device=tables.device)
    has_page = index * shape.page_size < metadata.context_lens.unsqueeze(1)
    return tables.masked_fill(~has_page, 0).view(len(tables), -1, shape.pages_per_tile)


def _plan_decode(single: list[int], metadata: AttentionMetadata, pages: torch.Tensor, shape: _Shape) -> _DecodePlan:
    device = pages.device
    requests = torch.tensor(single, device=device)
    contexts = metadata.context_lens.long()[requests]
    oldest = (contexts - shape.window).clamp_(min=0) if shape.window is not None else torch.zeros_like(contexts)
    first_tile = oldest // shape.tile
    counts = (contexts + shape.tile - 1) // shape.tile - first_tile
    order = torch.argsort(counts, descending=True, stable=True)
    requests, contexts, oldest, first_tile, counts = (
        x[order] for x in (requests, contexts, oldest, first_tile, counts)
    )
    has = torch.arange(int(counts[0]), device=device).unsqueeze(1) < counts  # [k, n]
    kth, request = has.nonzero(as_tuple=True)
    per_k = has.sum(1).tolist()
    spans, total = [], 0
    for n in per_k:
        spans.append((total, n))
        total += n
    tile = first_tile[request] + kth
    position = (tile * shape.tile).unsqueeze(1) + torch.arange(shape.tile, device=device)
    hidden = (position >= contexts[request].unsqueeze(1)) | (position < oldest[request].unsqueeze(1))
    tile_pages = pages[requests[request], tile]
    step = max(1, _GATHER_ELEMENTS // (shape.kv_heads * shape.tile * shape.head_dim))
    pieces = []
    for start in range(0, total, step):
        end = min(start + step, total)
        partial = hidden[start:end].any(1).nonzero().squeeze(1)
        mask = hidden[start:end][partial][:, None, None]
        pieces.append(_Tiles(start, end, request[start:end], tile_pages[start:end], partial, mask))
    return _DecodePlan(metadata.query_start.long()[requests], spans, pieces)


def _pieces(row: int, count: int, context: int, pages: torch.Tensor, shape: _Shape) -> list[_Piece]:
    """Cuts a chunk so that the scores of a piece stay within the working memory."""
    heads = shape.kv_heads * shape.rows
    size = max(ROW_TILE, min(256, _SCORE_ELEMENTS // (heads * context)))
    pieces = []
    for offset in range(0, count, size):
        length = min(size, count - offset)
        position = context - count + offset
        tiles = range(shape.first_visible(position) // shape.tile, -(-(position + length) // shape.tile))
        pieces.append(_Piece(row + offset, position, length, context, tiles, pages))
    return pieces


# --- the work ---------------------------------------------------------------------------------------------------------


def _gather(cache: torch.Tensor, pages: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """[pages, page size, kv_heads, d] and [n, m] → [n, kv_heads, m · page size, d], contiguous."""
    by_head = cache.transpose(1, 2)
    _, kv_heads, page_size, head_dim = by_head.shape
    head = torch.arange(kv_heads, device=pages.device).unsqueeze(1)
    pages = pages.unsqueeze(1)
    if by_head.is_contiguous():  # a page's tokens of one head lie together: copy them as a whole
        picked = by_head.view(-1, page_size * head_dim).index_select(0, (pages * kv_heads + head).flatten())
    else:
        picked = by_head[pages, head]
    return picked.view(pages.shape[0], kv_heads, -1, head_dim).to(dtype)


def _decode(
    q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, plan: _DecodePlan, shape: _Shape
) -> torch.Tensor:
    """[rows of the plan, heads, d]."""
    grouped = q.index_select(0, plan.rows).view(-1, shape.kv_heads, shape.group, shape.head_dim)
    grouped = F.pad(grouped, (0, 0, 0, shape.rows - shape.group))  # [n, kv_heads, rows, d]
    num_tiles = plan.pieces[-1].end
    scores = q.new_empty(num_tiles, shape.kv_heads, shape.rows, shape.tile)
    for piece in plan.pieces:
        keys = _gather(k_cache, piece.pages, q.dtype).flatten(0, 1).transpose(1, 2)
        part = scores[piece.start : piece.end]
        torch.bmm(grouped.index_select(0, piece.request).flatten(0, 1), keys, out=part.flatten(0, 1))
        part[piece.partial] = part[piece.partial].masked_fill_(piece.hidden, -torch.inf)
    tile_max = scores.amax(-1)
    row_max = torch.full_like(grouped[..., 0], -torch.inf)
    for start, n in plan.spans:
        torch.maximum(row_max[:n], tile_max[start : start + n], out=row_max[:n])
    weights = torch.empty_like(tile_max)
    mixed = q.new_empty(num_tiles, shape.kv_heads, shape.rows, shape.head_dim)
    for piece in plan.pieces:
        part = scores[piece.start : piece.end]
        part.sub_(row_max.index_select(0, piece.request).unsqueeze(-1)).exp_()
        torch.sum(part, -1, out=weights[piece.start : piece.end])
        values = _gather(v_cache, piece.pages, q.dtype)
        values[piece.partial] = values[piece.partial].masked_fill_(piece.hidden.transpose(2, 3), 0.0)
        torch.bmm(part.flatten(0, 1), values.flatten(0, 1), out=mixed[piece.start : piece.end].flatten(0, 1))
    weight, out = torch.zeros_like(row_max), torch.zeros_like(grouped)
    for start, n in plan.spans:
        weight[:n] += weights[start : start + n]
        out[:n] += mixed[start : start + n]
    out /= weight.unsqueeze(-1)
    return out[:, :, : shape.group].flatten(1, 2)


def _chunk(q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, piece: _Piece, shape: _Shape) -> torch.Tensor:
    """[positions of the piece, heads, d]."""
    rows = _chunk_rows(q, piece, shape)
    kv_heads, num_rows = rows.shape[:2]
    seen_from = shape.first_visible(piece.position)
    positions = _row_positions(piece, num_rows, shape, q.device)
    key_offsets = torch.arange(shape.tile, device=q.device)
    scores = q.new_empty(len(piece.tiles), kv_heads, num_rows, shape.rows, shape.tile)
    for part, tile in zip(scores, piece.tiles, strict=True):
        keys = _gather(k_cache, piece.pages[tile : tile + 1], q.dtype)[0]
        for head in range(kv_heads):
            torch.bmm(rows[head], keys[head].t().expand(num_rows, -1, -1), out=part[head])
        first = tile * shape.tile
        newest_window_start = shape.first_visible(piece.position + piece.count - 1)
        if first + shape.tile - 1 > piece.position or first < newest_window_start:
            part.masked_fill_(_hidden(positions, key_offsets + first, shape.window), -torch.inf)
    scores.sub_(scores.amax(-1).amax(0).unsqueeze(-1)).exp_()
    sums = scores.sum(-1)
    weight, out = torch.zeros_like(sums[0]), torch.zeros_like(rows)
    for part, tile_sum, tile in zip(scores, sums, piece.tiles, strict=True):
        values = _gather(v_cache, piece.pages[tile : tile + 1], q.dtype)[0]
        key = key_offsets + tile * shape.tile
        values.masked_fill_(((key >= piece.context) | (key < seen_from)).unsqueeze(1), 0.0)
        for head in range(kv_heads):
            out[head] += torch.bmm(part[head], values[head].expand(num_rows, -1, -1))
        weight += tile_sum
    out /= weight.unsqueeze(-1)
    per_tile = shape.rows // shape.group * shape.group
    out = out[:, :, :per_tile].reshape(kv_heads, -1, shape.group, shape.head_dim)[:, : piece.count]
    return out.transpose(0, 1).flatten(1, 2)


def _chunk_rows(q: torch.Tensor, piece: _Piece, shape: _Shape) -> torch.Tensor:
    """[kv_heads, tiles of rows, rows, d]: as many positions in a tile as their query heads fit, the rest zeros."""
    per_tile = shape.rows // shape.group
    rows = q[piece.row : piece.row + piece.count].view(-1, shape.kv_heads, shape.group, shape.head_dim).transpose(0, 1)
    rows = F.pad(rows, (0, 0, 0, 0, 0, -piece.count % per_tile))
    rows = rows.reshape(shape.kv_heads, -1, per_tile * shape.group, shape.head_dim)
    return F.pad(rows, (0, 0, 0, shape.rows - per_tile * shape.group)).contiguous()


def _row_positions(piece: _Piece, num_rows: int, shape: _Shape, device: torch.device) -> torch.Tensor:
    """[tiles of rows, rows, 1]: the position of each row; rows that only fill up take the last one."""
    per_tile = shape.rows // shape.group
    in_tile = torch.arange(shape.rows, device=device) // shape.group
    offset = torch.arange(num_rows, device=device).unsqueeze(1) * per_tile + in_tile.clamp(max=per_tile - 1)
    return (offset.clamp(max=piece.count - 1) + piece.position).unsqueeze(-1)


def _hidden(position: torch.Tensor, key: torch.Tensor, window: int | None) -> torch.Tensor:
    """Where a row at `position` may not see the key: later ones, and those before its window."""
    hidden = key > position
    return hidden if window is None else hidden | (key <= position - window)
