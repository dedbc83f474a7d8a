"""Data sets of synthetic people on disk, in COCO's format.

    DIR/images/000000.jpg ...
    DIR/annotations.json       read by stock CocoDataset and CocoMetric
    DIR/bodies.npz             body parameters and 3D joints, one row per annotation

DIR appears complete or not at all.
"""

import json
import sys
import time
from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from ..conventions import ANNOTATED, COCO_17, COCO_17_SKELETON, ON_DISK
from ..files.optional import need
from ..files.processes import in_processes
from ..files.whole import whole_folder
from .people import SyntheticPeople
from .regime import HARD

FORMAT = 1  # to be raised when the same seed gives other images
BODY_ARRAYS = (*ANNOTATED, 'translation')


def write_coco(
    out: str | Path,
    num: int,
    seed: int = 0,
    size: int | tuple[int, int] = 256,
    max_people: int = 1,
    backgrounds: str | Path | None = None,
    plain: bool = False,
    workers: int = 1,
    quiet: bool | None = None,
    min_people: int = 1,
    hard: bool = False,
) -> dict:
    """Write images and annotations into a new folder.

    The bytes depend on the options, but not on `workers`. A folder that already holds the same set
    is left unchanged.

    Args:
        num: images.
        seed, size, max_people, min_people, backgrounds, plain: see people.SyntheticPeople.
        hard: images of regime.HARD, which the stream of the package's weights shows.
        workers: processes; 1: this one.
        quiet: hide the progress bar; None: hide it if stderr is not a terminal.

    Returns:
        dict: images, people, unreadable (background files that were skipped), seconds.

    Raises:
        FileExistsError: `out` holds other content.
        ImportError: pycocotools is not installed.
        ValueError, FileNotFoundError: invalid options.
    """
    for name, value in dict(num=num, workers=workers).items():
        if value < 1:
            raise ValueError(f'{name} is {value}; expected 1 or more')
    out = Path(out)
    options = dict(
        seed=seed, size=size, max_people=max_people, plain=plain,
        backgrounds=None if backgrounds is None else str(backgrounds),
    )  # fmt: skip
    if min_people != 1:  # not stated by older sets
        options['min_people'] = min_people
    if hard:
        options['regime'] = asdict(HARD)
    people = SyntheticPeople(**options, length=num)
    info = dict(description='synthetic people of trunchier', format=FORMAT, num=num, **options)
    info['size'] = list(people.size)
    if _already_there(out, info):
        annotations = json.loads((out / 'annotations.json').read_text())['annotations']
        return dict(images=num, people=len(annotations), unreadable=[], seconds=0.0)

    start = time.monotonic()
    with whole_folder(out) as part:
        count, unreadable = _write(part, people, info, workers, quiet)
    seconds = time.monotonic() - start
    return dict(images=num, people=count, unreadable=sorted(unreadable), seconds=seconds)


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
    """Fill the folder. Returns the number of people and the unreadable background files."""
    from rich.console import Console
    from rich.progress import track

    (folder / 'images').mkdir()
    images, annotations, unreadable = [], [], set()
    bodies = {name: [] for name in (*BODY_ARRAYS, 'focal', 'principal_point', 'image_id')}
    width, height = people.size
    encode = need('pycocotools.mask', 'writing COCO data sets').encode
    quiet = not sys.stderr.isatty() if quiet is None else quiet
    with closing(_images(people, workers)) as made:
        done = track(
            enumerate(made), 'images', len(people), console=Console(stderr=True), disable=quiet
        )
        for index, (jpeg, found, camera, missing) in done:
            name = f'{index:06d}.jpg'
            (folder / 'images' / name).write_bytes(jpeg)
            images.append(dict(id=index + 1, file_name=name, width=width, height=height))
            for person in found:
                annotations.append(_annotation(person, len(annotations) + 1, index + 1, encode))
                row = person | dict(
                    focal=camera.focal, principal_point=camera.center, image_id=index + 1
                )
                for array, rows in bodies.items():
                    rows.append(row[array])
            unreadable |= missing

    arrays = {
        ON_DISK.get(name, name): np.array(rows, np.int64 if name == 'image_id' else np.float32)
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


def _annotation(person, annotation_id, image_id, encode):
    """One entry of COCO's `annotations` from a dict of people.annotate."""
    keypoints = []
    for x, y, v in person['keypoints'].tolist():
        keypoints += [round(x, 2), round(y, 2), int(v)]
    mask = encode(np.asfortranarray(person['mask'], np.uint8))
    return dict(
        id=annotation_id, image_id=image_id, category_id=1, iscrowd=0,
        bbox=person['bbox'].tolist(), area=person['area'],
        num_keypoints=int((person['keypoints'][:, 2] > 0).sum()), keypoints=keypoints,
        segmentation=dict(size=mask['size'], counts=mask['counts'].decode()),
    )  # fmt: skip


# --- Processes ------------------------------------------------------------------------------------
def _images(people, workers):
    """(jpeg, people, camera, unreadable background files) of each image, in order."""
    if workers == 1:
        for index in range(len(people)):
            yield *people.encoded(index), people.unreadable
        return
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # no thread pool that would be forked or compete with the processes
    try:
        people.encoded(0)  # compile once, before the fork
        method = 'fork' if sys.platform == 'linux' else 'spawn'  # forks do not import torch again
        yield from in_processes(partial(_image, people), range(len(people)), workers, method)
    finally:
        cv2.setNumThreads(threads)


def _image(people, index):
    cv2.setNumThreads(1)  # in a spawned process
    return *people.encoded(index), people.unreadable
