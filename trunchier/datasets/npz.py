"""Data set of people in an npz file, in the layout of 4D-Humans' evaluation files.

Equal to shubham-goel/4D-Humans (hmr2/datasets/image_dataset.py), without `allow_pickle`: strings
that were saved as objects are read by `files.pickles`, and unused arrays are not read.
"""

import pickle
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from mmengine.logging import print_log
from mmengine.registry import DATASETS

from ..conventions import EVAL_IGNORED_3D, EXTRA_19, ON_DISK, OPENPOSE_25, person
from ..files import images, pickles
from .annotations import AnnotationFilter, BadCount, BadRecord, check_annotation, describe
from .people import People

# Keypoints are stored in two arrays: (name, shape of a row) of OpenPose's and of the extra ones.
HALVES = {
    name: tuple(
        (f'{half}_{name}', (len(joints), person()[name].shape[1]))
        for half, joints in (('body', OPENPOSE_25), ('extra', EXTRA_19))
    )
    for name in ('keypoints_2d', 'keypoints_3d')
}
MAX_ARRAY = 1 << 30  # bytes, decompressed
FITS = {ON_DISK.get(name, name): person()[name].shape for name in ('pose', 'betas')}


@DATASETS.register_module()
class NpzPeople(People):
    """People of an annotation file and a folder of images.

    Arrays of the file: `imgname` (N,), `center` (N, 2), `scale` (N,) or (N, 2), all in pixels, and
    any of `body_keypoints_2d` (N, 25, 3), `extra_keypoints_2d` (N, 19, 3), `body_keypoints_3d`
    (N, 25, 4), `extra_keypoints_3d` (N, 19, 4), `body_pose` (N, 72) with `has_body_pose` (N,),
    `betas` (N, 10) with `has_betas` (N,). Absent arrays are zero. As in 4D-Humans, the confidence
    of 3D joints 1 to 14 (OpenPose's limbs) is set to 0. Bad rows (NaN, a box below one pixel) are
    skipped and logged.

    Args:
        ann_file: npz.
        img_dir: folder that `imgname` is relative to.
        name, pipeline: see `People`; the default name is the file's.
        filters: arguments of `AnnotationFilter`, for training; None (for evaluation) keeps all.
        max_bad_share: maximum share of bad rows.

    Raises (in `full_init`):
        FileNotFoundError: no such file or folder.
        ValueError: an array is missing or has another shape.
        RuntimeError: too many bad rows.
    """

    def __init__(
        self,
        ann_file: str | Path,
        img_dir: str | Path,
        name: str | None = None,
        filters: dict | None = None,
        pipeline: Sequence = (),
        max_bad_share: float = 0.01,
    ):
        super().__init__(name or Path(ann_file).stem, pipeline)
        self.ann_file = ann_file
        self.img_dir = Path(img_dir)
        self.filter = None if filters is None else AnnotationFilter(**dict(filters))
        self.max_bad_share = max_bad_share
        self._arrays = self._rows = None

    def full_init(self) -> None:
        if self._rows is not None:
            return
        super().full_init()
        if not self.img_dir.is_dir():
            raise FileNotFoundError(
                f'{self.name}: no folder {self.img_dir}, to which imgname of {self.ann_file} is '
                'relative; set img_dir'
            )
        self._arrays = read_people_npz(self.ann_file)
        reasons, count = {}, BadCount(self.name, self.max_bad_share, patience=np.inf)
        for row in range(len(self._arrays['imgname'])):
            try:
                reasons[row] = self._annotation(row)[1]
                count.add_good()
            except BadRecord as error:
                count.add_bad(error.kind, f'row {row} of {self.ann_file}', error)
        count.check()
        rows = [row for row, reason in reasons.items() if reason is None]
        dropped = describe(Counter(filter(None, reasons.values())))
        print_log(f'{self.name}: {len(rows)} people are kept; dropped: {dropped}', 'current')
        if not rows:
            raise ValueError(f'{self.name}: {self.ann_file} holds no usable row')
        self._rows = np.array(rows)

    def __len__(self) -> int:
        self.full_init()
        return len(self._rows)

    def record(self, index: int) -> dict:
        self.full_init()
        row = int(self._rows[index])
        annotation, _ = self._annotation(row)
        name = str(self._arrays['imgname'][row])
        path = self.img_dir / name
        if not path.is_file():
            raise BadRecord('missing image', f'no {path}; is img_dir right?')
        flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        try:
            image = images.decode_image(path.read_bytes(), flags)
        except (OSError, images.ImageError) as error:
            raise BadRecord('undecodable image', f'{path}: {error}') from error
        return dict(
            annotation, image=image, key=name, dataset=self.name, img_path=str(path), id=row
        )

    def _annotation(self, row):
        """(annotation, reason to drop it or None)."""
        annotation = check_annotation(
            {name: array[row] for name, array in self._arrays.items() if name != 'imgname'}
        )
        return annotation, self.filter(annotation) if self.filter else None


