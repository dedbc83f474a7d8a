"""Overlays of predictions: skeletons in a color per person, meshes by `trunchier.render`.

Images are (H, W, 3) uint8 BGR. Functions return a new image unless they say otherwise. No display,
OpenGL or GPU is needed.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import cv2
import numpy as np

from ..files.optional import need

if TYPE_CHECKING:
    from mmengine.structures import BaseDataElement, InstanceData

# BGR, light; most color-blind people can tell them apart.
PALETTE = np.array(
    [
        [222, 186, 158], [128, 178, 253], [165, 214, 170], [206, 160, 214], [140, 224, 247],
        [160, 160, 244], [214, 210, 140], [190, 190, 190],
    ],
    np.float32,
)  # fmt: skip
# Focal length of pictures of meshes, in longer sides of the image: about 4D-Humans' 5000 / 256, by
# which networks are trained. With the camera's own focal length, near limbs would miss the photo's.
LONG_LENS = 20.0
# BGR, saturated: the hues of PALETTE, for lines.
LINE_COLORS = np.array(
    [
        [255, 144, 30], [0, 128, 255], [80, 200, 60], [230, 70, 200], [0, 215, 255],
        [70, 70, 255], [210, 210, 0], [200, 200, 200],
    ],
    np.float32,
)  # fmt: skip
STYLES = ('person', 'mmpose', 'openpose')
FAINT = 0.35  # opacity of keypoints below the threshold
FIXED_POINT = 4  # fractional bits of coordinates that OpenCV draws
TEXT_COLOR = (40, 40, 40)
WHITE = 255


def person_colors(instances: InstanceData, palette: np.ndarray = PALETTE) -> np.ndarray:
    """(P, 3) BGR: by track id where a person has one, else by index."""
    ids = np.arange(len(instances.bboxes))
    if 'track_ids' in instances:
        ids = np.where(instances.track_ids >= 0, instances.track_ids, ids)
    return palette[ids % len(palette)]


# --- Keypoints ------------------------------------------------------------------------------------
@dataclass
class KeypointPainter:
    """Draws skeletons.

    Args:
        dataset_meta: mmpose's parsed metainfo: skeleton, colors.
        radius, thickness: of points and lines, pixels; None: by the sizes of image and person.
        kpt_thr: keypoints with a lower score, and lines to them, are drawn faintly; those with
            score 0 or less are not drawn.
        draw_bbox: draw boxes with track ids and scores of the detection.
        skeleton_style: 'person', a color per person or track; or 'mmpose' or 'openpose', as mmpose
            draws: a color per limb, nothing below `kpt_thr`.
        black_background: draw on black instead of on the image.

    Raises:
        ValueError: unknown style.
    """

    dataset_meta: dict
    radius: int | None = None
    thickness: int | None = None
    kpt_thr: float = 0.3
    draw_bbox: bool = False
    skeleton_style: str = 'person'
    black_background: bool = False

    def __post_init__(self):
        if self.skeleton_style not in STYLES:
            raise ValueError(
                f'skeleton_style must be one of {", ".join(STYLES)}, got {self.skeleton_style!r}'
            )
        self.lock, self.visualizer = threading.Lock(), None  # mmpose's, which keeps the image

    def __call__(self, image: np.ndarray, sample: BaseDataElement) -> np.ndarray:
        """Draw the `pred_instances` (and heatmaps, if any) of a PoseDataSample.

        They have keypoints, keypoint_scores and bboxes, which decide sizes and order.
        """
        drawn = np.zeros_like(image) if self.black_background else image.copy()
        instances = sample.pred_instances
        if len(instances) == 0:
            return drawn
        if self.skeleton_style != 'person':
            drawn = self._as_mmpose(drawn, sample)
        else:
            if 'pred_fields' in sample:
                _blend_heatmaps(drawn, np.asarray(sample.pred_fields.heatmaps))
            links, colors = (
                self.dataset_meta['skeleton_links'],
                person_colors(instances, LINE_COLORS),
            )
            for person in np.argsort(_diagonals(instances.bboxes)):  # small ones may be covered
                _draw_skeleton(
                    drawn,
                    np.asarray(instances.keypoints[person], np.float64)[:, :2],
                    np.asarray(instances.keypoint_scores[person]),
                    links,
                    colors[person].tolist(),
                    self.kpt_thr,
                    *self._sizes(image.shape, instances.bboxes[person]),
                )
        if self.draw_bbox:
            _draw_boxes(drawn, instances)
        return drawn

    def _sizes(self, shape, box):
        """Radius of points and thickness of lines: by the image, less for small people."""
        unit = min(max(shape[:2]) / 640, _diagonals(box[None])[0] / 160)
        return self.radius or max(3.2 * unit, 1.5), self.thickness or max(round(2.2 * unit), 1)

    def _as_mmpose(self, image, sample):
        unit = max(image.shape[:2]) / 640
        with self.lock:
            if self.visualizer is None:
                from mmpose.visualization import PoseLocalVisualizer

                self.visualizer = PoseLocalVisualizer()
                self.visualizer.set_dataset_meta(self.dataset_meta, self.skeleton_style)
            self.visualizer.radius = self.radius or max(2, round(4 * unit))
            self.visualizer.line_width = self.thickness or max(1, round(2 * unit))
            drawn = self.visualizer.add_datasample(
                'image',
                cv2.cvtColor(image, cv2.COLOR_BGR2RGB),
                sample,
                draw_gt=False,
                draw_bbox=False,
                draw_heatmap='pred_fields' in sample,
                kpt_thr=self.kpt_thr,
                skeleton_style=self.skeleton_style,
            )
        return cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR)


def _diagonals(boxes):
    return np.hypot(*(boxes[:, 2:4] - boxes[:, :2]).T)


def _draw_skeleton(image, points, scores, links, color, threshold, radius, thickness):
    """Draw a person in place: lines with a dark rim, points with a light one."""
    shown = (scores > 0) & np.isfinite(points).all(1)
    points = np.nan_to_num(points).clip(-1e4, 4e4)
    if not shown.any():
        return
    margin = int(2 * radius + thickness + 4)
    (left, top), (right, bottom) = points[shown].min(0) - margin, points[shown].max(0) + margin
    height, width = image.shape[:2]
    left, right = (int(np.clip(x, 0, width)) for x in (left, right))
    top, bottom = (int(np.clip(y, 0, height)) for y in (top, bottom))
    part = image[top:bottom, left:right]
    if part.size == 0:
        return
    at = np.rint((points - [left, top]) * (1 << FIXED_POINT)).astype(int).tolist()
    sure, rim = scores >= threshold, max(round(thickness / 2), 1)
    for chosen, opacity in ((shown & ~sure, FAINT), (sure & shown, 1.0)):
        if not chosen.any():
            continue
        layer = part if opacity == 1 else part.copy()
        # A line is as sure as the less sure of its ends.
        lines = [
            (at[a], at[b])
            for a, b in links
            if shown[a] and shown[b] and bool(sure[a] and sure[b]) == (opacity == 1)
        ]
        for tone, extra in ((TEXT_COLOR, 2 * rim), (color, 0)):
            for a, b in lines:
                cv2.line(layer, a, b, tone, thickness + extra, cv2.LINE_AA, FIXED_POINT)
        for index in np.flatnonzero(chosen):
            for tone, size in (((WHITE,) * 3, radius + 0.35 * thickness + 0.5), (color, radius)):
                size = round(size * (1 << FIXED_POINT))
                cv2.circle(layer, at[index], size, tone, cv2.FILLED, cv2.LINE_AA, FIXED_POINT)
        if opacity < 1:
            cv2.addWeighted(layer, opacity, part, 1 - opacity, 0, dst=part)


def _blend_heatmaps(image, heatmaps):
    """Color an image by the largest of the heatmaps (K, h, w), in place."""
    heat = cv2.resize(heatmaps.max(0).clip(0, 1), image.shape[1::-1])[..., None]
    colors = cv2.applyColorMap(np.uint8(heat * 255), cv2.COLORMAP_JET)
    image[:] = image + 0.7 * heat * (colors.astype(np.float32) - image)


def draw_boxes(image: np.ndarray, instances: InstanceData) -> np.ndarray:
    """Draw boxes in the colors of the people, with track ids and scores of the detection."""
    image = image.copy()
    _draw_boxes(image, instances)
    return image


def _draw_boxes(image, instances):
    """`draw_boxes`, in place. Scores of exactly 1 belong to given boxes and are not written."""
    unit, font = max(image.shape[:2]) / 640, cv2.FONT_HERSHEY_DUPLEX
    width, size, line = max(round(1.2 * unit), 1), max(0.42 * unit, 0.35), max(round(0.8 * unit), 1)
    tracks, scores = instances.get('track_ids'), instances.get('bbox_scores')
    for person, color in enumerate(person_colors(instances, LINE_COLORS).tolist()):
        box = np.rint(np.clip(instances.bboxes[person][:4], -1e4, 4e4)).astype(int)
        cv2.rectangle(image, box[:2].tolist(), box[2:].tolist(), color, width)
        words = [] if tracks is None or tracks[person] < 0 else [f'#{tracks[person]}']
        if scores is not None and np.isfinite(scores[person]) and scores[person] != 1:
            words.append(f'{scores[person]:.2f}')
        if not words:
            continue
        (wide, tall), below = cv2.getTextSize(' '.join(words), font, size, line)
        pad = max(round(2 * unit), 1)
        x, y = int(max(box[0], 0)), int(max(box[1], tall + below + 2 * pad))  # inside the image
        corner = x + wide + 2 * pad, y - tall - below - 2 * pad
        cv2.rectangle(image, (x, y), corner, color, cv2.FILLED)
        at = x + pad, y - pad - below // 2
        cv2.putText(image, ' '.join(words), at, font, size, TEXT_COLOR, line, cv2.LINE_AA)


# --- Meshes ---------------------------------------------------------------------------------------
def draw_bodies(
    image: np.ndarray,
    people: np.ndarray,
    faces: np.ndarray,
    focal: tuple[float, float],
    center: tuple[float, float],
    colors: np.ndarray,
    alpha: float = 0.9,
    style: str = 'solid',
) -> np.ndarray:
    """`render.meshes.draw_meshes` on a copy of the image; nearer people hide farther ones.

    Raises:
        ImportError: numba is not installed. ValueError: unknown style.
    """
    need('numba', 'drawing meshes')
    from ..render.meshes import draw_meshes

    image = np.array(image, order='C')
    draw_meshes(image, people, faces, focal, center, colors, alpha, style)
    return image


def side_view(
    people: np.ndarray,
    faces: np.ndarray,
    shape: tuple[int, int],
    colors: np.ndarray,
    style: str = 'solid',
    background: int = WHITE,
) -> np.ndarray:
    """Draw people as seen from the right of the image; the nearest is on the left.

    Relative to each other, people are as large and as high as in the image, so that each can be
    found beside it. All are shown, as large as fits; distances in depth are true to scale, or less
    where there is no room for them.

    Args:
        shape: (H, W) of the result.
        people, faces, colors, style: see `render.meshes.draw_meshes`.
        background: gray level.
    """
    image = np.full((*shape, 3), background, np.uint8)
    if len(people) == 0:
        return image
    people = np.array(people, np.float32)
    depth = people[..., 2].mean(1)
    # Along the rays of the camera to the depth of the nearest: nothing changes in the image.
    people *= (depth.min() / depth)[:, None, None]
    turned = people[..., [2, 1, 0]] * np.float32([1, 1, -1])  # a quarter turn about the vertical
    turned[..., 0] -= depth.min()
    height, width = turned[..., 1], np.ptp(turned[..., 0], axis=1).max()
    room_x, room_y = 0.94 * shape[1], 0.92 * shape[0]
    scale = min(room_y / max(np.ptp(height), 1e-3), room_x / max(width, 1e-3))  # pixels per meter
    behind = depth - depth.min()
    turned[..., 0] += (behind * min(1.0, (room_x / scale - width) / max(np.ptp(depth), 1e-3)))[
        :, None
    ]
    low, high = turned.min((0, 1)), turned.max((0, 1))
    turned -= (low + high) / 2
    focal = 20.0 * max(shape)  # long: nearly no perspective
    turned[..., 2] += focal / scale
    center = (shape[1] / 2, shape[0] / 2)
    return draw_bodies(image, turned, faces, (focal, focal), center, colors, 1.0, style)


@dataclass
class MeshPainter:
    """Draws predicted meshes over the people, through a long lens (LONG_LENS).

    Args:
        faces, style, alpha: see `render.meshes.draw_meshes`.
        side: append the view from the side, to the right of the image.
        draw_bbox, black_background: see `KeypointPainter`.
    """

    faces: np.ndarray
    style: str = 'solid'
    alpha: float = 0.9
    side: bool = False
    draw_bbox: bool = False
    black_background: bool = False
    perspective: ClassVar[bool] = False

    def __call__(self, image: np.ndarray, sample: BaseDataElement) -> np.ndarray:
        """Draw the `pred_instances` of a PoseDataSample: `vertices` moved by `translation`.

        Size and position of each person are those of the sample's camera, perspective is less.
        """
        instances = sample.pred_instances
        drawn = np.zeros_like(image) if self.black_background else image
        people = instances.vertices + instances.translation[:, None]
        colors = person_colors(instances)
        long = 0 if self.perspective else LONG_LENS * max(image.shape[:2])
        far = max(long / sample.focal_length[0], 1.0)
        seen = instances.vertices + (instances.translation * np.float32([1, 1, far]))[:, None]
        camera = far * sample.focal_length, sample.principal_point
        drawn = draw_bodies(drawn, seen, self.faces, *camera, colors, self.alpha, self.style)
        if self.draw_bbox:
            drawn = draw_boxes(drawn, instances)
        if self.side:
            height, width = drawn.shape[:2]
            shape, background = (height, min(height, width)), 0 if self.black_background else WHITE
            view = side_view(people, self.faces, shape, colors, self.style, background)
            drawn = np.hstack([drawn, view])
        return drawn


class PerspectivePainter(MeshPainter):
    """Draws meshes through the sample's own lens: of models that know where they are seen."""

    perspective = True


