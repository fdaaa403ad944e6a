"""Attention over a paged KV cache in plain torch: the definition of correct, and what runs on a CPU.

    o = Σⱼ pⱼ vⱼ / Σⱼ pⱼ,   pⱼ = exp(q · kⱼ · scale − maxⱼ(q · kⱼ · scale)),   j over the positions that q may see

**A row's bits depend on nothing but the row** (see `reference`), so that neither chunking nor batching shows:

- keys are taken in tiles of fixed length, counted from position 0, whatever part of them a step needs;
- every product is of one shape: `ROW_TILE` rows (the query heads of one key head, and in a chunk those of further
  positions, filled up with zeros) by one tile of keys;
- the maximum is exact in any order; sums go over a tile, then tile by tile in the order of positions. A tile that a
  row does not see adds exact zeros.

Requests with one token in the step (decode) are worked on together, a tile of keys being one matrix product in a batch;
chunks of prompts one after the other.
"""

import torch

from octavo_kernels.attention_plan import AttentionShape, ChunkPiece, DecodePlan, KeyTiles, plan_attention
from octavo_kernels.metadata import AttentionMetadata, Workspace


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
    it. What other requests' pages and unused slots hold has no influence, NaN included. Works in float32 (in float64 if
    that is q's type).
    """
    _, page_size, kv_heads, head_dim = k_cache.shape
    shape = AttentionShape(page_size, kv_heads, head_dim, q.shape[1] // kv_heads, sliding_window)
    plan = metadata.plans.get(shape)
    if plan is None:
        plan = metadata.plans[shape] = plan_attention(metadata, shape)
    out = torch.empty_like(q)
    work = _Work(k_cache, v_cache, shape, metadata.workspace)
    wide = q.to(torch.promote_types(q.dtype, torch.float32)) * scale
    for decode in plan.decode:
        out[decode.rows] = work.decode(wide, decode).to(q.dtype)
    for piece in plan.chunks:
        out[piece.row : piece.row + piece.count] = work.chunk(wide, piece).to(q.dtype)
    return out


class _Work:
    """One layer's attention. `q` is scaled already."""

    def __init__(
        self, k_cache: torch.Tensor, v_cache: torch.Tensor, shape: AttentionShape, workspace: Workspace
    ) -> None:
        self.k_cache = k_cache
        self.v_cache = v_cache
        self.shape = shape
        self.workspace = workspace

    def decode(self, q: torch.Tensor, plan: DecodePlan) -> torch.Tensor:
        """Attention of the plan's rows, [rows, heads, d]."""
        shape = self.shape
        heads, rows, tile, dim = shape.kv_heads, shape.rows, shape.tile, shape.head_dim
        grouped = q.index_select(0, plan.rows).view(-1, heads, shape.group, dim)
        grouped = _fill_up(grouped, 2, rows)
        num_tiles = plan.pieces[-1].end
        scores = self.workspace.take("scores", (num_tiles, heads, rows, tile), q)
        mixed = self.workspace.take("mixed", (num_tiles, heads, rows, dim), q)
        for piece in plan.pieces:
            keys = self._gather(self.k_cache, piece.keys, q).flatten(0, 1).transpose(1, 2)
            part = scores[piece.start : piece.end]
            _products(grouped.index_select(0, piece.request).flatten(0, 1), keys, part.view(-1, rows, tile))
            part.add_(piece.bias)
        tile_max = scores.amax(-1, keepdim=True)
        row_max = torch.full_like(grouped[..., :1], -torch.inf)
        for start, n in plan.spans:
            torch.maximum(row_max[:n], tile_max[start : start + n], out=row_max[:n])
        sums = torch.empty_like(tile_max)
        for piece in plan.pieces:
            part = scores[piece.start : piece.end]
            # The rows that only fill up are left as they are: exp is what costs here.
            weights = part[:, :, : shape.group] - row_max[:, :, : shape.group].index_select(0, piece.request)
            part[:, :, : shape.group] = weights.exp_()
            sums[piece.start : piece.end, :, : shape.group] = weights.sum(-1, keepdim=True)
            values = self._gather(self.v_cache, piece.keys, q).flatten(0, 1)
            _products(part.view(-1, rows, tile), values, mixed[piece.start : piece.end].view(-1, rows, dim))
        total, out = torch.zeros_like(row_max), torch.zeros_like(grouped)
        for start, n in plan.spans:
            total[:n] += sums[start : start + n]
            out[:n] += mixed[start : start + n]
        return (out[:, :, : shape.group] / total[:, :, : shape.group]).flatten(1, 2)

    def chunk(self, q: torch.Tensor, piece: ChunkPiece) -> torch.Tensor:
        """Attention of the piece's positions, [positions, heads, d]."""
        shape, num_tiles = self.shape, len(piece.tiles)
        rows = self._chunk_rows(q, piece)
        positions = self._row_positions(piece, rows.shape[1], q.device)
        scores = self.workspace.take("scores", (num_tiles, *rows.shape[:3], shape.tile), q)
        for index, tile in enumerate(piece.tiles):
            keys = self._gather(self.k_cache, tile, q)[0]
            for head in range(shape.kv_heads):
                _products(rows[head], keys[head].t(), scores[index, head])
            self._mask(scores[index], piece, piece.first_tile + index, positions)
        scores.sub_(scores.amax(-1).amax(0).unsqueeze(-1)).exp_()
        sums = scores.sum(-1, keepdim=True)
        total, out = torch.zeros_like(sums[0]), torch.zeros_like(rows)
        mixed = self.workspace.take("mixed", tuple(rows.shape), q)
        for index, tile in enumerate(piece.tiles):
            values = self._gather(self.v_cache, tile, q)[0]
            for head in range(shape.kv_heads):
                _products(scores[index, head], values[head], mixed[head])
            out += mixed
            total += sums[index]
        out /= total
        out = out[:, :, : shape.positions * shape.group].reshape(shape.kv_heads, -1, shape.group, shape.head_dim)
        return out[:, : piece.count].transpose(0, 1).flatten(1, 2)

    def _gather(self, cache: torch.Tensor, tiles: KeyTiles, like: torch.Tensor) -> torch.Tensor:
        """[n, kv_heads, tile, d] of the wanted type, in memory that the next call takes again."""
        shape, num_tiles = self.shape, len(tiles.pages)
        by_head = cache.transpose(1, 2)
        found = self.workspace.take("keys", (num_tiles, shape.kv_heads, shape.tile, shape.head_dim), like)
        if by_head.is_contiguous() and cache.dtype == like.dtype:
            # A page's tokens of one head lie together: copied as a whole.
            size = shape.page_size * shape.head_dim
            torch.index_select(by_head.view(-1, size), 0, tiles.pages.flatten(), out=found.view(-1, size))
        else:
            pages = by_head[tiles.pages // shape.kv_heads, tiles.pages % shape.kv_heads]
            found.view(num_tiles, shape.kv_heads, -1, shape.page_size, shape.head_dim).copy_(pages)
        if tiles.stale.numel():
            found.view(-1, shape.head_dim).index_fill_(0, tiles.stale, 0.0)
        return found

    def _chunk_rows(self, q: torch.Tensor, piece: ChunkPiece) -> torch.Tensor:
        """[kv_heads, n, rows, d]: as many positions' query heads in each of the n as fit, the rest zeros."""
        shape = self.shape
        rows = q[piece.row : piece.row + piece.count].view(-1, shape.kv_heads, shape.group, shape.head_dim)
        rows = _fill_up(rows.transpose(0, 1), 1, -(-piece.count // shape.positions) * shape.positions)
        rows = rows.reshape(shape.kv_heads, -1, shape.positions * shape.group, shape.head_dim)
        return _fill_up(rows, 2, shape.rows).contiguous()

    def _row_positions(self, piece: ChunkPiece, num_rows: int, device: torch.device) -> torch.Tensor:
        """[n, rows, 1]: the position of each row; rows that only fill up take one that sees something."""
        in_rows = torch.arange(self.shape.rows, device=device) // self.shape.group
        offset = torch.arange(num_rows, device=device).unsqueeze(1) * self.shape.positions + in_rows
        return (offset.clamp(max=piece.count - 1) + piece.position).unsqueeze(-1)

    def _mask(self, scores: torch.Tensor, piece: ChunkPiece, tile: int, positions: torch.Tensor) -> None:
        """Hides later keys, and those before the window, in the scores of one tile, [kv_heads, n, rows, tile]."""
        shape, first = self.shape, tile * self.shape.tile
        if first + shape.tile - 1 <= piece.position and first >= shape.first_visible(piece.position + piece.count - 1):
            return  # all rows see the whole tile
        key = torch.arange(first, first + shape.tile, device=scores.device)
        hidden = key > positions
        if shape.window is not None:
            hidden |= key <= positions - shape.window
        scores.masked_fill_(hidden, -torch.inf)


def _products(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> None:
    """out[i] = left[i] · right[i], or · right if it is a single matrix: [n, rows, a] × [n, a, b] → [n, rows, b].

    The batch has at least two: a single product would be divided among the threads, and then sums differently.
    """
    count = len(left)
    if count > 1:
        torch.bmm(left, right.expand(count, -1, -1), out=out)
    else:
        out.copy_(torch.bmm(left.expand(2, -1, -1), right.expand(2, -1, -1))[:1])


def _fill_up(x: torch.Tensor, dim: int, size: int) -> torch.Tensor:
    """Appends zeros along a dimension up to `size`."""
    missing = list(x.shape)
    missing[dim] = size - missing[dim]
    return torch.cat((x, x.new_zeros(missing)), dim) if missing[dim] else x
