"""Overlays of predictions: keypoints by mmpose's visualizer, meshes by `trunchier.render`.

Images are (H, W, 3) uint8 BGR. Functions return a new image unless they say otherwise. No display,
OpenGL or GPU is needed.
"""

import threading
from dataclasses import dataclass

import cv2
import numpy as np
from mmengine.structures import BaseDataElement, InstanceData

from ..files.optional import need

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
MAX_DEPTH_RANGE = 4.0  # meters between the nearest and the farthest person of a side view
TEXT_COLOR = (40, 40, 40)
WHITE = 255


def person_colors(instances: InstanceData) -> np.ndarray:
    """(P, 3) BGR: by track id where a person has one, else by index."""
    ids = np.arange(len(instances.bboxes))
    if 'track_ids' in instances:
        ids = np.where(instances.track_ids >= 0, instances.track_ids, ids)
    return PALETTE[ids % len(PALETTE)]


# --- Keypoints ------------------------------------------------------------------------------------
@dataclass
class KeypointPainter:
    """Draws skeletons with mmpose's PoseLocalVisualizer.

    Args:
        dataset_meta: mmpose's parsed metainfo: skeleton, colors.
        radius, thickness: of points and lines, pixels; None: proportional to the image.
        kpt_thr: keypoints with a lower score are not drawn.
        draw_bbox: draw boxes and track ids.
        skeleton_style: 'mmpose' or 'openpose'.
        black_background: draw on black instead of on the image.
    """

    dataset_meta: dict
    radius: int | None = None
    thickness: int | None = None
    kpt_thr: float = 0.3
    draw_bbox: bool = False
    skeleton_style: str = 'mmpose'
    black_background: bool = False

    def __post_init__(self):
        from mmpose.visualization import PoseLocalVisualizer

        self.visualizer, self.lock = PoseLocalVisualizer(), threading.Lock()  # it keeps the image
        self.visualizer.set_dataset_meta(self.dataset_meta, self.skeleton_style)

    def __call__(self, image: np.ndarray, sample: BaseDataElement) -> np.ndarray:
        """Draw the `pred_instances` (and heatmaps, if any) of a PoseDataSample."""
        unit = max(image.shape[:2]) / 640
        background = np.zeros_like(image) if self.black_background else image
        if len(sample.pred_instances) == 0:
            return background.copy()
        with self.lock:
            self.visualizer.radius = self.radius or max(2, round(4 * unit))
            self.visualizer.line_width = self.thickness or max(1, round(2 * unit))
            drawn = self.visualizer.add_datasample(
                'image',
                cv2.cvtColor(background, cv2.COLOR_BGR2RGB),
                sample,
                draw_gt=False,
                draw_bbox=self.draw_bbox,
                draw_heatmap='pred_fields' in sample,
                kpt_thr=self.kpt_thr,
                skeleton_style=self.skeleton_style,
            )
        drawn = cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR)
        if self.draw_bbox:
            _draw_track_ids(drawn, sample.pred_instances)
        return drawn


def draw_boxes(image: np.ndarray, instances: InstanceData) -> np.ndarray:
    """Draw boxes and track ids in the colors of the people."""
    image = image.copy()
    width = max(1, round(max(image.shape[:2]) / 400))
    for box, color in zip(instances.bboxes, person_colors(instances), strict=True):
        (x1, y1), (x2, y2) = np.rint(box[:4].reshape(2, 2)).astype(int).tolist()
        cv2.rectangle(image, (x1, y1), (x2, y2), color.tolist(), width)
    _draw_track_ids(image, instances)
    return image


def _draw_track_ids(image, instances):
    """Write track ids into the upper left corners of the boxes, in place."""
    size = max(image.shape[:2]) / 1000
    font, width = cv2.FONT_HERSHEY_SIMPLEX, max(1, round(2 * size))
    for box, track in zip(instances.bboxes, instances.get('track_ids', ()), strict=False):
        if track >= 0:
            corner = int(box[0]) + 3, int(box[1] + 28 * size) + 3
            for color, line in ((TEXT_COLOR, width + 2), ((WHITE,) * 3, width)):
                cv2.putText(image, f'#{track}', corner, font, size, color, line, cv2.LINE_AA)


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
) -> np.ndarray:
    """Draw people on white as seen from the right of the image; the nearest is on the left.

    The view is zoomed to show everyone. Distances in depth are scaled down if they exceed
    MAX_DEPTH_RANGE, which would make each person tiny.

    Args:
        shape: (H, W) of the result.
        people, faces, colors, style: see `render.meshes.draw_meshes`.
    """
    image = np.full((*shape, 3), WHITE, np.uint8)
    if len(people) == 0:
        return image
    people = np.array(people, np.float32)
    depth = people[..., 2].mean(1)
    spread = max(np.ptp(depth), MAX_DEPTH_RANGE)
    people[..., 2] += ((MAX_DEPTH_RANGE / spread - 1) * (depth - depth.mean()))[:, None]
    low, high = people.min((0, 1)), people.max((0, 1))
    x, y, z = np.moveaxis(people - (low + high) / 2, -1, 0)
    turned = np.stack([z, y, -x], axis=-1)  # a quarter turn about the vertical
    reach = np.abs(turned).max((0, 1))
    focal = 4.0 * min(shape)  # long: little perspective distortion
    near = max(focal * reach[0] / (0.46 * shape[1]), focal * reach[1] / (0.46 * shape[0]), 1.0)
    turned[..., 2] += near + reach[2]
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

    def __call__(self, image: np.ndarray, sample: BaseDataElement) -> np.ndarray:
        """Draw the `pred_instances` of a PoseDataSample: `vertices` moved by `translation`.

        Size and position of each person are those of the sample's camera, perspective is less.
        """
        instances = sample.pred_instances
        drawn = np.zeros_like(image) if self.black_background else image
        people = instances.vertices + instances.translation[:, None]
        colors = person_colors(instances)
        far = max(LONG_LENS * max(image.shape[:2]) / sample.focal_length[0], 1.0)
        seen = instances.vertices + (instances.translation * np.float32([1, 1, far]))[:, None]
        camera = far * sample.focal_length, sample.principal_point
        drawn = draw_bodies(drawn, seen, self.faces, *camera, colors, self.alpha, self.style)
        if self.draw_bbox:
            drawn = draw_boxes(drawn, instances)
        if self.side:
            height, width = drawn.shape[:2]
            view = side_view(people, self.faces, (height, min(height, width)), colors, self.style)
            drawn = np.hstack([drawn, view])
        return drawn


# --- Contact sheets -------------------------------------------------------------------------------
def contact_sheet(
    rows: list[list[np.ndarray | None]], titles: list[str], height: int = 256, gap: int = 8
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