# --- Contact sheets -------------------------------------------------------------------------------
def contact_sheet(
    rows: Sequence[Sequence[np.ndarray | None]],
    titles: Sequence[str],
    height: int = 256,
    gap: int = 8,
) -> np.ndarray:
    """Grid of images as in the paper's Figures 4 and 5: a row per input, a column per model.

    Args:
        rows: lists of (H, W, 3) BGR images, one per title; None leaves a cell empty.
        height: of a row, pixels.
        gap: between images, pixels.

    Raises:
        ValueError: no image at all, or a row whose length differs from that of `titles`.
    """
    for row in rows:
        if len(row) != len(titles):
            raise ValueError(f'a row has {len(row)} images for {len(titles)} titles {titles}')
    if not any(image is not None for row in rows for image in row):
        raise ValueError('a contact sheet requires at least one image')
    head, columns = height // 8, []
    for title, images in zip(titles, zip(*rows, strict=True), strict=True):
        scaled = [None if image is None else _resize(image, height) for image in images]
        width = max([height // 2, *(image.shape[1] for image in scaled if image is not None)])
        column = np.full((head + gap + len(rows) * (height + gap), width + gap, 3), WHITE, np.uint8)
        _title(column[gap : gap + head, :width], title)
        for top, image in zip(range(head + gap, len(column), height + gap), scaled, strict=True):
            if image is not None:
                start = (width - image.shape[1]) // 2
                column[top : top + height, start : start + image.shape[1]] = image
        columns.append(column)
    return np.pad(np.hstack(columns), ((0, 0), (gap, 0), (0, 0)), constant_values=WHITE)


def _resize(image, height):
    width = max(round(image.shape[1] * height / image.shape[0]), 1)
    method = cv2.INTER_AREA if height < image.shape[0] else cv2.INTER_LINEAR
    return cv2.resize(image, (width, height), interpolation=method)


def _title(cell, text):
    """Write `text` into the middle of `cell`, as large as fits, in place."""
    font, height, width = cv2.FONT_HERSHEY_SIMPLEX, *cell.shape[:2]
    (full, tall), _ = cv2.getTextSize(text, font, 1.0, 1)
    size = min(0.95 * width / full, 0.55 * height / tall)
    corner = int((width - full * size) / 2), int((height + tall * size) / 2)
    line = max(1, round(1.5 * size))
    cv2.putText(cell, text, corner, font, size, TEXT_COLOR, line, cv2.LINE_AA)
