"""Data set of people in tar shards of 4D-Humans, with random access.

A shard holds `KEY.jpg` (or jpeg, png), `KEY.data.pyd` (a pickled list of dicts, one per person) and
perhaps `KEY.detection.npz` (their masks), in webdataset's layout. Each shard is read once to index
it: offsets of its members, people kept by the filters, bad records. Indices are stored in a folder
`.trunchier_index` beside the shards and renewed when the shard or the filters change. Pickles are
read by `files.pickles` only.
"""

import json
import os
import re
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from glob import glob
from pathlib import Path
from zlib import crc32

import numpy as np
from mmengine import dist
from mmengine.logging import print_log
from mmengine.registry import DATASETS

from ..files import read_npz, save_npz
from ..files.download import cache_folder
from ..files.processes import in_processes
from ..files.remote import RangeCache, is_remote, matching, state_of
from .annotations import (
    AnnotationFilter,
    BadRecord,
    check_annotation,
    check_bad_share,
    log_warning,
)
from .people import People, generator
from .shard_index import (
    add_facts,
    count_lost,
    decode_image,
    describe_facts,
    index_shard,
    read_index,
    read_mask,
    read_people,
)


@DATASETS.register_module()
class ShardPeople(People):
    """People in tar shards.

    Args:
        urls: tar files: paths with {000000..000312} or *, or folders; or addresses (s3://, gs://,
            https://), see `files.remote`.
        name, pipeline: see `People`; the default name is the folder's.
        filters: arguments of `AnnotationFilter`, HMR2.0's by default; None keeps all.
        masks: read the person's mask from detection.npz, if there is one.
        index_dir: folder of the indices, if that of the shards is read-only or remote (then the
            default is one in the cache of downloads).
        max_bad_share: maximum share of bad records.
        cache_dir, cache_bytes: folder for what was read of remote shards, and its limit; 0: none.

    Raises (in `full_init`):
        FileNotFoundError: a shard is missing.
        OSError: a server cannot be reached, or serves no byte ranges.
        RuntimeError: too many bad records.
        ValueError: no person is left.
    """

    GROUP = 16  # shards that are shuffled together
    OPEN_FILES = 64

    def __init__(
        self,
        urls: str | Path | Sequence[str | Path],
        name: str | None = None,
        filters: dict | Sequence | None = (),
        pipeline: Sequence = (),
        masks: bool = False,
        index_dir: str | Path | None = None,
        max_bad_share: float = 0.01,
        cache_dir: str | Path | None = None,
        cache_bytes: int = 16 << 30,
    ):
        self.paths = expand_urls(urls)
        super().__init__(name or Path(self.paths[0]).absolute().parent.name, pipeline)
        self.cache = RangeCache(cache_dir or cache_folder() / 'shards', cache_bytes)
        self._tags = {}  # of remote shards
        self.filter = None if filters is None else AnnotationFilter(**dict(filters))
        self.masks = masks
        self.index_dir = index_dir
        self.max_bad_share = max_bad_share
        self.facts = None
        self._begins = None
        self._unsaved = {}
        self.__setstate__({})

    def __getstate__(self):
        return {k: v for k, v in vars(self).items() if k not in ('_files', '_streams', '_index')}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._files = OrderedDict()
        self._streams = {}
        self._index = lru_cache(maxsize=self.OPEN_FILES)(self._load_index)

    # --- Index -----------------------------------------------------------------------------------
    def full_init(self) -> None:
        """Index the shards; ranks share those without an index."""
        super().full_init()
        if self._begins is not None:
            return
        missing = [p for p in self.paths if not (is_remote(p) or Path(p).is_file())]
        if missing:
            raise FileNotFoundError(
                f'{self.name}: {len(missing)} of {len(self.paths)} shards are missing, the first '
                f'is {missing[0]}; tools/check_data.py lists them; see "Data" in docs/data.md'
            )
        if self.filter is not None:
            self.filter.load()
        rank, world = dist.get_dist_info()
        own = {path: self._index_facts(path) for path in self.paths[rank::world]}
        dist.barrier()
        facts = count_lost([own.get(path) or self._index_facts(path) for path in self.paths])
        self._begins = np.cumsum([0] + [fact['persons'] for fact in facts])
        self.facts = add_facts(facts)
        print_log(f'{self.name}: {describe_facts(self.facts)}', logger='current')
        good = self.facts['persons'] + sum(self.facts['dropped'].values())
        check_bad_share(self.name, good, self.facts['bad'], self.max_bad_share)
        if not len(self):
            raise ValueError(f'{self.name}: no person is left ({describe_facts(self.facts)})')

    def index(self, workers: int = 1) -> dict:
        """Index all shards in several processes, ahead of training; returns `add_facts`."""
        if self.filter is not None:
            self.filter.load()
        if workers == 1:
            return add_facts([self._index_facts(path) for path in self.paths])
        # Forking a process in which OpenCV or torch has threads may hang.
        return add_facts([*in_processes(self._index_facts, self.paths, workers, 'spawn', 3600)])

    def index_path(self, path: str | Path) -> Path:
        """Path of the index of a shard."""
        settings = repr(self.filter)  # equal for equal filters
        folder = self.index_dir
        if is_remote(path):
            settings += str(path)
            folder = folder or cache_folder() / 'indices'
        path = Path(path).absolute()
        folder = Path(folder) if folder else path.parent / '.trunchier_index'
        return folder / f'{path.parent.name}-{path.stem}-{crc32(settings.encode()):08x}.npz'

    def _index_facts(self, path):
        """Facts about a shard (see `index_shard`); indexes it if its index is missing or stale."""
        try:
            size, self._tags[path] = state_of(path)
        except FileNotFoundError as error:
            raise FileNotFoundError(f'{self.name}: no shard {path}') from error
        stamp = dict(version=2, size=size, mtime=self._tags[path])
        target = self.index_path(path)
        if target.is_file():
            try:
                return read_index(target, stamp)[2]
            except Exception as error:  # zipfile and numpy raise whatever damage leads to
                print_log(f'{target} is made anew ({error})', 'current')
        members, persons, facts = index_shard(path, self.filter)
        facts['stamp'] = stamp
        try:
            save_npz(target, members=members, persons=persons, facts=json.dumps(facts))
        except OSError as error:
            if not self._unsaved:
                log_warning(
                    f'{self.name}: the index cannot be saved ({error}) and will be rebuilt in '
                    'each run; set index_dir to a writable folder'
                )
            self._unsaved[path] = members, persons
        return facts

    def _load_index(self, number):
        path = self.paths[number]
        if path in self._unsaved:
            return self._unsaved[path]
        saved = read_npz(self.index_path(path), ['members', 'persons'])
        return saved['members'], saved['persons']

    @property
    def _starts(self):
        """Index of the first person of each shard, and the number of people."""
        if self._begins is None:
            self.full_init()
        return self._begins

    # --- Records ---------------------------------------------------------------------------------
    def __len__(self) -> int:
        return int(self._starts[-1])

    def record(self, index: int) -> dict:
        number = int(np.searchsorted(self._starts, index, side='right')) - 1
        members, persons = self._index(number)
        member, person = persons[index - self._starts[number]]
        member = members[member]
        path = self.paths[number]
        key = member['key'].decode()
        people = read_people(self._read(path, member['data'], member['data_size']))
        if person >= len(people):
            raise BadRecord('unreadable annotation', f'{len(people)} people, expected {person + 1}')
        annotation = check_annotation(people[person])
        if self.filter is not None:
            self.filter(annotation)
        mask = None
        if self.masks and member['masks_size']:
            number = annotation['extra_info'].get('detection_npz_idx')
            mask = read_mask(self._read(path, member['masks'], member['masks_size']), number)
        return dict(
            annotation,
            image=decode_image(self._read(path, member['image'], member['image_size'])),
            mask=mask,
            key=key,
            dataset=self.name,
            img_path=f'{path}/{key}',
            id=int(index),
        )

    def _read(self, path, offset, size):
        if is_remote(path):
            return self.cache.read(path, int(offset), int(size), self._tags[path])
        if path in self._files:
            self._files.move_to_end(path)
        else:
            self._files[path] = os.open(path, os.O_RDONLY)
            if len(self._files) > self.OPEN_FILES:
                os.close(self._files.popitem(last=False)[1])
        return os.pread(self._files[path], int(size), int(offset))

    def locate(self, seed: int, position: int) -> int:
        """Shards are drawn with replacement; the people of GROUP shards are shuffled together."""
        if seed not in self._streams:
            self._streams[seed] = _Visits(seed, self.name, self._starts, self.GROUP)
        return self._streams[seed][position]


