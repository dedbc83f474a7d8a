"""Two drawn pictures of each data set of ViTPose++, in its own format and folders."""

import json
from pathlib import Path

import cv2
import numpy as np

from trunchier.zoo import POSE_SETS

SIZE = 64  # pixels, of the square pictures
PARTS = dict(keypoints=17, foot_kpts=6, face_kpts=68, lefthand_kpts=21, righthand_kpts=21)


def write_pose_sets(root: Path) -> dict[str, np.ndarray]:
    """Write all sets below `root`.

    Returns:
        {name: (2, K, 2)}: the keypoints of its two people, pixels, x before y.
    """
    rng = np.random.default_rng(0)
    points = {}
    for name, row in POSE_SETS.items():
        points[name] = rng.integers(8, 56, (2, row.keypoints, 2)).astype(np.float32)
        content = _mpii(points[name]) if name == 'mpii' else _coco(name, points[name])
        file = root / row.folder / row.annotations
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content))
        for number, keypoints in enumerate(points[name]):
            picture = np.full((SIZE, SIZE, 3), 40 * number, np.uint8)
            for x, y in keypoints.astype(int).tolist():
                cv2.circle(picture, (x, y), 1, (255, 255, 255), -1)
            path = root / row.folder / row.images / _image(name, number).replace('\\', '/')
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), picture)
    return points


def _image(name, number):
    return f'antelope\\clip_1\\{number}.png' if name == 'apt36k' else f'{number}.png'


def _coco(name, points):
    images, annotations = [], []
    for number, keypoints in enumerate(points):
        image = dict(id=number, file_name=_image(name, number), width=SIZE, height=SIZE)
        person = dict(id=number, image_id=number, category_id=1, iscrowd=0, area=SIZE * SIZE)
        person |= dict(bbox=[0, 0, SIZE, SIZE], segmentation=[], num_keypoints=len(keypoints))
        flat = np.pad(keypoints, ((0, 0), (0, 1)), constant_values=2)
        if name == 'coco_wholebody':
            parts = np.split(flat, np.cumsum(list(PARTS.values()))[:-1])
            person |= {part: p.ravel().tolist() for part, p in zip(PARTS, parts, strict=True)}
        else:
            person['keypoints'] = flat.ravel().tolist()
        images.append(image)
        annotations.append(person)
    return dict(images=images, annotations=annotations, categories=[dict(id=1, name='one')])


def _mpii(points):
    return [
        dict(
            image=_image('mpii', number),
            center=[SIZE / 2, SIZE / 2],
            scale=SIZE / 200,
            joints=keypoints.tolist(),
            joints_vis=[1] * len(keypoints),
        )
        for number, keypoints in enumerate(points)
    ]
