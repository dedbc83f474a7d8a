"""Synthetic people as a data set on disk, in COCO's format.

    DIR/images/000000.jpg ...
    DIR/annotations.json       what stock CocoDataset and CocoMetric read
    DIR/bodies.npz             body parameters and 3D joints, a row for each annotation

A set appears whole or not at all: it is written beside DIR and renamed when it is complete.
"""

import json
import os
import shutil
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np

from ..conventions import COCO_17, COCO_17_SKELETON
from .people import SyntheticPeople

FORMAT = 1  # of the pictures: raise it when the same seed gives others
BODY_ARRAYS = (
    'keypoints_2d', 'keypoints_3d', 'center', 'scale', 'body_pose', 'betas', 'translation',
    'has_body_pose', 'has_betas',
)  # fmt: skip


def write_coco(
    out, num, seed=0, size=256, max_people=1, backgrounds=None, plain=False, workers=1, quiet=None
):
    """Make `num` pictures and their annotations in the folder `out`.

    The bytes depend on the options but not on `workers`. A folder that already holds just this
    set is left as it is.

    Args:
        out: folder to make.
        num: pictures.
        seed, size, max_people, backgrounds, plain: see people.SyntheticPeople.
        workers: processes; 1 works in this one.
        quiet: no progress bar; None: only where stderr is a terminal.

    Returns:
        dict: images, people, unreadable (background files that were skipped), seconds.

    Raises:
        FileExistsError: `out` holds something else.
        ValueError, FileNotFoundError: options that cannot work.
    """
    if num < 1:
        raise ValueError(f'num is {num}; wanted 1 or more pictures')
    if workers < 1:
        raise ValueError(f'workers is {workers}; wanted 1 or more processes')
    out = Path(out)
    options = dict(
        seed=seed, size=size, max_people=max_people, plain=plain,
        backgrounds=None if backgrounds is None else str(backgrounds),
    )  # fmt: skip
    people = SyntheticPeople(**options, length=num)
    info = dict(description='synthetic people of trunchier', format=FORMAT, num=num, **options)
    info['size'] = list(people.size)
    if _already_there(out, info):
        annotations = json.loads((out / 'annotations.json').read_text())['annotations']
        return dict(images=num, people=len(annotations), unreadable=[], seconds=0.0)

    start = time.monotonic()
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f'.{out.name}.', suffix='.partial', dir=out.parent))
    try:
        count, unreadable = _write(partial, people, info, workers, quiet)
        partial.chmod(0o755)
        os.replace(partial, out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return dict(
        images=num, people=count, unreadable=sorted(unreadable), seconds=time.monotonic() - start
    )


def _already_there(out, info):
    if not out.exists():
        return False
    if not out.is_dir():
        raise FileExistsError(f'{out} is a file; choose another folder for the data set')
    if not any(out.iterdir()):
        return False
    try:
        found = json.loads((out / 'annotations.json').read_text())['info']
    except (OSError, ValueError, KeyError, TypeError):
        found = None
    if found == info:
        return True
    what = 'other content' if found is None else f'a set made with other options ({found})'
    raise FileExistsError(f'{out} holds {what}; delete it or choose another folder')


def _write(folder, people, info, workers, quiet):
    """Fill the folder -> number of people, set of unreadable background files."""
    (folder / 'images').mkdir()
    images, annotations, unreadable = [], [], set()
    bodies = {name: [] for name in (*BODY_ARRAYS, 'focal', 'principal_point', 'image_id')}
    width, height = people.size
    bar = Progress(len(people), quiet)
    for index, (jpeg, found, camera, missing) in enumerate(_pictures(people, workers)):
        name = f'{index:06d}.jpg'
        (folder / 'images' / name).write_bytes(jpeg)
        images.append(dict(id=index + 1, file_name=name, width=width, height=height))
        for person in found:
            annotations.append(coco_annotation(person, len(annotations) + 1, index + 1))
            for array in BODY_ARRAYS:
                bodies[array].append(person[array])
            bodies['focal'].append(camera.focal)
            bodies['principal_point'].append(camera.centre)
            bodies['image_id'].append(index + 1)
        unreadable |= missing
        bar.step()
    bar.close()

    arrays = {
        name: np.array(rows, dtype=np.int64 if name == 'image_id' else np.float32)
        for name, rows in bodies.items()
    }
    arrays['annotation_id'] = np.arange(1, len(annotations) + 1)
    np.savez(folder / 'bodies.npz', **arrays)
    category = dict(
        id=1, name='person', supercategory='person', keypoints=list(COCO_17),
        skeleton=[[a + 1, b + 1] for a, b in COCO_17_SKELETON],
    )  # fmt: skip
    coco = dict(
        info=info, licenses=[], images=images, annotations=annotations, categories=[category]
    )
    (folder / 'annotations.json').write_text(json.dumps(coco, separators=(',', ':')))
    return len(annotations), unreadable


def coco_annotation(person, annotation_id, image_id):
    """One entry of COCO's `annotations` from a dict of people.annotate."""
    keypoints = [
        value
        for x, y, v in person['keypoints'].tolist()
        for value in (round(x, 2), round(y, 2), int(v))
    ]
    return dict(
        id=annotation_id,
        image_id=image_id,
        category_id=1,
        iscrowd=0,
        bbox=person['bbox'].tolist(),
        area=person['area'],
        num_keypoints=int((person['keypoints'][:, 2] > 0).sum()),
        keypoints=keypoints,
        segmentation=encode_mask(person['mask']),
    )


def encode_mask(mask):
    """COCO's compressed run lengths, as pycocotools writes them.

    Runs of 0 and 1 in turn, down the columns; from the fourth on, the difference to the one two
    before; five bits a character, low bits first, the sixth says that more follow.

    Args:
        mask: (H, W) bool.

    Returns:
        dict(size=[H, W], counts=str).
    """
    flat = mask.T.reshape(-1)
    edges = np.nonzero(flat[1:] != flat[:-1])[0] + 1
    runs = np.diff(np.concatenate(([0], edges, [len(flat)])))
    if flat[0]:
        runs = np.concatenate(([0], runs))
    values = runs.copy()
    values[3:] -= runs[1:-2]
    text = []
    for value in values.tolist():
        more = True
        while more:
            bits = value & 31
            value >>= 5
            more = value != (-1 if bits & 16 else 0)
            text.append(chr(48 + bits + (32 if more else 0)))
    return dict(size=list(mask.shape), counts=''.join(text))


# ---------------------------------------------------------------------------------------------
# Processes
# ---------------------------------------------------------------------------------------------
def _pictures(people, workers):
    """(jpeg, people, camera, unreadable background files) of each picture, in order."""
    if workers == 1:
        for index in range(len(people)):
            yield *people.picture(index), people.unreadable
        return
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # so that no thread pool is there to be forked, or to fight the processes
    pool = None
    try:
        people.picture(0)  # compiles, once for all
        method = 'fork' if sys.platform == 'linux' else 'spawn'  # a fork need not import torch
        pool = ProcessPoolExecutor(workers, get_context(method), _start_worker, (people,))
        yield from pool.map(_work, range(len(people)), chunksize=16)
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)
        cv2.setNumThreads(threads)


_worker = {}


def _start_worker(people):
    cv2.setNumThreads(1)
    _worker['people'] = people


def _work(index):
    people = _worker['people']
    return *people.picture(index), people.unreadable


class Progress:
    """A bar on stderr; silent where that is not a terminal."""

    def __init__(self, total, quiet=None):
        self.total, self.done = total, 0
        self.quiet = not sys.stderr.isatty() if quiet is None else quiet
        self.start = self.shown = time.monotonic()

    def step(self):
        self.done += 1
        now = time.monotonic()
        if self.quiet or (now - self.shown < 0.1 and self.done < self.total):
            return
        self.shown = now
        filled = 30 * self.done // self.total
        speed = self.done / max(now - self.start, 1e-6)
        bar = '#' * filled + '.' * (30 - filled)
        sys.stderr.write(f'\r[{bar}] {self.done}/{self.total}, {speed:.0f} images/s ')
        sys.stderr.flush()

    def close(self):
        if not self.quiet:
            sys.stderr.write('\n')
