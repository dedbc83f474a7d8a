#!/usr/bin/env python
"""Turn annotated pictures into tar shards to train on, or into an npz to evaluate on.

    python tools/make_shards.py people.npz --images photos --out data/mine
    python tools/make_shards.py data/synthetic/train --out data/synthetic/shards
    python tools/make_shards.py spin.npz --layout spin --images photos --to npz --out eval.npz

Shards are in the layout of 4D-Humans (webdataset), so that ShardPeople and 4D-Humans itself read
them; the npz is that of its evaluation files, which NpzPeople reads. Rows that cannot be used are
left out and named. A run that is killed leaves nothing.

Layouts of the input:
  4d-humans  npz: imgname, center, scale (pixels), body_/extra_keypoints_2d/_3d, body_pose, betas
  spin       npz of SPIN and HMR: imgname, center, scale (/ 200), part (N, 24, 3), S (N, 24, 4),
             pose, shape
  h36m       npz of mmpose: imgname, center, scale, part (N, 17, 3), S (N, 17, 4), Human3.6M's order
  mpi-inf    the same in the order of MPI-INF-3DHP
  synthetic  a folder of tools/make_synthetic.py
By default a folder is synthetic and an npz is told by its keys.
"""

import argparse
import io
import json
import os
import pickle
import shutil
import sys
import tarfile
import tempfile
from collections import Counter
from pathlib import Path

import cv2
import numpy as np

from trunchier.conventions import H36M_17_IN_44, MPI_INF_17_IN_44, SPIN_24_IN_44
from trunchier.datasets.annotations import FORM, OPTIONAL, BadRecord, check_annotation, describe
from trunchier.datasets.npz import read_people_npz
from trunchier.datasets.shards import decode_image, save_npz


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('annotations', help='npz file, or folder of make_synthetic.py')
    parser.add_argument('--images', help='folder that imgname counts from, or any above it')
    parser.add_argument('--out', required=True, help='folder of shards, or npz, to make')
    parser.add_argument('--layout', choices=sorted(LAYOUTS), help='of the input')
    parser.add_argument('--to', choices=('shards', 'npz'), default='shards')
    parser.add_argument('--per-shard', type=int, default=1000, metavar='N', help='pictures')
    parser.add_argument(
        '--joints-only',
        action='store_true',
        help='leave out body_pose and betas, such as those of SMPL where another body is trained',
    )
    args = parser.parse_args(arguments)
    try:
        people = read_layout(args.annotations, args.layout)
        if args.joints_only:
            for name in ('has_body_pose', 'has_betas'):
                people[name] = np.zeros(len(people['imgname']), np.float32)
        images = args.images or default_images(args.annotations)
        rows, bad = usable_rows(people, images)
        if args.to == 'npz':
            write_npz(args.out, rows)
            text = f'{len(rows)} people'
        else:
            shards, pictures = write_shards(args.out, rows, args.per_shard)
            text = f'{shards} shards, {pictures} pictures, {len(rows)} people'
    except (ValueError, FileNotFoundError, FileExistsError) as error:
        sys.exit(f'{type(error).__name__}: {error}')
    print(f'{args.out}: {text}; left out: {describe(bad)}')


