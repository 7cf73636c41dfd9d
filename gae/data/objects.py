"""Data in memory as arrays: NumPy arrays, tensors, pairs (x, y), and PyTorch data sets and loaders."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler
from torch.utils.data import Dataset as TorchDataset

from gae.data.arrays import FLOAT32, Arrays
from gae.data.frames import library, series_cells
from gae.data.memory import need_room
from gae.data.resizing import ALPHA, pixels_of
from gae.data.tables import numbered

KINDS = "an array, a tensor, a pair (x, y), a pandas or polars frame, a torch Dataset or DataLoader, or a path"


def is_object(source: Any) -> bool:
    """Whether ``read_object`` reads a source."""
    if isinstance(source, tuple) and len(source) == 2:
        x, y = source
        return hasattr(x, "shape") and (hasattr(y, "shape") or isinstance(y, list))
    return isinstance(source, (np.ndarray, Tensor, TorchDataset, DataLoader))


def read_object(source: Any) -> Arrays:
    """Observations (N, *X), and labels if there are any, of data in memory.

    Raises:
        TypeError: for items that are not x or (x, y).
        ValueError: for items of different shapes, or labels of another number.
    """
    match source:
        case tuple():
            x, y = source
            codes, classes = label_codes(y)
            return read_object(x)._replace(y=codes, classes=classes)
        case DataLoader():
            return _read_loader(source)
        case TorchDataset():
            return _read_dataset(source)
    return Arrays(as_array(source))


def as_array(value: Any) -> np.ndarray:
    """An array of a tensor, an image of Pillow (C, H, W), or anything else that NumPy converts; a memory map itself."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        if value.layout != torch.strided:
            raise TypeError(f"x must be dense, got layout {value.layout}. Use `x.to_dense()`.")
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    if isinstance(value, np.memmap):
        return value
    return _opaque(value) if library(value) == "PIL" else np.asarray(value)


def _opaque(image: Any) -> np.ndarray:
    pixels = pixels_of(image, "An image")
    if len(pixels) in ALPHA:
        raise ValueError("An image has an alpha channel, which would be lost. Convert it to grey or RGB.")
    return pixels


def label_codes(y: Any) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Labels as numbers, and the names of the classes if they are names.

    >>> label_codes(np.array(["cat", "ant", "cat"]))
    (array([1, 0, 1]), ('ant', 'cat'))
    """
    if library(y) in ("pandas", "polars"):
        cells = series_cells(y)
        if cells.categories is None:
            return cells.values, None
        used = cells.used()
        number = np.array([used.index(name) if name in used else -1 for name in cells.categories])
        codes, classes = np.where(cells.values < 0, -1, number[cells.values]), used
    else:
        array = as_array(y)
        if array.dtype.kind not in "OSU":
            return array, None
        if not all(isinstance(name, (str, bytes, np.str_)) for name in array.flat):
            raise TypeError("Labels must be integers or names, got objects. Convert them with `astype`.")
        codes, classes = numbered(array.astype(str).astype(object))
    if (codes < 0).any():
        raise ValueError(f"y has no label in row {int((codes < 0).argmax())}. Leave such rows out.")
    return codes, classes


def _read_dataset(source: Any) -> Arrays:
    """Items x or (x, y) of a data set of PyTorch, in its order; class names from its ``classes``, as in torchvision."""
    name = type(source).__name__
    if isinstance(source, IterableDataset):
        items: Iterable[Any] = source
    else:
        count = len(source)
        items = (source[i] for i in range(count))
    xs: list[np.ndarray] = []
    ys: list[Any] = []
    for i, item in enumerate(items):
        x, y = _parts(item, f"item {i} of {name}")
        xs.append(as_array(x))
        if xs[-1].shape != xs[0].shape:
            raise ValueError(
                f"Item {i} of {name} has shape {xs[-1].shape}, but item 0 has {xs[0].shape}. Bring all to one shape, "
                "such as by a transform of the data set."
            )
        if i == 0 and not isinstance(source, IterableDataset):
            need_room(count * xs[0].size * FLOAT32, Path(name), f"{count:,} items of {xs[0].shape}")
        ys.extend([] if y is None else [as_array(y)])
    if not xs:
        raise ValueError(f"{name} is empty. A data set needs observations.")
    classes = getattr(source, "classes", None)
    return _stacked(np.stack(xs), np.stack(ys) if ys else None, name, classes)


def _read_loader(source: "DataLoader[Any]") -> Arrays:
    """Batches x or (x, y) of a loader; in the order of its data set, and complete, unless a sampler chooses rows."""
    name, loader = type(source.dataset).__name__, source
    plain = type(source.sampler) is SequentialSampler or (
        type(source.sampler) is RandomSampler and not source.sampler.replacement
    )
    if plain and source.batch_size is not None and not isinstance(source.dataset, IterableDataset):
        loader = DataLoader(source.dataset, source.batch_size, collate_fn=source.collate_fn)
    parts = [_parts(batch, f"batch {i} of the DataLoader") for i, batch in enumerate(loader)]
    if not parts:
        raise ValueError("The DataLoader is empty. A data set needs observations.")
    x = np.concatenate([as_array(x) for x, _ in parts])
    y = None if parts[0][1] is None else np.concatenate([as_array(y) for _, y in parts])
    return _stacked(x, y, name, getattr(source.dataset, "classes", None))


def _stacked(x: np.ndarray, y: np.ndarray | None, name: str, classes: Any) -> Arrays:
    if y is not None and len(y) != len(x):
        raise ValueError(f"{name} has {len(x)} observations but {len(y)} labels. Give every item one label, or none.")
    if y is None or not isinstance(classes, Sequence) or isinstance(classes, str):
        return Arrays(x, y)
    return Arrays(x, y, classes=tuple(map(str, classes)))


def _parts(item: Any, where: str) -> tuple[Any, Any]:
    """x and y of an item or a batch; y is None for an item x or (x,)."""
    if isinstance(item, (tuple, list)):
        if len(item) == 1:
            return item[0], None
        if len(item) == 2:
            return item[0], item[1]
        raise TypeError(f"{where} has {len(item)} parts, but x or (x, y) is needed. Choose them in the data set.")
    if isinstance(item, dict):
        raise TypeError(f"{where} is a dict with {', '.join(map(repr, item))}, but x or (x, y) is needed.")
    return item, None
