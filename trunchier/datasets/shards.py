"""Data set of people in tar shards of 4D-Humans, with random access.

A shard holds `KEY.jpg` (or jpeg, png), `KEY.data.pyd` (a pickled list of dicts, one per person) and
perhaps `KEY.detection.npz` (their masks), in webdataset's layout. Each shard is read once to index
it: offsets of its members, people kept by the filters, bad records. Indices are stored in a folder
`.trunchier_index` beside the shards and renewed when the shard or the filters change. Pickles are
read by `files.pickles` only.
"""

import io
import json
import os
import pickle
import re
import tarfile
from bisect import bisect_right
from collections import Counter, OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from glob import glob
from pathlib import Path
from zlib import crc32

import cv2
import numpy as np
from mmengine import dist
from mmengine.logging import print_log
from mmengine.registry import DATASETS

from ..files import images, pickles, read_npz, save_npz
from ..files.download import cache_folder
from ..files.processes import in_processes
from ..files.remote import RangeCache, is_remote, matching, open_anywhere, state_of
from .annotations import (
    AnnotationFilter,
    BadRecord,
    check_annotation,
    check_bad_share,
    describe,
    log_warning,
)
from .people import People, generator

# Images of aic-train and aic-train-vitpose that do not decode.
CORRUPT_KEYS = {
    '0394e6dc4df78042929b891dbc24f0fd7ffb6b6d',
    '0a047f0124ae48f8eee15a9506ce1449ee1ba669',
    '1a703aa174450c02fbc9cfbf578a5435ef403689',
    '39596a45cbd21bed4a5f9c2342505532f8ec5cbb',
    '3d33283b40610d87db660b62982f797d50a7366b',
    '4a77adb695bef75a5d34c04d589baf646fe2ba35',
    '5c032b9626e410441544c7669123ecc4ae077058',
    'a0689017b1065c664daef4ae2d14ea03d543217e',
    'ca018a7b4c5f53494006ebeeff9b4c0917a55f07',
}


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


# --- Reading a shard -----------------------------------------------------------------------------
IMAGES = ('jpg', 'jpeg', 'png')
FIELDS = {**dict.fromkeys(IMAGES, 'image'), 'data.pyd': 'data', 'detection.npz': 'masks'}
MAX_ANNOTATION = 64 << 20  # bytes of the people of one image
MAX_MASKS = 1 << 30  # bytes of their masks, decompressed
MAX_PADDING = 1 << 20  # bytes of zeros at the end of a tar
MEMBER = [(f + suffix, np.int64) for f in ('image', 'data', 'masks') for suffix in ('', '_size')]


def read_index(path: str | Path, stamp: dict) -> tuple[np.ndarray, np.ndarray, dict]:
    """What `index_shard` returned and was saved.

    Args:
        stamp: version, and size (bytes) and time of the shard.

    Raises:
        Exception: of any kind; it is damaged, or about another state of the shard.
    """
    saved = read_npz(path)
    members, persons, facts = saved['members'], saved['persons'], json.loads(str(saved['facts']))
    if facts['stamp'] != stamp:
        raise ValueError('the shard has changed')
    key, *fields = members.dtype.descr
    whole = key[0] == 'key' and np.dtype(fields) == np.dtype(MEMBER) and members.ndim == 1
    whole &= persons.shape == (facts['persons'], 2) and persons.dtype == np.int32
    for field in ('image', 'data', 'masks'):
        offsets, sizes = members[field], members[field + '_size']
        whole &= bool(((offsets >= 0) & (sizes >= 0) & (offsets <= stamp['size'] - sizes)).all())
    whole &= bool(((persons >= 0) & (persons[:, :1] < len(members))).all())
    add_facts([facts])
    if not whole:
        raise ValueError('it is damaged')
    np.char.decode(members['key'], 'utf-8')
    return members, persons, facts


