"""Stored heatmaps of a teacher: files, and the transform that gives them to a training crop.

A folder holds shards `heatmaps-00000.safetensors`, ... with, of N people: `heatmaps` (N, K, h, w)
float16, in the student's keypoints, NaN where the teacher lacks one; `ids` (N,) of annotations;
`boxes` (N, 4), xyxy, and `sizes` (N, 2), width and height, of their images; `warps` (N, 2, 3),
pixels of the image to pixels of the map. `about` in the metadata is `Origin`, as JSON.
"""

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.registry import TRANSFORMS

from ..files import whole_file

PATTERN = 'heatmaps-*.safetensors'
KNOWN = 0.999  # share of a pixel that the stored map must cover
FLIP = np.array([[-1.0, 0, 0], [0, 1, 0], [0, 0, 1]])  # less the width


@dataclass(frozen=True)
class Origin:
    """What heatmaps depend on.

    Attributes:
        digest: of the teacher's weights and keypoints, see `models.teachers.teacher_digest`.
        teacher: its name, for messages.
        heatmap_size: (width, height).
        aligned: whether pixel centers of the corners of map and crop coincide, as in UDP.
        udp: whether crops are those of `TopdownAffine(use_udp=True)`.
    """

    digest: int
    teacher: str
    heatmap_size: tuple[int, int]
    aligned: bool
    udp: bool


def crop_to_map(crop: Sequence[int], heatmap: Sequence[int], aligned: bool) -> np.ndarray:
    """(3, 3): pixels of a crop to pixels of its heatmaps; sizes are (width, height)."""
    less = 1 if aligned else 0
    scale = [(b - less) / (a - less) for a, b in zip(crop, heatmap, strict=True)]
    return np.diag([*scale, 1.0])


def image_to_crop(results: dict, udp: bool) -> np.ndarray:
    """(3, 3): pixels of the image, flipped if it was, to pixels of the crop of TopdownAffine."""
    from mmpose.structures.bbox import get_udp_warp_matrix, get_warp_matrix

    warp = get_udp_warp_matrix if udp else get_warp_matrix
    rotation = results['bbox_rotation'][0] if 'bbox_rotation' in results else 0.0
    given = results['input_center'], results['input_scale'], rotation
    return np.vstack([warp(*given, output_size=results['input_size']), (0, 0, 1)])


