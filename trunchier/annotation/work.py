"""Work that any number of processes share through a folder: what is done, and who does what.

    OUT/run.json                   what all workers agree on; another model is refused
    OUT/inputs-*.json              what was given, so that `merge` knows what is missing
    OUT/parts/ab/KEY-STATE.npz     result of one input, complete or absent
    OUT/claims/KEY                 a worker is at this input; a link to the worker's own file

KEY is a digest of the path and decides the shard; STATE is one of the file's size and time and of
the settings. The modification time of a worker's file is its heartbeat, for all its claims at once.
Claims save work and nothing more: two workers at one input would write the same part twice.
"""

import hashlib
import json
import os
import re
import secrets
import socket
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..files import whole_file
from ..inference import sources
from ..inference.sources import Source

STALE = 60.0  # seconds without a heartbeat after which a worker counts as dead
# Variables that number the processes of a job: (index, count).
SHARDS = (
    ('SLURM_ARRAY_TASK_ID', 'SLURM_ARRAY_TASK_COUNT'),
    ('JOB_COMPLETION_INDEX', 'JOB_COMPLETIONS'),
    ('RANK', 'WORLD_SIZE'),
)


class OtherRun(ValueError):
    """The folder holds results of another model or other settings."""


@dataclass(frozen=True)
class Shard:
    """Share `index` of `count` of all inputs."""

    index: int = 0
    count: int = 1

    def __post_init__(self):
        if not 0 <= self.index < self.count:
            raise ValueError(
                f'shard {self.index}/{self.count}: expected INDEX/COUNT with 0 <= INDEX < COUNT'
            )

    def __contains__(self, key: str) -> bool:
        return int(key, 16) % self.count == self.index


def parse_shard(text: str) -> Shard:
    """Shard of 'INDEX/COUNT'; ValueError if it is none."""
    match = re.fullmatch(r'(\d+)/(\d+)', text)
    if not match:
        raise ValueError(f'shard {text!r}: expected INDEX/COUNT, such as 0/8')
    return Shard(int(match[1]), int(match[2]))


