"""Arrays from .npz files of strangers: no pickles, no more memory than a limit."""

from collections.abc import Collection
from pathlib import Path
from typing import BinaryIO

import numpy as np

MAX_BYTES = 2**31  # of one array


def read_npz(
    path: str | Path | BinaryIO,
    names: Collection[str] | None = None,
    max_bytes: int = MAX_BYTES,
) -> dict[str, np.ndarray]:
    """Arrays of an .npz file by name, those of `names` that it has; None: all.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an .npz file, damaged, an array of objects, or one beyond `max_bytes`.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            if isinstance(file, np.ndarray):
                raise ValueError('it holds a single array')
            wanted = [name for name in file.files if names is None or name in names]
            for member in file.zip.infolist():
                if member.filename.removesuffix('.npy') in wanted and member.file_size > max_bytes:
                    raise ValueError(f'{member.filename} has {member.file_size} bytes')
            return {name: file[name] for name in wanted}
    except OSError:
        raise
    except Exception as error:  # of zipfile, zlib, tokenize or numpy, whichever meets the damage
        raise ValueError(
            f'{path} is damaged, not an npz, or holds objects or more than {max_bytes} bytes in an '
            f'array ({type(error).__name__}: {error})'
        ) from error
