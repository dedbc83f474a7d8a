#!/usr/bin/env python
"""Turn annotated images into tar shards to train on, or into an npz to evaluate on.

    trunchier make-shards people.npz --images photos --out data/mine
    trunchier make-shards data/synthetic/train --out data/synthetic/shards
    trunchier make-shards spin.npz --layout spin --images photos --to npz --out eval.npz

Shards are in the layout of 4D-Humans (webdataset), so that ShardPeople and 4D-Humans itself read
them; the npz is in the layout of its evaluation files, which NpzPeople reads. Bad rows are skipped
and printed. An interrupted run leaves nothing.

Layouts of the input:
  4d-humans  npz: imgname, center, scale (pixels), body_/extra_keypoints_2d/_3d, body_pose, betas
  spin       npz of SPIN and HMR: imgname, center, scale (/ 200), part (N, 24, 3), S (N, 24, 4),
             pose, shape
  h36m       npz of mmpose: imgname, center, scale, part (N, 17, 3), S (N, 17, 4), Human3.6M's order
  mpi-inf    the same in the order of MPI-INF-3DHP
  synthetic  a folder of trunchier make-synthetic
By default, a folder is synthetic, and the layout of an npz is guessed from its arrays.
"""

import argparse
import io
import json
import os
import pickle
import sys
import tarfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from trunchier import conventions
from trunchier.conventions import ANNOTATED, ON_DISK, person
from trunchier.datasets.annotations import BadRecord, check_annotation, describe
from trunchier.datasets.npz import HALVES, read_people_npz
from trunchier.datasets.shard_index import decode_image
from trunchier.files import save_npz, whole_folder
from trunchier.files.processes import clean_end

FIELDS = person()


@clean_end()
def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog='trunchier make-shards',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add('annotations', help='npz file, or folder of trunchier make-synthetic')
    add('--images', help='folder that imgname is relative to, or a parent of it')
    add('--out', required=True, help='folder of shards, or npz, to write')
    add('--layout', choices=sorted(LAYOUTS), help='layout of the input')
    add('--to', choices=('shards', 'npz'), default='shards')
    add('--per-shard', type=int, default=1000, metavar='N', help='images per shard')
    without = 'omit poses and betas, such as those of SMPL when another body is trained'
    add('--joints-only', action='store_true', help=without)
    args = parser.parse_args(arguments)
    try:
        people = read_layout(args.annotations, args.layout)
        if args.joints_only:
            for name in ('has_body_pose', 'has_betas'):
                people[name] = np.zeros(len(people['imgname']), np.float32)
        rows, bad = usable_rows(people, args.images or Path(args.annotations, 'images'))
        if args.to == 'npz':
            write_npz(args.out, rows)
            text = f'{len(rows)} people'
        else:
            shards, images = write_shards(args.out, rows, args.per_shard)
            text = f'{shards} shards, {images} images, {len(rows)} people'
    except (ValueError, OSError) as error:
        sys.exit(f'{type(error).__name__}: {error}')
    print(f'{args.out}: {text}; skipped: {describe(bad)}')


