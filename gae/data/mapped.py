"""Tensors whose rows stay in a file, read when they are used, for data larger than memory."""

import math
import mmap
from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from torch import Size, Tensor
from torch.utils._pytree import tree_map_only

from gae.data.checks import refuse
from gae.data.memory import need_room

LARGE = 2**26  # bytes of a file from which its rows stay there
BLOCK = 2**21  # bytes read at a time by a pass over all rows
AROUND = 2**16  # bytes that the system usually maps around a row; of a file read before, up to 2 MB

Convert = Callable[[Tensor], Tensor]


class Mapped(Tensor):
    """Rows of a memory-mapped array as a tensor (N, *X), which are read when they are used.

    Rows taken by an index are ordinary tensors. ``split``, ``to``, ``flatten(1)``, ``take`` and ``each`` read nothing.
    Any other operation reads all rows first.

    Args:
        array: memory map (M, *Y), a view of one, or several in sequence.
        rows: (N,) rows of the array; None for all.
        convert: maps rows (B, *Y) as stored to observations (B, *X), row by row.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/x.npy", np.arange(6, dtype=np.uint8).reshape(3, 2))
    ...     x = Mapped(np.load(f"{folder}/x.npy", mmap_mode="r"), np.array([2, 0]), lambda rows: rows / 5)
    ...     x.shape, x[0], x.sum()
    (torch.Size([2, 2]), tensor([0.8000, 1.0000]), tensor(2.))
    """

    array: "np.ndarray | _Chain"
    order: np.ndarray | None
    convert: Convert

    @staticmethod
    def __new__(cls, array: "np.ndarray | _Chain", rows: np.ndarray | None, convert: Convert) -> "Mapped":
        like = convert(torch.from_numpy(gather(array, np.arange(1))))
        size = len(array) if rows is None else len(rows)
        shape = Size((size, *like.shape[1:]))
        return Tensor._make_wrapper_subclass(cls, shape, dtype=like.dtype, device=like.device)

    def __init__(self, array: "np.ndarray | _Chain", rows: np.ndarray | None, convert: Convert):
        self.array, self.order, self.convert = array, rows, convert

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"Mapped({tuple(self.shape)}, {self.dtype}, in {getattr(self.array, 'filename', 'a file')})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        args, kwargs = tree_map_only(Mapped, Mapped.loaded, (args, kwargs or {}))
        return func(*args, **kwargs)

    def loaded(self) -> Tensor:
        """All rows in memory.

        Raises:
            ValueError: for more than ``gae.data.memory.limit()`` bytes.
        """
        path = Path(getattr(self.array, "filename", None) or "The file")
        need_room(self.numel() * self.element_size(), path, f"rows {tuple(self.shape)}, and this needs all of them")
        return torch.cat(list(self.split(rows_of(self)))) if len(self) else self._read(range(0))

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, int):
            if not -len(self) <= index < len(self):
                self._beyond(index)
            return self._read(range(index % len(self), index % len(self) + 1))[0]
        if isinstance(index, slice):
            return self._read(range(*index.indices(len(self))))
        if isinstance(index, (Tensor, np.ndarray, list)) and np.ndim(index) == 1:
            return self._read(self._positions(index))
        return self.loaded()[index]

    def __iter__(self) -> Iterator[Tensor]:
        return (row for block in self.split(rows_of(self)) for row in block)

    def split(self, split_size: int | Sequence[int], dim: int = 0) -> Any:
        """Consecutive parts of the rows, each read when it is taken."""
        if dim != 0 or not isinstance(split_size, int):
            return self.loaded().split(split_size, dim)
        return _Parts(self, split_size)

    def flatten(self, start_dim: int = 0, end_dim: int = -1) -> Tensor:
        if start_dim == 1 and end_dim in (-1, self.dim() - 1):
            return self if self.dim() == 2 else each(self, lambda rows: rows.flatten(1))
        return self.loaded().flatten(start_dim, end_dim)

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        """The rows in another dtype or on another device, converted when they are read."""
        like = self[:1].to(*args, **kwargs)
        if (like.dtype, like.device) == (self.dtype, self.device):
            return self
        return each(self, lambda rows: rows.to(*args, **kwargs))

    def numpy(self, *, force: bool = False) -> np.ndarray:
        return self.loaded().numpy(force=force)

    def detach(self) -> Tensor:
        return self

    def take_rows(self, index: Tensor | np.ndarray) -> "Mapped":
        """Chosen rows, which stay in the file."""
        return Mapped(self.array, self._rows(self._positions(index)), self.convert)

    def _positions(self, index: Any) -> np.ndarray:
        chosen = index.cpu().numpy() if isinstance(index, Tensor) else np.asarray(index)
        if chosen.dtype == bool:
            return np.flatnonzero(chosen) if len(chosen) == len(self) else self._beyond(len(chosen))
        if len(chosen) and not -len(self) <= chosen.min() <= chosen.max() < len(self):
            self._beyond(chosen)
        return np.where(chosen < 0, chosen + len(self), chosen)

    def _beyond(self, index: Any) -> Any:
        raise IndexError(f"index {index} does not fit {len(self)} rows")

    def _rows(self, positions: range | np.ndarray) -> np.ndarray:
        """Rows of the array at positions of this tensor."""
        own = np.asarray(positions, dtype=np.int64)
        return own if self.order is None else self.order[own]

    def _read(self, positions: range | np.ndarray) -> Tensor:
        return self.convert(torch.from_numpy(gather(self.array, self._rows(positions))))


