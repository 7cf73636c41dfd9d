"""Adapters of AnnData and of data sets of Hugging Face, which are optional packages."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gae.data.arrays import Arrays, channels_first
from gae.data.columns import listed
from gae.data.frames import frame_cells, library, optional, series_cells
from gae.data.objects import label_codes
from gae.data.resizing import Resize, pixels_of, stack_images
from gae.data.tables import Cells, matrix_arrays, table_arrays

if TYPE_CHECKING:
    from gae.data.preparation import Preparation


def is_anndata(source: Any) -> bool:
    """Whether an object is an ``anndata.AnnData``."""
    return library(source) == "anndata" and hasattr(source, "var_names")


def is_hugging_face(source: Any) -> bool:
    """Whether an object is a ``datasets.Dataset`` of Hugging Face, or a dict of them."""
    return library(source) == "datasets"


def read_h5ad(path: Path) -> Any:
    """Reads an ``.h5ad`` file as AnnData.

    Raises:
        ImportError: without anndata.
        ValueError: for a damaged file.
    """
    anndata = optional("anndata", "adapters", "An .h5ad file")
    try:
        return anndata.read_h5ad(path)
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"Cannot read AnnData from {path}: {str(error).rstrip('.')}.") from error


def anndata_arrays(source: Any, name: str, labels: str | None, split: str | None, like: "Preparation | None") -> Arrays:
    """The matrix ``X`` (N, D) of AnnData, with columns ``var_names``; labels and split are columns of ``obs``.

    Raises:
        ValueError: without ``X``, or without that column.
    """
    if source.X is None:
        raise ValueError(f"{name} has no matrix X. Choose a layer: `adata.X = adata.layers[...]`.")
    x = source.X.toarray() if hasattr(source.X, "toarray") else np.asarray(source.X)
    wanted = labels if labels is not None else (like.table.label if like is not None and like.table else None)
    if labels is not None and labels not in source.obs:
        raise ValueError(f"{name} has no column {labels!r} in obs. Its columns: {listed(list(source.obs))}.")
    target = series_cells(source.obs[wanted].rename(wanted)) if wanted is not None and wanted in source.obs else None
    column = series_cells(source.obs[split]).texts() if split is not None and split in source.obs else None
    return matrix_arrays(x, list(map(str, source.var_names)), name, target, like)._replace(column=column)


def is_saved(folder: Path) -> bool:
    """Whether a folder was written by ``save_to_disk`` of Hugging Face's ``datasets``."""
    parts = ("dataset_info.json", "state.json")
    return (folder / "dataset_dict.json").is_file() or all((folder / part).is_file() for part in parts)


def read_saved(folder: Path) -> Any:
    """The data set, or the dict of them, that ``save_to_disk`` of Hugging Face's ``datasets`` wrote.

    Raises:
        ImportError: without ``datasets``.
        ValueError: if it cannot be read.
    """
    datasets = optional("datasets", "adapters", "A data set of Hugging Face")
    try:
        return datasets.load_from_disk(folder)
    except (ValueError, OSError, LookupError) as error:
        raise ValueError(f"Cannot read a data set of Hugging Face from {folder}: {str(error).rstrip('.')}.") from error


def hugging_face_arrays(
    source: Any,
    labels: str | None,
    drop: Sequence[str],
    resize: Resize | None,
    split: str | None,
    like: "Preparation | None",
) -> Arrays:
    """A data set of Hugging Face: its column of images or of arrays, or else a table of all columns.

    The labels of images default to the only column of class labels. Class labels of a table are categories.

    Raises:
        ValueError: for a dict of splits, several columns of images or arrays, or an unknown column of labels.
    """
    datasets = optional("datasets", "adapters", "A data set of Hugging Face")
    if not isinstance(source, datasets.Dataset):
        splits = f" It has {listed(list(source))}." if hasattr(source, "keys") else ""
        raise ValueError(f"Give one split of the data set, such as `dataset['train']`.{splits}")
    unknown = [name for name in ([] if labels is None else [labels]) + list(drop) if name not in source.features]
    if unknown:
        raise ValueError(f"The data set has no column {unknown[0]!r}. Its columns: {listed(list(source.features))}.")
    kept = {name: kind for name, kind in source.features.items() if name not in (*drop, labels, split)}
    arrays = (datasets.Image, datasets.Array2D, datasets.Array3D, datasets.Array4D)
    chosen = [name for name, kind in kept.items() if isinstance(kind, arrays)]
    if len(chosen) > 1:
        raise ValueError(f"The data set has several columns of arrays, {listed(chosen)}. Leave out all but one: drop=…")
    if not chosen:
        return table_arrays(_cells(source, datasets), "The data set", labels, drop, split, like)
    name, classes = chosen[0], [n for n, kind in kept.items() if isinstance(kind, datasets.ClassLabel)]
    label = labels or (classes[0] if len(classes) == 1 else None)
    if isinstance(kept[name], datasets.Image):
        images = ((f"image {i}", pixels_of(image, f"image {i}")) for i, image in enumerate(source[name]))
        x, notes = stack_images(images, "The data set", resize, None if like is None else like.event_shape)
    else:
        stacked = Arrays(np.stack([np.asarray(each) for each in source[name]]))
        known: Any = {} if like is None else {"event_shape": like.event_shape, "usual": like.channels}
        x, notes = channels_first(stacked, **known).x, ()
    column = None
    if split is not None and split in source.features:
        column = series_cells(_label_values(source, split, datasets)).texts()
    if label is None:
        return Arrays(x, notes=notes, column=column)
    y, names = label_codes(_label_values(source, label, datasets))
    return Arrays(x, y, classes=names, notes=notes, column=column)


def _cells(source: Any, datasets: Any) -> list[Cells]:
    frame = source.to_pandas()
    for name, kind in source.features.items():
        if isinstance(kind, datasets.ClassLabel):
            frame[name] = _categorical(frame[name], kind)
    return frame_cells(frame)


def _label_values(source: Any, label: str, datasets: Any) -> Any:
    kind = source.features[label]
    values = optional("pandas", "tables", "A data set of Hugging Face").Series(source[label][:], name=label)
    return _categorical(values, kind) if isinstance(kind, datasets.ClassLabel) else values


def _categorical(values: Any, kind: Any) -> Any:
    """Numbers of classes as categories; -1 is a missing one."""
    pandas = optional("pandas", "tables", "A data set of Hugging Face")
    return pandas.Series(pandas.Categorical.from_codes(values.to_numpy(), kind.names), name=values.name)