def index_shard(
    path: str, filter: AnnotationFilter | None = None
) -> tuple[np.ndarray, np.ndarray, dict]:
    """Index one tar file.

    Returns:
        members (M,) structured: key, and offset and size in bytes of image, data and masks;
        persons (N, 2): indices of the member, and into its list of people;
        facts: dict with `members` and `persons` (numbers), `bad` and `dropped` (counts by kind),
        `changed` (annotations that the filter removed), `examples` (of bad records).
    """
    groups, bad, examples = {}, Counter(), []

    def count(kind, name, reason):
        bad[kind] += 1
        if len(examples) < 5:
            examples.append(f'{name}: {kind} ({reason})')

    with open_anywhere(path) as file:
        for name, offset, size in _walk(file, path, count):
            match = re.match(r'((?:.*/)?[^./]+)\.([^/]*)$', name)
            field = FIELDS.get(match[2].lower()) if match else None
            if field and not _is_corrupt(match[1]):
                groups.setdefault(match[1], {})[field] = offset, size

        rows, persons, dropped, changed = [], [], Counter(), Counter()
        for key, group in groups.items():
            try:
                people = _read_group(file, key, group)
            except BadRecord as error:
                count(error.kind, f'{path}/{key}', error)
                continue
            kept = []
            for number, data in enumerate(people):
                try:
                    annotation = check_annotation(data)
                except BadRecord as error:
                    count(error.kind, f'{path}/{key} person {number}', error)
                    continue
                reason = _filter_and_count(annotation, filter, changed)
                if reason is None:
                    kept.append((len(rows), number))
                else:
                    dropped[reason] += 1
            if kept:
                persons += kept
                spans = [group.get(field, (0, 0)) for field in ('image', 'data', 'masks')]
                rows.append((key.encode(), *(n for span in spans for n in span)))

    longest = max((len(key) for key, *_ in rows), default=1)
    members = np.array(rows, dtype=[('key', f'S{longest}'), *MEMBER])
    persons = np.array(persons, np.int32).reshape(-1, 2)
    facts = dict(shards=1, members=len(groups), persons=len(persons), examples=examples)
    return members, persons, dict(facts, bad=bad, dropped=dropped, changed=changed)


def _read_group(file, key, group):
    """The list of people of one image."""
    if not {'image', 'data'} <= set(group):
        raise BadRecord('incomplete member', f'only {sorted(group)}')
    if not key.isascii() and any('\ud800' <= letter <= '\udfff' for letter in key):
        raise BadRecord('incomplete member', f'the name {key!r} is not UTF-8')
    offset, size = group['data']
    if size > MAX_ANNOTATION:
        raise BadRecord(
            'unreadable annotation', f'{size} bytes, above the limit of {MAX_ANNOTATION}'
        )
    file.seek(offset)
    return read_people(file.read(size))


def _walk(file, path, count):
    """(name, offset, size) of the regular members of a tar, up to the first damage."""
    end = file.seek(0, os.SEEK_END)
    file.seek(0)
    found = False
    try:
        with tarfile.open(fileobj=file, mode='r:') as tar:
            file.seek(0)  # of an empty archive Python 3.10 seeks the byte before its position
            while (member := tar.next()) is not None:
                if member.offset_data + member.size > end:
                    raise tarfile.ReadError(f'{member.name} is truncated at byte {end}')
                if member.isreg():
                    yield member.name, member.offset_data, member.size
                found = True
                tar.members = []
            file.seek(tar.offset)
            if file.read(512).strip(b'\0') or tar.offset >= end:
                raise tarfile.ReadError(f'no end mark at byte {tar.offset} of {end}')
            rest = file.read(MAX_PADDING + 1)
            if len(rest) > MAX_PADDING or rest.strip(b'\0') or (not found and len(rest) > 10240):
                raise tarfile.ReadError(f'{end - tar.offset} bytes from byte {tar.offset} are lost')
    except (tarfile.TarError, ValueError, OverflowError) as error:
        count('damaged shard', path, f'{error}; download it again')


def _is_corrupt(key):
    folder, _, name = key.rpartition('/')
    return name in CORRUPT_KEYS and folder.rpartition('/')[2].startswith('aic-train')


