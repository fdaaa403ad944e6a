"""Pages of all layers at once: gathered into one stretch of memory each, and put back."""

from typing import Final

import torch

_WORDS: Final = (torch.int64, torch.int32, torch.int16, torch.uint8)  # widest first: copies need no arithmetic


class PageViews:
    """The KV cache as seen by copies. P pages, A arrays (K and V of each layer), arrays numbered K0, V0, K1, V1, …

    A page in one stretch is [A, block_size, num_kv_heads, head_dim], whatever the order in the cache: so a page on disk
    survives a change of the cache's order.
    """

    def __init__(self, kv_cache: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """kv_cache: views of shape [num_blocks, block_size, num_kv_heads, head_dim], any strides, all of one dtype."""
        arrays = [array for layer in kv_cache for array in layer]
        self.word = next(word for word in _WORDS if all(_can_view(array, word) for array in arrays))
        arrays = [array.view(self.word) for array in arrays]
        self._shape = (len(arrays), *arrays[0].shape[1:])
        self.page_words = torch.Size(self._shape).numel()
        self.page_bytes = self.page_words * self.word.itemsize
        self._parts = _merge(arrays)

    def gather(self, pages: torch.Tensor, out: torch.Tensor) -> None:
        """pages: [n] int64. out: [n, page_words], each row contiguous; row i becomes the content of page i."""
        shaped = out.view(-1, *self._shape)
        for first, part in self._parts:
            torch.index_select(part, 0, pages, out=shaped[:, first : first + part.shape[1]])

    def scatter(self, pages: torch.Tensor, source: torch.Tensor) -> None:
        """The reverse: page i becomes row i of source. No page twice."""
        shaped = source.view(-1, *self._shape)
        for first, part in self._parts:
            part.index_copy_(0, pages, shaped[:, first : first + part.shape[1]])


def _can_view(array: torch.Tensor, word: torch.dtype) -> bool:
    """Whether the array can be seen as words of that size: of its own size always."""
    if word.itemsize <= array.element_size():
        return word.itemsize == array.element_size()
    factor = word.itemsize // array.element_size()
    others = (array.shape[-1], array.storage_offset(), *array.stride()[:-1])
    return array.stride(-1) == 1 and all(number % factor == 0 for number in others)


def _merge(arrays: list[torch.Tensor]) -> list[tuple[int, torch.Tensor]]:
    """(number of the first array, [P, arrays in it, block_size, heads, words]): neighbours at equal distances as one.

    A cache that is one tensor becomes one part, one of a tensor a layer a part a layer: so many kernels a copy takes.
    """
    parts = []
    first = 0
    while first < len(arrays):
        base, count = arrays[first], 1
        distance = 0
        for array in arrays[first + 1 :]:
            step = int(array.storage_offset()) - int(arrays[first + count - 1].storage_offset())
            if not _same_storage(base, array) or step <= 0 or (count > 1 and step != distance):
                break
            count, distance = count + 1, step
        size, stride = base.shape, base.stride()
        view = base.as_strided((size[0], count, *size[1:]), (stride[0], distance, *stride[1:]))
        parts.append((first, view))
        first += count
    return parts


def _same_storage(one: torch.Tensor, other: torch.Tensor) -> bool:
    same = one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
    return same and one.stride() == other.stride() and one.shape == other.shape
