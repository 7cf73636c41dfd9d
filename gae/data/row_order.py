"""Memory maps in column order, copied row by row."""

import shutil
from collections.abc import Iterator
from tempfile import TemporaryFile, gettempdir

import numpy as np

from gae.data.mapped import is_large, release

AT_ONCE = 2**24  # bytes of rows that are copied together, and of pages mapped for them
FOLIO = 2**21  # bytes that the system may map with the first that is read of a column
NOTE = "{} is stored column by column: its rows are read from a copy in a temporary file"


def by_rows(array: np.ndarray) -> np.ndarray:
    """A large memory map with the elements of a row side by side: itself, or a copy in a temporary file.

    In column order these elements lie N values apart, so that a batch of random rows would read most of the file. The
    file of the copy, as large as the array, has no name and vanishes with it.

    Raises:
        OSError: if the temporary folder has too little room.
    """
    order = sorted(range(array.ndim), key=lambda axis: -array.strides[axis])
    columns = array.transpose(order)
    if array.flags.c_contiguous or not is_large(array) or order[-1] != 0 or not columns.flags.c_contiguous:
        return array
    free = shutil.disk_usage(gettempdir()).free
    if free < array.nbytes:
        raise OSError(
            f"{getattr(array, 'filename', None) or 'The array'} is stored column by column, and a copy row by row "
            f"needs {array.nbytes:,} bytes in {gettempdir()}, which has {free:,}. Name another folder by the "
            "environment variable TMPDIR, or save the array with `np.save(path, np.ascontiguousarray(x))`."
        )
    with TemporaryFile() as file:
        for rows in _transposed(columns.reshape(-1, len(array)), array):
            file.write(rows.data)
        file.flush()
        copy = np.memmap(file, array.dtype, "r", shape=(len(array), *columns.shape[:-1]))
    copy.filename = getattr(array, "filename", None)
    return copy.transpose(np.argsort([0, *order[:-1]]))


def _transposed(columns: np.ndarray, array: np.ndarray) -> Iterator[np.ndarray]:
    """Consecutive rows (B, D) of a map of columns (D, N), in one buffer, read in parts of few mapped pages."""
    width, size = columns.shape
    step = max(1, AT_ONCE // (width * columns.itemsize))
    few = max(1, AT_ONCE // (step * columns.itemsize + FOLIO))
    plain, buffer = np.asarray(columns), np.empty((step, width), columns.dtype)
    for start in range(0, size, step):
        rows = buffer[: size - start]
        for column in range(0, width, few):
            rows[:, column : column + few] = plain[column : column + few, start : start + step].T
            release(array)
        yield rows