def _filter_and_count(annotation, filter, changed):
    if filter is None:
        return None
    had_pose, had_betas = annotation['has_pose'] > 0, annotation['has_betas'] > 0
    wide = had_betas and np.abs(annotation['betas']).max() > filter.max_beta
    reason = filter(annotation)
    if wide:
        changed['betas out of range'] += 1
    elif had_pose and had_betas and not annotation['has_pose'] > 0:
        changed['improbable pose'] += 1
    return reason


def read_people(data: bytes) -> list | tuple:
    """Unpickle the list of annotations in a `.data.pyd`.

    Raises:
        BadRecord: a forbidden class, not a pickle, or not a list.
    """
    try:
        people = pickles.load(data)
    except (pickle.UnpicklingError, ImportError) as error:
        raise BadRecord('unreadable annotation', str(error)) from error
    if not isinstance(people, list | tuple):
        raise BadRecord('unreadable annotation', f'expected a list, got {type(people)}')
    return people


def read_mask(data: bytes, index: int) -> np.ndarray:
    """One mask of a `.detection.npz`: (H, W) uint8, 255 on the person.

    Raises:
        BadRecord: no such mask, not an npz of masks, or one above MAX_MASKS.
    """
    try:
        masks = read_npz(io.BytesIO(data), ['masks'], MAX_MASKS)['masks']
        index = int(index)
        if masks.ndim != 3 or not 0 <= index < len(masks) or masks.dtype.kind not in 'biuf':
            raise ValueError(f'no mask {index} in masks {masks.dtype} {masks.shape}')
        return masks[index].astype(np.uint8) * 255
    except Exception as error:  # zipfile and numpy raise whatever damage leads to
        raise BadRecord('unreadable mask', f'{type(error).__name__}: {error}') from error


def decode_image(data: bytes) -> np.ndarray:
    """Decode an image to (H, W, 3) uint8 BGR; the EXIF orientation is ignored.

    Raises:
        BadRecord: see `files.images`; or truncated (OpenCV fills the rest with gray).
    """
    if data[:2] == b'\xff\xd8' and data.rfind(b'\xff\xd9') < data.rfind(b'\xff\xda'):
        raise BadRecord('undecodable image', f'truncated JPEG of {len(data)} bytes')
    if data[:4] == b'\x89PNG' and b'IEND' not in data[-64:]:
        raise BadRecord('undecodable image', f'truncated PNG of {len(data)} bytes')
    try:
        return images.decode_image(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except images.ImageError as error:
        raise BadRecord('undecodable image', str(error)) from error


# --- Paths and facts -----------------------------------------------------------------------------
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


def add_facts(facts: Sequence[dict]) -> dict:
    """Sum of the facts about several shards."""
    total = {name: sum(f[name] for f in facts) for name in ('shards', 'members', 'persons')}
    for kind in ('bad', 'dropped', 'changed'):
        total[kind] = sum((Counter(f[kind]) for f in facts), Counter())
    return dict(total, examples=[example for f in facts for example in f['examples']][:20])


def count_lost(facts: Sequence[dict]) -> list[dict]:
    """Facts about all shards, in which a damaged one counts for the people that it has lost.

    It should hold as many as the others do; if all are damaged, twice what is left.
    """
    held = [f['persons'] + Counter(f['dropped']).total() for f in facts]
    damaged = ['damaged shard' in f['bad'] for f in facts]
    whole = [number for number, bad in zip(held, damaged, strict=True) if not bad]
    counted = []
    for fact, number, bad in zip(facts, held, damaged, strict=True):
        if bad:
            expected = np.median(whole) if whole else max(2 * number, np.mean(held))
            lost = max(1, round(expected - number))
            fact = dict(fact, bad={**fact['bad'], 'damaged shard': lost})
        counted.append(fact)
    return counted


def describe_facts(facts: dict) -> str:
    """One-line summary of a data set."""
    text = '{shards} shards, {members} images, {persons} people'.format(**facts)
    text += ''.join(f'; {kind}: {describe(facts[kind])}' for kind in ('dropped', 'changed', 'bad'))
    return text + (f', such as {facts["examples"][0]}' if facts['examples'] else '')
