"""Decisions that processes of a machine share: the first one measures, the others follow.

Where a choice changes results by rounding, a run that is resumed equals an uninterrupted one to the
last bit only if both choose the same.
"""

import hashlib
import os
import platform
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

from .download import cache_folder


def decided(question: str, choices: Collection[str], decide: Callable[[], str]) -> str:
    """The answer of the first process that asked on such a CPU; where none can be kept, one's own.

    Args:
        question: all that the answer depends on, but the CPU.
        choices: the possible answers.
        decide: finds the answer.
    """
    digest = hashlib.blake2b(f'{cpu_name()} {question}'.encode(), digest_size=8).hexdigest()
    path = cache_folder() / 'decisions' / digest
    if (kept := _read(path)) in choices:
        return kept
    answer = decide()
    part = path.with_name(f'.{digest}-{os.getpid()}')
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(f'{answer}\n{question}\n{cpu_name()}\n')
        try:
            os.link(part, path)  # fails if another process was faster
        except FileExistsError:
            if _read(path) not in choices:  # damaged
                os.replace(part, path)
    with suppress(OSError):
        part.unlink(missing_ok=True)
    kept = _read(path)
    return kept if kept in choices else answer


def decisions() -> dict[str, str]:
    """{question: answer} of what was decided on such a CPU, and is kept."""
    kept = {}
    for path in sorted((cache_folder() / 'decisions').glob('[!.]*')):
        answer, *about = _lines(path)
        if about[1:2] == [cpu_name()]:
            kept[about[0]] = answer
    return kept


def _read(path):
    return _lines(path)[0]


def _lines(path):
    try:
        return path.read_text().splitlines() or ['']
    except (OSError, UnicodeDecodeError):
        return ['']


def cpu_name() -> str:
    """Model of the CPU, as Linux tells it, or its architecture."""
    with suppress(OSError):
        for line in Path('/proc/cpuinfo').read_text().splitlines():
            if line.startswith('model name'):
                return line.partition(':')[2].strip()
    return platform.processor() or platform.machine()
