"""Predictions drawn over pictures: keypoints by mmpose's visualizer, bodies by our own renderer.

Pictures are (H, W, 3) uint8 BGR; each function returns a new one. No display, OpenGL or GPU is
needed.
"""

import cv2
import numpy as np

# BGR, light, told apart by most people who are colour-blind too.
PALETTE = np.array(
    [
        [222, 186, 158], [128, 178, 253], [165, 214, 170], [206, 160, 214], [140, 224, 247],
        [160, 160, 244], [214, 210, 140], [190, 190, 190],
    ],
    np.float32,
)  # fmt: skip
DEPTH_SHOWN = 4.0  # metres between the nearest and the farthest person in a side view
INK = (40, 40, 40)
PAPER = 255


def person_colours(instances):
    """(P, 3) BGR: by track where there is one, else by the place in the picture."""
    count = len(instances.bboxes)
    ids = np.arange(count)
    if 'track_ids' in instances:
        ids = np.where(instances.track_ids >= 0, instances.track_ids, ids)
    return PALETTE[ids % len(PALETTE)]


# ---------------------------------------------------------------------------------------------
# Keypoints
# ---------------------------------------------------------------------------------------------
class KeypointPainter:
    """Draws skeletons with mmpose's PoseLocalVisualizer.

    Args:
        dataset_meta: mmpose's parsed metainfo: skeleton, colours.
        radius, thickness: of points and lines, pixels; None: by the size of the picture.
        kpt_thr: keypoints with a lower score are not drawn.
        draw_bbox: draw boxes, and track ids beside them.
        skeleton_style: 'mmpose' or 'openpose'.
        black_background: draw on black instead of on the picture.
    """

    def __init__(
        self,
        dataset_meta,
        radius=None,
        thickness=None,
        kpt_thr=0.3,
        draw_bbox=False,
        skeleton_style='mmpose',
        black_background=False,
    ):
        from mmpose.visualization import PoseLocalVisualizer

        self.radius, self.thickness = radius, thickness
        self.kpt_thr = kpt_thr
        self.draw_bbox = draw_bbox
        self.skeleton_style = skeleton_style
        self.black_background = black_background
        self.visualizer = PoseLocalVisualizer()
        self.visualizer.set_dataset_meta(dataset_meta, skeleton_style)

    def __call__(self, image, sample):
        """`image` with the `pred_instances` (and, if there are any, heatmaps) of `sample`."""
        unit = max(image.shape[:2]) / 640
        self.visualizer.radius = self.radius or max(2, round(4 * unit))
        self.visualizer.line_width = self.thickness or max(1, round(2 * unit))
        background = np.zeros_like(image) if self.black_background else image
        if len(sample.pred_instances) == 0:
            return background.copy()
        drawn = self.visualizer.add_datasample(
            'picture',
            cv2.cvtColor(background, cv2.COLOR_BGR2RGB),
            sample,
            draw_gt=False,
            draw_bbox=self.draw_bbox,
            draw_heatmap='pred_fields' in sample,
            kpt_thr=self.kpt_thr,
            skeleton_style=self.skeleton_style,
        )
        drawn = cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR)
        return draw_track_ids(drawn, sample.pred_instances) if self.draw_bbox else drawn


def draw_boxes(image, instances):
    """Boxes and track ids of the people, in their colours."""
    image = image.copy()
    width = max(1, round(max(image.shape[:2]) / 400))
    for box, colour in zip(instances.bboxes, person_colours(instances), strict=True):
        (x1, y1), (x2, y2) = np.rint(box[:4].reshape(2, 2)).astype(int).tolist()
        cv2.rectangle(image, (x1, y1), (x2, y2), colour.tolist(), width)
    return draw_track_ids(image, instances)


def draw_track_ids(image, instances):
    """Write each track's id into the upper left corner of its box; changes `image`."""
    if 'track_ids' not in instances:
        return image
    size = max(image.shape[:2]) / 1000
    for box, track in zip(instances.bboxes, instances.track_ids, strict=True):
        if track >= 0:
            corner = int(box[0]) + 3, int(box[1] + 28 * size) + 3
            _write(image, f'#{track}', corner, size)
    return image


def _write(image, text, corner, size):
    font, width = cv2.FONT_HERSHEY_SIMPLEX, max(1, round(2 * size))
    cv2.putText(image, text, corner, font, size, INK, width + 2, cv2.LINE_AA)
    cv2.putText(image, text, corner, font, size, (255, 255, 255), width, cv2.LINE_AA)


# ---------------------------------------------------------------------------------------------
# Meshes
# ---------------------------------------------------------------------------------------------
def draw_bodies(
    image, people, faces, focal, centre, colours=None, alpha=0.9, style='solid', samples=2
):
    """Bodies over a picture, the nearer in front of the farther.

    Args:
        image: (H, W, 3) uint8 BGR.
        people: (P, V, 3), metres, camera of the whole picture.
        faces: (F, 3).
        focal, centre: (2,), pixels, x before y.
        colours: (P, 3) BGR 0..255; None: PALETTE.
        alpha: opacity of surfaces.
        style: 'solid', 'wireframe' or 'both'.
        samples: see `renderer.draw_meshes`.

    Raises:
        ImportError: without numba. ValueError: another style.
    """
    draw_meshes = _import_renderer()
    image = np.array(image, order='C')
    if colours is None:
        colours = PALETTE[np.arange(len(people)) % len(PALETTE)]
    draw_meshes(image, people, faces, focal, centre, colours, alpha, style, samples=samples)
    return image


