"""Crops of people to a part of the body, in the pipelines of poses."""

from collections.abc import Sequence

import numpy as np
from mmengine.registry import TRANSFORMS

# Indices of COCO's 17 keypoints of each part; of 'limb' one is chosen.
PARTS = {
    'whole': (range(17),),
    'upper': (range(11),),
    'lower': (range(11, 17),),
    'limb': ((5, 7, 9), (6, 8, 10), (11, 13, 15), (12, 14, 16)),
}


@TRANSFORMS.register_module()
class CropBodyPart:
    """Crop the image to a part of the person, as if the rest were outside the picture.

    Between LoadImage and GetBBoxCenterScale, on COCO's 17 keypoints. The image ends around the
    visible keypoints of the part, keypoints outside count as not labeled, and the box is cut. (The
    image around mmpose's RandomHalfBody still shows the rest of the person.) A person with fewer
    than two visible keypoints of the part stays whole.

    Args:
        parts: of PARTS, equally likely.
        chance: of a crop.
        margin: around the keypoints, of the longer side of their box.
        by_id: choose by the id of the person instead of at random, which makes an evaluation
            repeatable; `chance` is then 1.

    Raises:
        ValueError: an unknown part, or a chance or margin out of range.
    """

    def __init__(
        self,
        parts: Sequence[str] = ('upper', 'lower', 'limb'),
        chance: float = 0.5,
        margin: float = 0.15,
        by_id: bool = False,
    ):
        if isinstance(parts, str) or not parts or set(parts) - PARTS.keys():
            raise ValueError(f'parts={parts!r}; give a tuple of {", ".join(PARTS)}')
        if not 0 <= chance <= 1 or margin <= 0:
            raise ValueError(f'chance={chance}, margin={margin}; give 0 to 1, and more than 0')
        self.parts, self.chance = tuple(parts), chance
        self.margin, self.by_id = margin, by_id

    def __call__(self, results: dict) -> dict:
        if self.by_id:
            turn, index = divmod(int(results['id']), len(self.parts))
            choices = PARTS[self.parts[index]]
            return self._cropped(results, choices[turn % len(choices)], self.margin)
        if np.random.rand() >= self.chance:
            return results
        choices = PARTS[self.parts[np.random.randint(len(self.parts))]]
        margin = self.margin * np.random.uniform(0.3, 2)
        return self._cropped(results, choices[np.random.randint(len(choices))], margin)

    def _cropped(self, results, part, margin):
        if 'img' not in results or 'bbox_center' in results:
            raise KeyError('CropBodyPart stands between LoadImage and GetBBoxCenterScale')
        points = results['keypoints'][0]
        labeled = results['keypoints_visible'].reshape(len(points), -1)[:, 0] > 0
        seen = [joint for joint in part if labeled[joint]]
        if len(seen) == labeled.sum() or len(seen) < 2:
            return results
        low, high = points[seen].min(0), points[seen].max(0)
        reach = max(margin * (high - low).max(), 4)
        height, width = results['img'].shape[:2]
        left, top = np.maximum(np.floor(low - reach), 0).astype(int)
        right, bottom = np.minimum(np.ceil(high + reach) + 1, (width, height)).astype(int)
        inside = ((points >= (left, top)) & (points < (right, bottom))).all(1)
        visible = results['keypoints_visible'].copy()
        visible[0, ~inside] = 0
        box = results['bbox'] - np.float32([left, top] * 2)
        box = np.clip(box, 0, [right - left, bottom - top] * 2).astype(np.float32)
        image = results['img'][top:bottom, left:right]
        shape = image.shape[:2]
        return dict(
            results,
            img=np.ascontiguousarray(image),
            img_shape=shape,
            ori_shape=shape,
            keypoints=results['keypoints'] - np.float32([left, top]),
            keypoints_visible=visible,
            bbox=box,
        )