class _Visits:
    """Infinite stream over shards drawn with replacement, in groups, in chunks of groups.

    A position depends only on the lengths of earlier chunks.
    """

    CHUNK = 4096

    def __init__(self, seed, name, starts, group):
        self.seed = seed, name
        counts = np.diff(starts)
        self.first = starts[:-1][counts > 0]
        self.counts = counts[counts > 0]
        self.group = min(group, len(self.counts))
        self._ends = [0]  # of chunks
        self._chunk = lru_cache(maxsize=2)(self._draw_chunk)
        self._order = lru_cache(maxsize=4)(self._draw_order)

    def __getitem__(self, position):
        while self._ends[-1] <= position:
            self._ends.append(self._ends[-1] + int(self._chunk(len(self._ends) - 1)[1][-1]))
        chunk = bisect_right(self._ends, position) - 1
        position -= self._ends[chunk]
        ends = self._chunk(chunk)[1]
        group = int(np.searchsorted(ends, position, side='right')) - 1
        return int(self._order(chunk, group)[position - ends[group]])

    def _draw_chunk(self, chunk):
        """Shards of each group (CHUNK, group), and bounds of the groups (CHUNK + 1,)."""
        rng = generator('visits', *self.seed, chunk)
        shards = rng.integers(len(self.counts), size=(self.CHUNK, self.group))
        return shards, np.cumsum([0, *self.counts[shards].sum(1)])

    def _draw_order(self, chunk, group):
        shards = self._chunk(chunk)[0][group]
        people = np.concatenate([self.first[s] + np.arange(self.counts[s]) for s in shards])
        return generator('group', *self.seed, chunk, group).permutation(people)