# --- Layouts -> arrays of N rows: imgname, and fields for `check_annotation` ----------------------
def read_layout(path: str | Path, layout: str | None = None) -> dict[str, np.ndarray]:
    """Read arrays of people in one of the LAYOUTS; None guesses it."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f'no {path}')
    return LAYOUTS[layout or guess_layout(path)](path)


def guess_layout(path: Path) -> str:
    if path.is_dir():
        return 'synthetic'
    with np.load(path, allow_pickle=False) as data:
        names = set(data.files)
        if not names & {'part', 'S'}:
            return '4d-humans'
        joints = data['part' if 'part' in names else 'S'].shape[1]
    if joints != 24:
        raise ValueError(f'{path} has {joints} joints; choose --layout h36m or --layout mpi-inf')
    return 'spin'


def from_joints(indices: Sequence[int]) -> Callable[[Path], dict[str, np.ndarray]]:
    """Reader of npz files like SPIN's: `part`, `S`, `pose`, `shape`, scale / 200.

    Args:
        indices: of their joints among the 44.
    """

    def read(path):
        with np.load(path, allow_pickle=False) as data:
            found = {name: data[name] for name in data.files if name in JOINT_ARRAYS}
        missing = {'imgname', 'center', 'scale'} - set(found)
        if missing or not {'part', 'S'} & set(found):
            raise ValueError(f'{path} lacks {sorted(missing) or "part and S"}; found {data.files}')
        count = len(found['imgname'])
        for name, shape in JOINT_ARRAYS.items():
            expected = (count, *(len(indices) if n is None else n for n in shape))
            if name in found and found[name].shape != expected:
                raise ValueError(f'{path}: {name} is {found[name].shape}, expected {expected}')
        people = {name: found[name] for name in ('imgname', 'center', 'scale')}
        for ours, theirs in (('keypoints_2d', 'part'), ('keypoints_3d', 'S')):
            people[ours] = np.zeros((count, *FIELDS[ours].shape), np.float32)
            people[ours][:, list(indices)] = found.get(theirs, 0)
        for ours, theirs in ((ON_DISK['pose'], 'pose'), ('betas', 'shape')):
            people['has_' + ours] = np.full(count, theirs in found, np.float32)
            if theirs in found:
                people[ours] = found[theirs]
        return people

    return read


# Shape of a row; None: the number of joints.
JOINT_ARRAYS = dict(imgname=(), center=(2,), scale=(), part=(None, 3), S=(None, 4))
JOINT_ARRAYS.update(pose=FIELDS['pose'].shape, shape=FIELDS['betas'].shape)


def from_synthetic(folder: Path) -> dict[str, np.ndarray]:
    """Read a folder of make_synthetic.py."""
    missing = [name for name in ('annotations.json', 'bodies.npz') if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f'{folder} lacks {missing}; create it with trunchier make-synthetic'
        )
    images = json.loads((folder / 'annotations.json').read_text())['images']
    names = {image['id']: image['file_name'] for image in images}
    with np.load(folder / 'bodies.npz', allow_pickle=False) as data:
        people = {name: data[name] for name in (ON_DISK.get(name, name) for name in ANNOTATED)}
        people['imgname'] = np.array([names[number] for number in data['image_id'].tolist()])
    return people


LAYOUTS = {
    '4d-humans': read_people_npz,
    'spin': from_joints(conventions.SPIN_24_IN_44),
    'h36m': from_joints(conventions.H36M_17_IN_44),
    'mpi-inf': from_joints(conventions.MPI_INF_17_IN_44),
    'synthetic': from_synthetic,
}


# --- Rows -----------------------------------------------------------------------------------------
def usable_rows(
    people: dict[str, np.ndarray], images: str | Path
) -> tuple[list[tuple[Path, dict, str]], Counter]:
    """People with a valid annotation and a decodable image.

    Returns:
        list of (path of the image, annotation as on disk, imgname), and counts of bad rows.

    Raises:
        FileNotFoundError: images are missing.
        ValueError: no usable person.
    """
    paths = find_images(people['imgname'], Path(images))
    rows, bad, decodes = [], Counter(), {}
    for row, path in enumerate(paths):
        try:
            if path not in decodes:
                decodes[path] = False
                decode_image(path.read_bytes())
                decodes[path] = True
            if not decodes[path]:
                raise BadRecord('undecodable image', 'see above')
            annotation = check_annotation({k: v[row] for k, v in people.items() if k != 'imgname'})
        except BadRecord as error:
            bad[error.kind] += 1
            print(f'skipped row {row} ({path}): {error}', file=sys.stderr)
            continue
        annotation = {ON_DISK.get(name, name): value for name, value in annotation.items()}
        rows.append((path, annotation, os.path.relpath(path, images)))
    if not rows:
        raise ValueError(f'none of {len(paths)} people is usable: {describe(bad)}')
    return rows, bad


def find_images(names: np.ndarray, folder: Path) -> list[Path]:
    """Paths of images: `folder`/name, else any file of that base name below `folder`.

    Raises:
        FileNotFoundError: some are missing.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f'no folder {folder}; give --images, the folder of the images')
    names = [name.decode() if isinstance(name, bytes) else str(name) for name in names.tolist()]
    paths = [folder / name for name in names]
    if not all(path.is_file() for path in paths):
        anywhere = {path.name: path for path in sorted(folder.rglob('*')) if path.is_file()}
        paths = [p if p.is_file() else anywhere.get(p.name, p) for p in paths]
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f'{len(missing)} of {len(paths)} images are missing, the first is {missing[0]}; give '
            '--images, the folder that imgname is relative to'
        )
    return paths


# --- Writing --------------------------------------------------------------------------------------
def write_npz(out: str | Path, rows: Sequence[tuple[Path, dict, str]]) -> None:
    """Write an evaluation file."""
    names = [ON_DISK.get(name, name) for name in ANNOTATED]
    stack = {name: np.stack([annotation[name] for _, annotation, _ in rows]) for name in names}
    for name, ((body, (number, _)), (extra, _)) in HALVES.items():
        both = stack.pop(name)
        stack[body], stack[extra] = both[:, :number], both[:, number:]
    stack['scale'] = stack['scale'] * 200
    save_npz(out, imgname=np.array([name for _, _, name in rows]), **stack)


def write_shards(
    out: str | Path, rows: Sequence[tuple[Path, dict, str]], per_shard: int
) -> tuple[int, int]:
    """Write shards, in which people of one image share a member; returns numbers of both."""
    out = Path(out)
    if per_shard < 1:
        raise ValueError(f'--per-shard: expected 1 or more images, got {per_shard}')
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f'{out} is not empty; delete it or choose another folder')
    images = {}
    for path, annotation, _ in rows:
        images.setdefault(path, []).append(annotation)

    items = list(enumerate(images.items()))
    starts = range(0, len(items), per_shard)
    with whole_folder(out) as part:
        for shard, start in enumerate(starts):
            with tarfile.open(part / f'{shard:06}.tar', 'w') as tar:
                for number, item in items[start : start + per_shard]:
                    _add_image(tar, f'{out.name}/{number:08}', *item)
    return len(starts), len(items)


def _add_image(tar, key, path, annotations):
    suffix, data = path.suffix.lower(), path.read_bytes()
    if suffix not in ('.jpg', '.jpeg', '.png'):
        suffix, data = '.png', cv2.imencode('.png', decode_image(data))[1].tobytes()
    for name, content in ((suffix, data), ('.data.pyd', pickle.dumps(annotations, protocol=4))):
        info = tarfile.TarInfo(key + name)
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))


if __name__ == '__main__':
    main()
