"""Crops and decoding of this package's pose recipe, without mmpose: UDP, with DARK's refinement.

The same numbers as mmpose's GetBBoxCenterScale, TopdownAffine(use_udp=True) and UDPHeatmap, whose
import takes seconds and which `pip` cannot install. `is_plain` says whether a config is such a
recipe; others run in mmpose itself. Huang et al., The Devil is in the Details, CVPR 2020; Zhang et
al., Distribution-Aware Coordinate Representation, CVPR 2020.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

if TYPE_CHECKING:
    from mmengine.config import Config

WARP_LIMIT = 32766  # pixels per side that cv2.warpAffine accepts
PADDING = 1.25  # of boxes, where a config states nothing else
BLUR = 11  # side of the kernel that smooths heatmaps before they are refined
STEPS = ['LoadImage', 'GetBBoxCenterScale', 'TopdownAffine', 'PackPoseInputs']
FLIPS = dict(flip_mode='heatmap', shift_heatmap=False)


def is_plain(cfg: Config) -> bool:
    """Whether a config's crops and codec are those of this module, and its flip test too."""
    from ..models.heatmaps import is_plain as is_plain_model

    steps, head = cfg.test_dataloader.dataset.pipeline, cfg.model.get('head') or {}
    codec, test = head.get('decoder') or {}, cfg.model.get('test_cfg') or {}
    flips = all(test.get(name, value) == value for name, value in FLIPS.items())
    return (
        [step.type for step in steps] == STEPS
        and steps[2].get('use_udp', False)
        and codec.get('type') == 'UDPHeatmap'
        and codec.get('heatmap_type', 'gaussian') == 'gaussian'
        and (flips or not test.get('flip_test'))
        and not test.get('output_keypoint_indices')
        and is_plain_model(cfg.model)
    )


class Crops:
    """Crops of people for a plain config: boxes are padded, then widened to the crop's aspect."""

    def __init__(self, cfg: Config):
        steps = cfg.test_dataloader.dataset.pipeline
        self.padding = steps[1].get('padding', PADDING)
        self.size = tuple(steps[2].input_size)  # (width, height)

    @classmethod
    def of(cls, padding: float, size: tuple[int, int]) -> Crops:
        """The same of numbers: `padding` of boxes, and `size` (width, height) of crops."""
        crops = cls.__new__(cls)
        crops.padding, crops.size = padding, tuple(size)
        return crops

    def __call__(
        self, image: np.ndarray, box: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Cut a person out.

        Args:
            image: (H, W, 3) uint8.
            box: (4,), xyxy in pixels.

        Returns:
            (height, width, 3) uint8; center (2,) and size (2,) of what it shows, pixels of the
            image, x before y.
        """
        width, height = self.size
        center, (w, h) = (box[2:] + box[:2]) * 0.5, (box[2:] - box[:2]) * self.padding
        aspect = width / height
        size = np.array([w, w / aspect] if w > h * aspect else [h * aspect, h])
        step = np.array([width - 1, height - 1]) / size  # pixels of the crop per pixel
        matrix = np.zeros((2, 3), np.float32)
        matrix[:, :2], matrix[:, 2] = np.diag(step), step * (0.5 * size - center)
        crop = cv2.warpAffine(image, matrix, self.size, flags=cv2.INTER_LINEAR)
        return crop, center, size


class Codec:
    """Keypoints of heatmaps, for a plain config."""

    def __init__(self, codec: dict[str, Any]):
        self.input_size = np.array(codec['input_size'])
        self.heatmap_size = np.array(codec['heatmap_size'])
        self.kernel = codec.get('blur_kernel_size', BLUR)

    def decode(self, heatmaps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Maxima, refined by one Newton step on the logarithm of the smoothed heatmap.

        Args:
            heatmaps: (K, H, W) float32.

        Returns:
            (1, K, 2) pixels of the crop, x before y; (1, K) values of the maxima.
        """
        count, _, width = heatmaps.shape
        best = heatmaps.reshape(count, -1).argmax(1)
        scores = heatmaps.reshape(count, -1).max(1)
        points = np.stack([best % width, best // width], 1).astype(np.float32)
        points[scores <= 0] = -1
        logs = np.log(np.stack([self._smooth(each) for each in heatmaps]).clip(1e-3, 50))
        logs = np.pad(logs, ((0, 0), (1, 1), (1, 1)), mode='edge')
        # Flat indices, as mmpose's: without a maximum above 0 they reach into the map before.
        stride = width + 2
        x, y = (points + 1).astype(int).T  # in the padded map
        index = x + y * stride + np.arange(count) * logs[0].size
        steps = stride * np.arange(-1, 2)[:, None] + np.arange(-1, 2)
        near = logs.ravel()[index[:, None, None] + steps]
        (a, b, _), (c, d, e), (_, f, g) = near.transpose(1, 2, 0)
        slope = np.stack([e - c, f - b], 1) * np.float32(0.5)
        mixed = (g - e - f + d + d - c - b + a) * np.float32(0.5)
        curvature = np.stack([c - 2 * d + e, mixed, mixed, b - 2 * d + f], 1).reshape(-1, 2, 2)
        inverse = np.linalg.inv(curvature + np.finfo(np.float32).eps * np.eye(2))
        points -= np.einsum('kij,kj->ki', inverse, slope)
        return (points / (self.heatmap_size - 1) * self.input_size)[None], scores[None]

    def _smooth(self, heatmap):
        """Gaussian blur with zeros beyond the border; the maximum stays the same."""
        border = (self.kernel - 1) // 2
        wide = cv2.copyMakeBorder(heatmap, *[border] * 4, cv2.BORDER_CONSTANT, value=0)
        part = slice(border, -border)
        smooth = cv2.GaussianBlur(wide, (self.kernel, self.kernel), 0)[part, part]
        return smooth * (heatmap.max() / smooth.max())


def cut_out(image: np.ndarray, box: np.ndarray) -> tuple[np.ndarray, np.ndarray, int, np.ndarray]:
    """The part of a huge image around a box, shrunk if it is still too large to warp.

    Args: see `Predictor.crop`.

    Returns:
        the part; the box in it; the factor of shrinking; the corner (2,) of the part. x of the
        image is (x of the part + 0.5) * factor - 0.5 + corner.
    """
    size, center = box[2:4] - box[:2], (box[:2] + box[2:4]) / 2
    reach = 1.5 * size.max()  # farther than any crop of the box
    shape = np.array(image.shape[1::-1])
    low = np.clip(np.floor(center - reach), 0, shape - 1).astype(int)
    high = np.clip(np.ceil(center + reach), low + 1, shape).astype(int)
    part = image[low[1] : high[1], low[0] : high[0]]
    factor = -(-max(part.shape[:2]) // WARP_LIMIT)
    if factor > 1:
        part = cv2.resize(part, None, fx=1 / factor, fy=1 / factor, interpolation=cv2.INTER_AREA)
    near = box.copy()
    near[:4] = (box[:4] - np.tile(low, 2) + 0.5) / factor - 0.5
    return part, near, factor, low