# --- Paths ----------------------------------------------------------------------------------------
def expand_urls(urls: str | Path | Sequence[str | Path]) -> list[str]:
    """Expand {000..012} (leading zeros are kept), * and folders to paths of tar files.

    Raises:
        FileNotFoundError: no tar file matches.
        ValueError: an address that cannot be read, or no path at all.
    """
    paths = []
    for url in [urls] if isinstance(urls, str | Path) else urls:
        url = os.path.expanduser(os.path.expandvars(str(url)))
        if url.startswith('pipe:'):
            raise ValueError(f'{url} is a command, which is not run; give a path or an address')
        if is_remote(url):
            paths += matching(url) if '*' in url else _expand_braces(url)
            continue
        if os.path.isdir(url):
            url = os.path.join(url, '*.tar')
        if '*' in url:
            found = sorted(glob(url))
            if not found:
                raise FileNotFoundError(f'no tar file matches {url}')
            paths += found
        else:
            paths += _expand_braces(url)
    if not paths:
        raise ValueError('urls is empty')
    return paths


def _expand_braces(url):
    match = re.search(r'\{(\d+)\.\.(\d+)\}', url)
    if match is None:
        return [url]
    width = max(map(len, match.groups()))
    numbers = range(int(match[1]), int(match[2]) + 1)
    head, tail = url[: match.start()], url[match.end() :]
    return [path for n in numbers for path in _expand_braces(f'{head}{n:0{width}}{tail}')]