class _Parts(Sequence[Tensor]):
    """Parts of the rows of a tensor in a file."""

    def __init__(self, x: Mapped, size: int):
        if size < 1:
            raise ValueError(f"The size of a part must be at least 1, got {size}.")
        self.x, self.size = x, size

    def __len__(self) -> int:
        return max(1, -(-len(self.x) // self.size))  # as of a tensor, whose one part may be empty

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:
        places = range(len(self))[index]
        if isinstance(places, range):
            return [self[place] for place in places]
        return self.x[places * self.size : (places + 1) * self.size]


class _Chain:
    """Tensors (N, *X), one or more of them in files, as one array (M, *X)."""

    def __init__(self, parts: Sequence[Tensor]):
        self.parts = parts
        self.starts = np.cumsum([0, *map(len, parts)])
        self.filename = next(getattr(part.array, "filename", None) for part in parts if isinstance(part, Mapped))

    def __len__(self) -> int:
        return int(self.starts[-1])

    def rows(self, rows: np.ndarray) -> np.ndarray:
        """A copy of some rows."""
        like = self.parts[0][:0]
        taken = np.empty((len(rows), *like.shape[1:]), like.numpy().dtype)
        for part, start in zip(self.parts, self.starts, strict=False):
            own = (rows >= start) & (rows < start + len(part))
            taken[own] = part[torch.from_numpy(rows[own] - start)].numpy()
        return taken


def gather(array: np.ndarray | _Chain, rows: np.ndarray) -> np.ndarray:
    """A copy of some rows of a memory map, of which no page stays in memory for long."""
    if isinstance(array, _Chain):
        return array.rows(rows)
    taken = np.empty((len(rows), *array.shape[1:]), array.dtype)
    width = math.prod(array.shape[1:]) * array.itemsize
    ordered, plain = np.argsort(rows, kind="stable"), np.asarray(array)
    is_dense = len(rows) > 0 and rows.max() - rows.min() < 2 * len(rows)
    step = max(1, BLOCK // max(1, 2 * width if is_dense else width + AROUND))
    for start in range(0, len(rows), step):
        part = ordered[start : start + step]
        taken[part] = plain[rows[part]]
        release(array)
    return taken


def release(array: np.ndarray) -> None:
    """Takes the pages of a file out of the memory of this process; a map in which changes are private keeps them."""
    if isinstance(array, np.memmap) and array.mode != "c" and hasattr(mmap, "MADV_DONTNEED"):
        file: Any = array._mmap  # type: ignore[attr-defined]
        file.madvise(mmap.MADV_DONTNEED)


def is_large(array: np.ndarray) -> bool:
    """Whether an array is a memory map so large that its rows should stay in the file."""
    return isinstance(array, np.memmap) and array.nbytes >= LARGE and can_stay(array.dtype, array.shape)


def can_stay(dtype: np.dtype[Any], shape: Sequence[int]) -> bool:
    """Whether rows of an array can be read from its file, of a dtype that torch has too."""
    return dtype.kind in "biuf" and dtype.itemsize <= 8 and dtype.isnative and len(shape) > 1


def take(x: Tensor, index: Tensor) -> Tensor:
    """x[index], which stays in the file if x does."""
    return x.take_rows(index) if isinstance(x, Mapped) else x[index.to(x.device)]


def each(x: Tensor, function: Convert) -> Tensor:
    """function(x) for a function that acts on each row alone; of a tensor in a file when rows are read."""
    if not isinstance(x, Mapped):
        return function(x)
    before = x.convert
    return Mapped(x.array, x.order, lambda rows: function(before(rows)))


def joined(parts: Sequence[Tensor], order: Tensor) -> Tensor:
    """torch.cat(parts)[order], which stays in files if a part does."""
    lazy = [x for x in parts if isinstance(x, Mapped)]
    if not lazy:
        return torch.cat(list(parts))[order]
    first = lazy[0]
    if len(lazy) == len(parts) and all(x.array is first.array for x in lazy):
        rows = np.concatenate([x._rows(range(len(x))) for x in lazy])
        return Mapped(first.array, rows[order.numpy()], first.convert)
    chain = _Chain(parts)
    return Mapped(chain, np.arange(len(chain))[order.numpy()], lambda rows: rows)


def rows_of(x: Tensor) -> int:
    """Rows per block of a pass over all rows of x."""
    return max(1, BLOCK // max(1, x.shape[1:].numel() * x.element_size()))


def blocks(x: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Consecutive blocks of x (N, *X), each after the number of rows before it."""
    size = rows_of(x)
    for i, block in enumerate(x.split(size)):
        yield i * size, block


def bounds(x: Tensor) -> tuple[float, float]:
    """The lowest and the highest value of x, NaN left out; (inf, -inf) if there is none.

    >>> bounds(torch.tensor([[3.0], [torch.nan], [1.0]]))
    (1.0, 3.0)
    """
    low, high = math.inf, -math.inf
    for _, block in blocks(x):
        known = block[~block.isnan()] if block.numel() and block.min().isnan() else block
        if known.numel():
            least, most = known.aminmax()
            low, high = min(low, float(least)), max(high, float(most))
    return low, high


def row_mean(x: Tensor, function: Convert = lambda rows: rows) -> Tensor:
    """The mean over rows of a function of them, in float64, block by block; NaN, not observed, is left out.

    >>> row_mean(torch.tensor([[3.0, 1.0], [torch.nan, 2.0]]))
    tensor([3.0000, 1.5000], dtype=torch.float64)
    """
    values = (function(block.double()) for _, block in blocks(x))
    total, number = reduce(add, (torch.stack([each.nansum(0), (~each.isnan()).sum(0)]) for each in values))
    return total / number


def column_bounds(x: Tensor) -> tuple[Tensor, Tensor]:
    """The lowest and the highest value of each element of X in the rows of x (N, *X), NaN left out.

    >>> column_bounds(torch.tensor([[3.0, torch.nan], [1.0, torch.nan]]))
    (tensor([1., inf]), tensor([3., -inf]))
    """
    low = [block.nan_to_num(math.inf, math.inf, -math.inf).amin(0) for _, block in blocks(x)]
    high = [block.nan_to_num(-math.inf, math.inf, -math.inf).amax(0) for _, block in blocks(x)]
    return torch.stack(low).amin(0), torch.stack(high).amax(0)


def refuse_rows(x: Tensor, bad: Convert, what: str, remedy: str) -> None:
    """Raises ValueError if bad(x) holds for any value, as ``refuse`` does; of a tensor in a file, block by block."""
    for start, block in blocks(x):
        wrong = bad(block)
        if wrong.any():
            number = sum(int(bad(other).sum()) for _, other in blocks(x))
            refuse(block, wrong, what, remedy, start=start, number=number)