def shard_of_job(environ: Mapping[str, str] = os.environ) -> Shard:
    """Shard by the variables that Slurm arrays, Kubernetes' indexed jobs and torchrun set.

    Raises:
        ValueError: an index without a count, as Kubernetes sets it.
    """
    for index, count in SHARDS:
        if index not in environ:
            continue
        if count not in environ:
            raise ValueError(f'{index} is set, {count} is not: set it, or give --shard INDEX/COUNT')
        first = int(environ.get('SLURM_ARRAY_TASK_MIN', 0)) if index.startswith('SLURM') else 0
        step = int(environ.get('SLURM_ARRAY_TASK_STEP', 1)) if index.startswith('SLURM') else 1
        return Shard((int(environ[index]) - first) // step, int(environ[count]))
    return Shard()


@dataclass(frozen=True)
class Unit:
    """An input: an image or a video.

    Attributes:
        file_name: path relative to OUT, or URL.
        key: digest of `file_name`.
    """

    source: Source
    file_name: str
    key: str


def units(inputs: Iterable[str], out: Path) -> Iterator[Unit]:
    """Images and videos of `inputs`, each once, in the order of `sources.find`.

    Raises:
        ValueError: a camera or stream, which has no end. Others: as `sources.find`.
    """
    seen = set()
    for source in sources.find(list(inputs)):
        if source.kind == 'camera' or source.path is None:
            raise ValueError(f'{source.name}: only files and http(s) addresses can be annotated')
        url = sources.is_url(source.path)
        name = source.path if url else Path(os.path.relpath(source.path, out)).as_posix()
        key = _digest(name)
        if key not in seen:
            seen.add(key)
            yield Unit(source, name, key)


def _digest(text):
    return hashlib.blake2b(os.fsencode(text), digest_size=8).hexdigest()


# --- The folder -----------------------------------------------------------------------------------
class Workplace:
    """Folder OUT of a run; `settings` as plain data, None: those of the run that is there.

    Attributes:
        settings: of the run.

    Raises:
        OtherRun: results of another model or of other settings are there.
        FileNotFoundError: without settings, no run.
    """

    def __init__(self, out: str | Path, settings: dict | None = None):
        self.out = Path(out)
        self.parts, self.claims = self.out / 'parts', self.out / 'claims'
        path = self.out / 'run.json'
        if not path.exists():
            if settings is None:
                raise FileNotFoundError(f'{self.out} holds no run of `trunchier annotate`')
            with whole_file(path) as part:
                part.write_text(json.dumps(settings, indent=1), encoding='utf-8')
        self.settings = json.loads(path.read_text(encoding='utf-8'))
        if settings is not None:
            self._check(json.loads(json.dumps(settings)))
        self.state = _digest(json.dumps(self.settings, sort_keys=True))

    def _check(self, settings):
        then, now = self.settings, settings
        changed = [name for name in {**then, **now} if then.get(name) != now.get(name)]
        if not changed:
            return
        if {'model', 'digest'} & set(changed):
            raise OtherRun(
                f'{self.out} holds annotations by {then.get("model")} (weights of digest '
                f'{then.get("digest")}), not by {now["model"]} ({now["digest"]}): choose another '
                'folder with --out'
            )
        text = ', '.join(f'{n} was {then.get(n)!r}, is {now.get(n)!r}' for n in changed)
        raise OtherRun(f'{self.out} was begun with other settings ({text}); choose another --out')

    def remember(self, inputs: list[str]) -> None:
        """Note what was given, for `given`."""
        paths = [str(each) if sources.is_url(each) else os.path.abspath(each) for each in inputs]
        paths = [
            each if sources.is_url(each) else os.path.relpath(each, self.out) for each in paths
        ]
        text = json.dumps(paths)
        path = self.out / f'inputs-{_digest(text)}.json'
        if not path.exists():
            with whole_file(path) as part:
                part.write_text(text, encoding='utf-8')

    def given(self) -> list[str]:
        """Inputs of all workers."""
        found = []
        for path in sorted(self.out.glob('inputs-*.json')):
            for each in json.loads(path.read_text(encoding='utf-8')):
                found.append(each if sources.is_url(each) else os.path.normpath(self.out / each))
        return list(dict.fromkeys(found))

    def part(self, unit: Unit) -> Path:
        """File of the result of an input as it is now."""
        stamp = ''
        if not sources.is_url(unit.source.path):
            with suppress(OSError):  # reading will say so
                status = os.stat(unit.source.path)
                stamp = f'{status.st_size} {status.st_mtime_ns}'
        name = f'{unit.key}-{_digest(f"{stamp} {self.state}")}.npz'
        return self.parts / unit.key[:2] / name


class Claims:
    """Claims of one process, with its heartbeat: `with Claims(folder) as claims`.

    Args:
        stale: seconds without a heartbeat after which another worker counts as dead. One that ended
            on this machine is known to be dead at once.

    Raises:
        OSError: the file system has no hard links.
    """

    def __init__(self, folder: Path, stale: float = STALE):
        self.folder, self.stale = folder, stale
        self.own = folder / f'.{secrets.token_hex(8)}'
        self.host, self.ended = socket.gethostname(), threading.Event()
        self.taken = set()

    def __enter__(self) -> 'Claims':
        self.folder.mkdir(parents=True, exist_ok=True)
        self._bury()
        self.own.write_text(f'{self.host} {os.getpid()}', encoding='utf-8')
        threading.Thread(target=self._beat, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of everything."""
        self.ended.set()
        for key in list(self.taken):
            self.release(key)
        self.own.unlink(missing_ok=True)

    def _beat(self):
        while not self.ended.wait(self.stale / 6):
            with suppress(OSError):
                os.utime(self.own)

    def take(self, key: str) -> bool:
        """Claim an input; False: a living worker has it."""
        path = self.folder / key
        for _ in range(2):
            try:
                os.link(self.own, path)
                self.taken.add(key)
                return True
            except FileExistsError:
                if self.holder(key) is not None:
                    return False
                with suppress(FileNotFoundError):  # another one was faster
                    path.unlink()
            except OSError as error:
                raise OSError(
                    error.errno,
                    f'{error.strerror}: claims require a file system with hard links; choose '
                    'another --out',
                    str(path),
                ) from error
        return False

    def holder(self, key: str) -> str | None:
        """'HOST PID' of the living worker that has an input."""
        return self._living(self.folder / key)

    def release(self, key: str) -> None:
        self.taken.discard(key)
        (self.folder / key).unlink(missing_ok=True)

    def _living(self, path):
        try:
            text, beat = path.read_text(encoding='utf-8'), path.stat().st_mtime
            with suppress(FileNotFoundError):  # after the end
                os.utime(self.own)
                # The clock of the file system, which may not be this machine's.
                if self.own.stat().st_mtime - beat > self.stale:
                    return None
        except FileNotFoundError:
            return None
        host, _, process = text.rpartition(' ')
        if not process:  # its file is just being written
            return 'a worker that just began'
        return None if host == self.host and not _runs(int(process)) else text

    def _bury(self):
        """Remove the files of dead workers."""
        self.own.touch()
        for path in self.folder.glob('.*'):
            if path != self.own and self._living(path) is None:
                path.unlink(missing_ok=True)


def _runs(process):
    if sys.platform == 'win32':  # os.kill would end it; its heartbeat must do
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        pass
    return True
