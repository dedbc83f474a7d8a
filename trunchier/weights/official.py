"""Official files of `zoo.releases` by name: found on this machine, or downloaded with a word.

fetch('yolox-nano')      # path of the file; downloads it the first time
installed('yolox-nano')  # the same, or None: nothing is downloaded
"""

import difflib
from pathlib import Path
from typing import Any

from .. import zoo
from ..files.download import (
    BY_HAND,
    SECONDS,
    DownloadError,
    Progress,
    cache_folder,
    download,
    find_file,
    is_offline,
)
from ..zoo.releases import RELEASES, Release


def release(name: str) -> tuple[str, Release]:
    """Name and row of an official file, by its name in any case.

    Raises:
        ValueError: no such file; the text gives the nearest names, or says that there are no
            weights of this model, or that the name is that of an encoder with two models.
    """
    given = name.lower().replace('_', '-')
    for known, row in RELEASES.items():
        if known.lower() == given:
            return known, row
    if given in zoo.ENCODERS:
        both = ' or '.join(zoo.paper_name(given, task) for task in zoo.TASKS)
        raise ValueError(f'{name} is an encoder of several models; name one: {both}')
    if given in (each.lower() for each in zoo.models()):
        raise ValueError(
            f'no official weights of {name} are known; `trunchier models` shows which models have '
            'some. Train it, or give a checkpoint'
        )
    names = {each.lower(): each for each in RELEASES}
    near = difflib.get_close_matches(given, names, n=3, cutoff=0.5)
    hint = ' or '.join(names[each] for each in near) or ', '.join(RELEASES)
    raise ValueError(f'no official file {name!r}; did you mean {hint}?')


def installed(name: str) -> Path | None:
    """Path of an official file that is on this machine, else None; ValueError: unknown name."""
    return find_file(release(name)[1].filename)


def release_of(path: str | Path) -> Release | None:
    """Row of the official file of this name, if it is one."""
    name = Path(path).name
    return next((row for row in RELEASES.values() if row.filename == name), None)


def fetch(name: str, progress: Progress | None = None, patience: float = SECONDS) -> Path:
    """Path of an official file; it is downloaded if it is not on this machine.

    A line on stderr says so before: the file, its license, its size, the server, the folder.

    Args:
        name: of `zoo.releases.RELEASES`, in any case.
        progress, patience: see `files.download.download`.

    Raises:
        ValueError: unknown name.
        FileNotFoundError: it can be downloaded by hand only; the text says where.
        DownloadError: see `files.download.download`; every address was tried.
    """
    name, row = release(name)
    if path := find_file(row.filename):
        return path
    if not row.urls:
        raise FileNotFoundError(by_hand(name, row))
    facts: dict[str, Any] = dict(
        name=row.filename,
        sha256=row.sha256,
        size=row.size,
        member=row.member,
        beside=row.beside,
        patience=patience,
    )
    errors = []
    for url in row.urls:
        try:
            return download(url, **facts, note=f'license: {row.license}', progress=progress)
        except DownloadError as error:
            errors.append(error)
            if is_offline():
                break
    raise DownloadError('\n'.join(map(str, errors))) from errors[-1]


def by_hand(name: str, row: Release) -> str:
    """What to do for a file that has no direct address."""
    return (
        f'{name} has no address for direct downloads: get it at {row.by_hand} (license: '
        f'{row.license}) and put it at {BY_HAND / row.filename} or {cache_folder() / row.filename}'
    )