def side_view(people, faces, shape, colours=None, style='solid', samples=2):
    """The people from the right of the picture, on white; what is near is on the left.

    All fit. They keep their places to each other, but farther apart in depth than DEPTH_SHOWN they
    move together, or each would be tiny.

    Args:
        people: (P, V, 3), metres, camera of the whole picture.
        faces: (F, 3).
        shape: (H, W) of the result.
        colours, style, samples: see `draw_bodies`.
    """
    image = np.full((*shape, 3), PAPER, np.uint8)
    if len(people) == 0:
        return image
    people = np.array(people, np.float32)
    depth = people[..., 2].mean(1)
    spread = max(np.ptp(depth), DEPTH_SHOWN)
    people[..., 2] += ((DEPTH_SHOWN / spread - 1) * (depth - depth.mean()))[:, None]
    low, high = people.min((0, 1)), people.max((0, 1))
    x, y, z = np.moveaxis(people - (low + high) / 2, -1, 0)
    turned = np.stack([z, y, -x], axis=-1)  # a quarter turn about the vertical
    reach = np.abs(turned).max((0, 1))
    focal = 4.0 * min(shape)  # long enough not to distort
    near = max(focal * reach[0] / (0.46 * shape[1]), focal * reach[1] / (0.46 * shape[0]), 1.0)
    turned[..., 2] += near + reach[2]
    centre = (shape[1] / 2, shape[0] / 2)
    return draw_bodies(
        image, turned, faces, (focal, focal), centre, colours, 1.0, style, samples=samples
    )


def _import_renderer():
    try:
        from ..render.meshes import draw_meshes
    except ImportError as error:
        raise ImportError('drawing meshes needs numba: pip install numba') from error
    return draw_meshes


class MeshPainter:
    """Draws the bodies that a MeshInferencer predicted.

    Args:
        faces: (F, 3).
        style: 'solid', 'wireframe' or 'both'.
        alpha: opacity of surfaces over the picture.
        side: add the view from the side, to the right of the picture.
        draw_bbox: draw boxes, and track ids beside them.
        black_background: draw on black instead of on the picture.
    """

    def __init__(
        self, faces, style='solid', alpha=0.9, side=False, draw_bbox=False, black_background=False
    ):
        self.faces = faces
        self.style, self.alpha, self.side = style, alpha, side
        self.draw_bbox = draw_bbox
        self.black_background = black_background

    def __call__(self, image, sample):
        """`image` with the `pred_instances` of `sample`: `vertices` moved by `translation`."""
        instances = sample.pred_instances
        drawn = np.zeros_like(image) if self.black_background else image
        people = instances.vertices + instances.translation[:, None]
        colours = person_colours(instances)
        drawn = draw_bodies(
            drawn,
            people,
            self.faces,
            sample.focal_length,
            sample.principal_point,
            colours,
            self.alpha,
            self.style,
        )
        if self.draw_bbox:
            drawn = draw_boxes(drawn, instances)
        if self.side:
            height, width = drawn.shape[:2]
            view = side_view(people, self.faces, (height, min(height, width)), colours, self.style)
            drawn = np.hstack([drawn, view])
        return drawn


# ---------------------------------------------------------------------------------------------
# Contact sheets
# ---------------------------------------------------------------------------------------------
def contact_sheet(rows, titles, height=256, gap=8):
    """Pictures side by side, as in the paper's Figures 4 and 5: a row a photo, a column a model.

    Args:
        rows: lists of (H, W, 3) BGR pictures, one for each title; None leaves a place empty.
        titles: written above the columns.
        height: of a row, pixels.
        gap: between pictures, pixels.

    Raises:
        ValueError: no picture at all, or a row with another number of pictures than titles.
    """
    for row in rows:
        if len(row) != len(titles):
            raise ValueError(f'a row has {len(row)} pictures for {len(titles)} titles {titles}')
    scaled = [[_fit(picture, height) for picture in row] for row in rows]
    widths = [
        max((p.shape[1] for p in column if p is not None), default=0)
        for column in zip(*scaled, strict=True)
    ]
    if not any(widths):
        raise ValueError('a contact sheet wants at least one picture')
    widths = [max(width, height // 2) for width in widths]
    head = height // 8
    shape = (
        head + gap + len(rows) * (height + gap),
        gap + sum(width + gap for width in widths),
        3,
    )
    sheet = np.full(shape, PAPER, np.uint8)
    for column, (title, width) in enumerate(zip(titles, widths, strict=True)):
        left = gap + sum(w + gap for w in widths[:column])
        _title(sheet[gap : gap + head, left : left + width], title)
        for line, row in enumerate(scaled):
            picture = row[column]
            if picture is not None:
                top = head + gap + line * (height + gap)
                margin = (width - picture.shape[1]) // 2
                place = sheet[top : top + height, left + margin : left + margin + picture.shape[1]]
                place[:] = picture
    return sheet


def _fit(picture, height):
    if picture is None:
        return None
    width = max(round(picture.shape[1] * height / picture.shape[0]), 1)
    shrinks = height < picture.shape[0]
    way = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(picture, (width, height), interpolation=way)


def _title(place, text):
    """Write `text` into the middle of `place`, as large as fits; changes `place`."""
    font, height, width = cv2.FONT_HERSHEY_SIMPLEX, *place.shape[:2]
    (full, tall), _ = cv2.getTextSize(text, font, 1.0, 1)
    size = min(0.95 * width / full, 0.55 * height / tall)
    corner = int((width - full * size) / 2), int((height + tall * size) / 2)
    cv2.putText(place, text, corner, font, size, INK, max(1, round(1.5 * size)), cv2.LINE_AA)