# ---------------------------------------------------------------------------------------------
# Layouts -> dict of arrays, a row for each person: imgname, and those of annotations.FORM
# ---------------------------------------------------------------------------------------------
def read_layout(path, layout=None):
    """Arrays of people in any of the LAYOUTS.

    Raises:
        FileNotFoundError, ValueError: no such file, or not of this layout.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f'no {path}')
    layout = layout or guess_layout(path)
    return LAYOUTS[layout](path)


def guess_layout(path):
    if path.is_dir():
        return 'synthetic'
    with np.load(path, allow_pickle=False) as data:
        names = set(data.files)
        if 'part' not in names and 'S' not in names:
            return '4d-humans'
        joints = data['part' if 'part' in names else 'S'].shape[1]
    if joints == 24:
        return 'spin'
    raise ValueError(f'{path} has {joints} joints; say --layout h36m or --layout mpi-inf')


def from_joints(order):
    """Reader of the npz files that SPIN began: `part`, `S`, `pose`, `shape`, scale / 200."""

    def read(path):
        with np.load(path, allow_pickle=False) as data:
            found = {name: data[name] for name in data.files if name in JOINT_ARRAYS}
        missing = {'imgname', 'center', 'scale'} - set(found)
        if missing or not {'part', 'S'} & set(found):
            raise ValueError(f'{path} lacks {sorted(missing) or "part and S"}; found {data.files}')
        count = len(found['imgname'])
        for name, shape in JOINT_ARRAYS.items():
            shape = tuple(len(order) if n is None else n for n in shape)
            if name in found and found[name].shape != (count, *shape):
                wanted = (count, *shape)
                raise ValueError(f'{path}: {name} is {found[name].shape}, wanted {wanted}')
        people = {name: found[name] for name in ('imgname', 'center', 'scale')}
        for ours, theirs, width in (('keypoints_2d', 'part', 3), ('keypoints_3d', 'S', 4)):
            people[ours] = np.zeros((count, 44, width), np.float32)
            if theirs in found:
                people[ours][:, list(order)] = found[theirs]
        for ours, theirs in (('body_pose', 'pose'), ('betas', 'shape')):
            people['has_' + ours] = np.full(count, theirs in found, np.float32)
            if theirs in found:
                people[ours] = found[theirs]
        return people

    return read


JOINT_ARRAYS = {'imgname': (), 'center': (2,), 'scale': (), 'part': (None, 3), 'S': (None, 4),
                'pose': (72,), 'shape': (10,)}  # fmt: skip


def from_synthetic(folder):
    """Reader of a folder of make_synthetic.py."""
    missing = [name for name in ('annotations.json', 'bodies.npz') if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f'{folder} lacks {missing}; make it with tools/make_synthetic.py')
    images = json.loads((folder / 'annotations.json').read_text())['images']
    names = {image['id']: image['file_name'] for image in images}
    with np.load(folder / 'bodies.npz', allow_pickle=False) as data:
        people = {name: data[name] for name in ('keypoints_2d', 'center', 'scale', *OPTIONAL)}
        people['imgname'] = np.array([names[number] for number in data['image_id'].tolist()])
    return people


LAYOUTS = {
    '4d-humans': read_people_npz,
    'spin': from_joints(SPIN_24_IN_44),
    'h36m': from_joints(H36M_17_IN_44),
    'mpi-inf': from_joints(MPI_INF_17_IN_44),
    'synthetic': from_synthetic,
}


# ---------------------------------------------------------------------------------------------
# Rows
# ---------------------------------------------------------------------------------------------
def default_images(path):
    path = Path(path)
    if path.is_dir() and (path / 'images').is_dir():
        return path / 'images'
    raise ValueError('say with --images which folder imgname counts from')


def usable_rows(people, images):
    """People whose annotation passes and whose picture decodes.

    Returns:
        list of (path of the picture, checked annotation, imgname), and counts of what is bad.

    Raises:
        FileNotFoundError: pictures are missing.
        ValueError: nothing is left.
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
            annotation = check_annotation(
                {name: values[row] for name, values in people.items() if name != 'imgname'}
            )
        except BadRecord as error:
            bad[error.kind] += 1
            print(f'row {row} ({path}) is left out: {error}', file=sys.stderr)
            continue
        rows.append((path, annotation, os.path.relpath(path, images)))
    if not rows:
        raise ValueError(f'no usable person is left of {len(paths)}: {describe(bad)}')
    return rows, bad


def find_images(names, folder):
    """Paths of the pictures: under their name, else anywhere in the folder under their last name.

    Raises:
        FileNotFoundError: some are not there.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f'no folder {folder}; say with --images where the pictures are')
    names = [name.decode() if isinstance(name, bytes) else str(name) for name in names.tolist()]
    paths = [folder / name for name in names]
    if not all(path.is_file() for path in paths):
        anywhere = {path.name: path for path in sorted(folder.rglob('*')) if path.is_file()}
        paths = [p if p.is_file() else anywhere.get(p.name, p) for p in paths]
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f'{len(missing)} of {len(paths)} pictures are missing, the first is {missing[0]}; say '
            'with --images which folder imgname counts from'
        )
    return paths


# ---------------------------------------------------------------------------------------------
# Writing
# ---------------------------------------------------------------------------------------------
def write_npz(out, rows):
    """An evaluation file of the rows."""
    stack = {name: np.stack([annotation[name] for _, annotation, _ in rows]) for name in FORM}
    for name in ('keypoints_2d', 'keypoints_3d'):
        both = stack.pop(name)
        stack['body_' + name], stack['extra_' + name] = both[:, :25], both[:, 25:]
    stack['scale'] = stack['scale'] * 200
    save_npz(out, imgname=np.array([name for _, _, name in rows]), **stack)


def write_shards(out, rows, per_shard):
    """Shards of the rows; people in one picture share a member. Returns counts of both."""
    out = Path(out)
    if per_shard < 1:
        raise ValueError(f'--per-shard wants 1 or more pictures, got {per_shard}')
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f'{out} holds something already; delete it or choose another folder')
    pictures = {}
    for path, annotation, _ in rows:
        pictures.setdefault(path, []).append(annotation)

    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f'.{out.name}.', suffix='.partial', dir=out.parent))
    try:
        items = list(pictures.items())
        starts = range(0, len(items), per_shard)
        for shard, start in enumerate(starts):
            with tarfile.open(partial / f'{shard:06}.tar', 'w') as tar:
                for number in range(start, min(start + per_shard, len(items))):
                    _add_picture(tar, f'{out.name}/{number:08}', *items[number])
        partial.chmod(0o755)
        os.replace(partial, out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return len(starts), len(items)


def _add_picture(tar, key, path, annotations):
    suffix, data = path.suffix.lower(), path.read_bytes()
    if suffix not in ('.jpg', '.jpeg', '.png'):
        suffix, data = '.png', cv2.imencode('.png', decode_image(data))[1].tobytes()
    for name, content in ((suffix, data), ('.data.pyd', pickle.dumps(annotations, protocol=4))):
        info = tarfile.TarInfo(key + name)
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))


if __name__ == '__main__':
    main()