def read_people_npz(path: str | Path) -> dict[str, np.ndarray]:
    """Read an annotation file: `imgname` and arrays of N rows for `check_annotation`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an npz, an array is missing or has another shape.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f'no {path}; evaluation files come with 4D-Humans (hmr2_evaluation_data/), and '
            'tools/make_shards.py converts other layouts'
        )
    try:
        with zipfile.ZipFile(path) as archive:
            found = {name.removesuffix('.npy') for name in archive.namelist()}
            known = {'imgname', 'center', 'scale'}
            known |= {half for halves in HALVES.values() for half, _ in halves}
            known |= {prefix + name for name in FITS for prefix in ('', 'has_')}
            raw = {name: _read_array(archive, name) for name in known & found}
    except pickle.UnpicklingError:
        raise
    except Exception as error:  # zipfile and numpy raise whatever damage leads to
        reason = f'{type(error).__name__}: {error}'
        raise ValueError(f'{path} is not an npz ({reason}); download it again') from error

    missing = {'imgname', 'center', 'scale'} - set(raw)
    if missing or not any(half in raw for halves in HALVES.values() for half, _ in halves):
        missing = sorted(missing) or 'keypoints (body_ or extra_keypoints_2d or _3d)'
        raise ValueError(f'{path} lacks {missing}; found {sorted(found)}')

    names = raw['imgname'].reshape(-1)
    count = len(names)
    names = [name.decode() if isinstance(name, bytes) else str(name) for name in names.tolist()]
    arrays = dict(imgname=np.array(names))
    scale = np.atleast_1d(raw['scale'])
    scale = scale.reshape(len(scale), -1)
    arrays['scale'] = _rows(path, 'scale', scale, count, (1,), (2,)) / 200.0
    arrays['center'] = _rows(path, 'center', raw['center'], count, (2,))
    for name, halves in HALVES.items():
        arrays[name] = np.concatenate(
            [_rows(path, half, raw.get(half), count, shape) for half, shape in halves], axis=1
        )
    arrays['keypoints_3d'][:, list(EVAL_IGNORED_3D), 3] = 0
    for name, shape in FITS.items():
        # As in 4D-Humans, a fit without its flag is ignored.
        both = name in raw and 'has_' + name in raw
        values, flags = (raw[name], raw['has_' + name]) if both else (None, None)
        arrays[name] = _rows(path, name, values, count, shape)
        arrays['has_' + name] = _rows(path, 'has_' + name, flags, count, ())
    return arrays


def _rows(path, name, array, count, *shapes):
    """`array` as float64 (or float32 as it is) of (count, *shape); zeros for None."""
    if array is None:
        return np.zeros((count, *shapes[0]), np.float32)
    if array.shape not in [(count, *shape) for shape in shapes] or array.dtype.kind not in 'fiub':
        expected = ' or '.join(str((count, *shape)) for shape in shapes)
        raise ValueError(
            f'{path}: expected numbers of shape {expected} in {name}, got '
            f'{array.dtype} {array.shape}'
        )
    return array if array.dtype == np.float32 else array.astype(np.float64)


def _read_array(archive, name):
    """One array of an open npz; objects are read by the restricted unpickler."""
    size = archive.getinfo(name + '.npy').file_size
    if size > MAX_ARRAY:
        raise ValueError(f'{name} takes {size} bytes, above the limit of {MAX_ARRAY}')
    with archive.open(name + '.npy') as file:
        version = np.lib.format.read_magic(file)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read_header is not None:
            shape, _, dtype = read_header(file)
            if dtype.hasobject:
                return np.asarray(pickles.load(file.read())).reshape(shape)
    with archive.open(name + '.npy') as file:
        return np.lib.format.read_array(file, allow_pickle=False)