class HeatmapStore:
    """The heatmaps of a folder, by id of the annotation; the maps stay on the disk.

    Attributes:
        origin: see `Origin`.
        places: {id: (shard, row)}.

    Raises:
        FileNotFoundError: a folder without heatmaps.
        ValueError: damaged shards, or of different teachers.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        paths = sorted(self.folder.glob(PATTERN))
        if not paths:
            raise FileNotFoundError(
                f'no heatmaps in {folder}: python tools/store_heatmaps.py CONFIG writes them'
            )
        self.places: dict[int, tuple[Path, int]] = {}
        self._rows: dict[Path, dict[str, np.ndarray]] = {}
        origins = {path: self._read(path) for path in paths}
        self.origin = origins[paths[0]]
        for path, origin in origins.items():
            if origin != self.origin:
                raise ValueError(f'{path} is of {origin}, {paths[0].name} of {self.origin}')

    def _read(self, path):
        with _opened(path) as file:
            try:
                about = json.loads((file.metadata() or {})['about'])
                origin = Origin(**{each.name: about[each.name] for each in fields(Origin)})
                rows = {name: file.get_tensor(name) for name in ('ids', 'boxes', 'sizes', 'warps')}
                shape = file.get_slice('heatmaps').get_shape()
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f'{path} holds no heatmaps of a teacher: {error!r}') from error
        count, size = len(rows['ids']), list(origin.heatmap_size)
        wanted = dict(ids=(count,), boxes=(count, 4), sizes=(count, 2), warps=(count, 2, 3))
        if any(rows[name].shape != each for name, each in wanted.items()) or (
            len(shape) != 4 or shape[0] != count or shape[:1:-1] != size
        ):
            raise ValueError(f'{path} is damaged: its arrays have shapes that do not fit')
        self._rows[path] = rows
        self.places |= {int(each): (path, row) for row, each in enumerate(rows['ids'])}
        return Origin(**{**asdict(origin), 'heatmap_size': tuple(size)})

    def __contains__(self, number: int) -> bool:
        return number in self.places

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        """`heatmaps` (K, h, w) float16, `box` (4,), `size` (2,) and `warp` (3, 3) of a person.

        Raises:
            KeyError: not stored.
        """
        if number not in self.places:
            raise KeyError(
                f'no heatmaps of annotation {number} in {self.folder}, which has '
                f'{len(self.places)}: python tools/store_heatmaps.py CONFIG adds what is missing'
            )
        path, row = self.places[number]
        with _opened(path) as file:
            heatmaps = file.get_slice('heatmaps')[row]
        rows = self._rows[path]
        warp = np.vstack([rows['warps'][row], (0, 0, 1)])
        return dict(heatmaps=heatmaps, box=rows['boxes'][row], size=rows['sizes'][row], warp=warp)


def _opened(path):
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework='np')
    except SafetensorError as error:
        raise ValueError(f'{path} is cut off or not a safetensors file: {error}') from error


def write_heatmaps(folder: str | Path, origin: Origin, people: list[dict[str, Any]]) -> Path:
    """Write people, dicts of `id`, `heatmaps`, `box`, `size` and `warp` (2, 3), as a new shard."""
    from safetensors.numpy import save_file

    paths = (Path(folder) / PATTERN.replace('*', f'{number:05d}') for number in itertools.count())
    path = next(path for path in paths if not path.exists())
    arrays = dict(
        heatmaps=np.ascontiguousarray([each['heatmaps'] for each in people], np.float16),
        ids=np.array([each['id'] for each in people], np.int64),
        boxes=np.array([each['box'] for each in people], np.float32),
        sizes=np.array([each['size'] for each in people], np.int64),
        warps=np.array([each['warp'] for each in people], np.float64),
    )
    with whole_file(path) as part:
        save_file(arrays, part, metadata=dict(about=json.dumps(asdict(origin))))
    return path


@TRANSFORMS.register_module()
class LoadTeacherHeatmaps:
    """Stored heatmaps of the teacher for a training crop: `teacher_heatmaps` (K, h, w), float32.

    Before PackPoseInputs. Maps of the crop without augmentation are warped into the training crop:
    flip, shift, scale and rotation are those of RandomFlip, RandomHalfBody and RandomBBoxTransform.
    What lies outside the stored crop is NaN, and does not count in the loss of HeatmapDistiller.
    A dot is as large as it is in the image: another scale changes its width.

    Args:
        folder: of tools/store_heatmaps.py.
        heatmap_size: (width, height) of the student's; None: that of the stored ones.

    Raises:
        KeyError: a person that is not stored. ValueError: another box or image than the stored
            one, a vertical flip, or labels of another size. And see `HeatmapStore`.
    """

    def __init__(self, folder: str | Path, heatmap_size: tuple[int, int] | None = None):
        self.folder = folder
        self.heatmap_size = heatmap_size and (heatmap_size[0], heatmap_size[1])
        self.store: HeatmapStore | None = None

    def __call__(self, results: dict) -> dict:
        if 'input_center' not in results:
            raise KeyError('LoadTeacherHeatmaps stands after TopdownAffine')
        if self.store is None:
            self.store = HeatmapStore(self.folder)
        origin, stored = self.store.origin, self.store[int(results['id'])]
        self._check(results, stored)
        size = self.heatmap_size or origin.heatmap_size
        flipped = bool(results.get('flip'))
        order = list(results['flip_indices']) if flipped else slice(None)
        warp = crop_to_map(results['input_size'], size, origin.aligned)
        warp = warp @ image_to_crop(results, origin.udp)
        if flipped:
            warp = warp @ _flip(results)
        maps = np.float32(stored['heatmaps'])[order]
        results = dict(results, teacher_heatmaps=warp_maps(maps, warp, stored['warp'], size))
        results['teacher_digest'] = np.array([origin.digest])
        labels = results.get('label_mapping_table') or dict(keypoint_weights='keypoint_weights')
        targets = results.get('field_mapping_table') or dict(heatmaps='heatmaps')
        results['label_mapping_table'] = dict(labels, teacher_digest='teacher_digest')
        results['field_mapping_table'] = dict(targets, teacher_heatmaps='teacher_heatmaps')
        if 'heatmaps' in results and results['heatmaps'].shape[:0:-1] != size:
            raise ValueError(
                f'heatmaps of the student are {results["heatmaps"].shape[:0:-1]} (width, height), '
                f'those of the teacher {size}: give LoadTeacherHeatmaps the heatmap_size'
            )
        return results

    def _check(self, results, stored):
        if results.get('flip') and results['flip_direction'] != 'horizontal':
            raise ValueError(f'stored heatmaps cannot be flipped {results["flip_direction"]}ly')
        box = np.array(results['bbox'][0], np.float64).reshape(2, 2)
        if results.get('flip'):
            box = (np.c_[box, (1, 1)] @ _flip(results).T)[:, :2]
            box = np.sort(box, axis=0)
        size = results['img_shape'][1::-1]
        if tuple(size) != tuple(stored['size']) or np.abs(box.ravel() - stored['box']).max() > 1:
            raise ValueError(
                f'annotation {results["id"]} has the box {box.ravel().round().tolist()} in an '
                f'image of {size}, but heatmaps were stored for {stored["box"].round().tolist()} '
                f'in {stored["size"].tolist()}: other annotations need a folder of their own, and '
                'nothing may crop the image before GetBBoxCenterScale'
            )


def _flip(results):
    flip = FLIP.copy()
    flip[0, 2] = results['img_shape'][1] - 1
    return flip


def warp_maps(
    maps: np.ndarray, warp: np.ndarray, stored: np.ndarray, size: tuple[int, int]
) -> np.ndarray:
    """Maps (K, h, w) of one crop in another: (K, size[1], size[0]); NaN outside.

    Args:
        warp, stored: (3, 3), image to pixels of the new and of the given maps.
        size: width, height.
    """
    across = (warp @ np.linalg.inv(stored))[:2]
    inside = cv2.warpAffine(np.ones(maps.shape[1:], np.float32), across, size)
    warped = np.stack([cv2.warpAffine(each, across, size) for each in maps])
    warped[:, inside < KNOWN] = np.nan
    return warped
