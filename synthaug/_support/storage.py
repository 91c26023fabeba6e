"""How a data set lies in an HDF5 file, looked at before any of it is read."""

from typing import Any

import numpy as np

_MOST = 2000  # bytes of a data set over those of its file: zeros compress by some 1,000


def storage_fault(dataset: Any, *, size: int | None, largest_chunk: int) -> str | None:
    """Why a data set of an HDF5 file may not be read: it leads elsewhere, or fills the memory.

    Args:
        dataset: An `h5py.Dataset`.
        size: Bytes of the file; `None` if the data set is not read whole.
        largest_chunk: The most bytes that may have to be unpacked for a single value.

    Returns:
        What is wrong, to go on a sentence that begins with the name; `None` if it may be read.
    """
    import h5py

    storage = dataset.id.get_create_plist()
    layout = storage.get_layout()
    chunk = storage.get_chunk() if layout == h5py.h5d.CHUNKED else ()
    chunk_bytes = int(np.prod(chunk, dtype=object)) * dataset.dtype.itemsize
    if storage.get_external_count() > 0:
        return "is external storage, in other files, which we do not follow"
    if layout == h5py.h5d.VIRTUAL:
        return "is a virtual data set, out of other files, which we do not follow"
    if chunk_bytes > largest_chunk:
        return f"has chunks of {chunk_bytes:,} bytes"
    bytes_in_memory = int(np.prod(dataset.shape or (), dtype=object)) * dataset.dtype.itemsize
    if size is not None and bytes_in_memory > _MOST * size:
        return f"has {bytes_in_memory:,} bytes in a file of {size:,}, which is not plausible"
    return None
