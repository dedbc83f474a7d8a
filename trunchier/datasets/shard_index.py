"""Index of a tar shard of 4D-Humans: its members and people, read once; facts about shards.

An index is stored beside its shard (see `shards`). Pickles are read by `files.pickles` only.
"""

import io
import json
import os
import pickle
import re
import tarfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from ..files import images, pickles, read_npz
from ..files.remote import open_anywhere
from .annotations import AnnotationFilter, BadRecord, check_annotation, describe

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


# --- Facts ----------------------------------------------------------------------------------------
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
