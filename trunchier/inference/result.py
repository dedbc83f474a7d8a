"""The result of one frame, which can be drawn, saved and converted; see `samples` for its class."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..files import need, save_npz
from ..visualization.overlays import person_colors
from . import sources, writers
from .results import camera_of, to_content, to_record
from .samples import SampleOfFrame

if TYPE_CHECKING:
    from .predictor import Predictor

PERSON = 1  # COCO's category


class Result(SampleOfFrame):
    """People of an image or of a frame of a video.

    `len(result)` is their number. Fields and metainfo: see `Inferencer.__call__`.

    Args:
        paint: function of drawing options to a painter, see `paint_of`.
        metainfo, data: of PoseDataSample.
    """

    def __init__(
        self, *, metainfo: dict | None = None, paint: Callable | None = None, **data: Any
    ) -> None:
        object.__setattr__(self, '_paint', paint)
        super().__init__(metainfo=metainfo, **data)

    def new(self, *, metainfo: dict | None = None, **data: Any) -> Result:
        return self._painted_alike(super().new(metainfo=metainfo, **data))

    def clone(self) -> Result:
        return self._painted_alike(super().clone())

    def _painted_alike(self, other):
        object.__setattr__(other, '_paint', self._paint)
        return other

    def __len__(self) -> int:
        return len(self.pred_instances)

    def __bool__(self) -> bool:
        return True  # also without people

    def plot(self, image: np.ndarray | None = None, **painting: Any) -> np.ndarray:
        """Draw the people.

        Args:
            image: (H, W, 3) uint8 BGR. None: that of `return_image=True`, else of the file.
            painting: options of KeypointPainter or MeshPainter, such as draw_bbox=True.

        Returns:
            (H, W, 3) uint8 BGR, wider with side=True.

        Raises:
            ValueError: the image is not at hand, as of a frame of a video or of an address.
        """
        if image is None and 'image' in self:
            image = self.image
        elif image is None:
            path = self.get('img_path')
            if path is None or self.get('moves') or sources.is_url(path):
                raise ValueError(
                    f'{self.source}, frame {self.frame_id}: the image was not kept; predict with '
                    'return_image=True, or give plot() the image'
                )
            image = sources.read_image(path)
        return self._paint(**painting)(image, self)

    def save(self, path: str | Path, **painting: Any) -> Path:
        """Write a file in the format of its suffix.

        .json (as of `--save json`), .npz, .csv; of meshes .glb and .obj (of several people
        NAME_0.obj, NAME_1.obj...); else an image of `plot(**painting)`. Content: see
        "Files" of the guide to prediction.

        Returns:
            `path`.

        Raises:
            ValueError: a format of meshes without any; an image format that is not known.
        """
        path, people = Path(path), self.pred_instances
        suffix = path.suffix.lower()
        if suffix in ('.glb', '.obj') and 'vertices' not in people:
            raise ValueError(f'{suffix} requires a mesh model')
        if suffix == '.npz':
            save_npz(path, **to_record(people), **camera_of(self))
        elif suffix == '.json':
            writers.write_json(to_content(self), path)
        elif suffix == '.csv':
            writers.write_csv(self.to_rows(), path)
        elif suffix == '.glb':
            colors = person_colors(people)[:, ::-1] / 255
            bodies = people.vertices, self._paint().faces, people.translation
            writers.write_glb(*bodies, path, colors)
        elif suffix == '.obj':
            for person, vertices in enumerate(people.vertices):
                part = path.with_stem(f'{path.stem}_{person}') if len(people) > 1 else path
                writers.write_obj(vertices, self._paint().faces, people.translation[person], part)
        else:
            writers.write_image(self.plot(**painting), path)
        return path

    def to_coco(self, image_id: int | str | None = None) -> list[dict[str, Any]]:
        """People as COCO's results of keypoints, which `COCO.loadRes` reads.

        Args:
            image_id: None: of images the number that is the file's name, else the name; of frames
                of videos and cameras the index.

        Returns:
            For each person: image_id, category_id, keypoints [x1, y1, score1, x2...], bbox [x, y,
            width, height], score (of the box times the mean of the keypoints), and track_id if
            there is one.
        """
        if image_id is None and self.get('moves'):
            image_id = self.frame_id
        elif image_id is None:
            image_id = int(self.source) if self.source.isdecimal() else self.source
        people = []
        for person, points in enumerate(self._points()):
            x1, y1, x2, y2 = map(float, self.pred_instances.bboxes[person])
            score = float(self.pred_instances.bbox_scores[person] * points[:, 2].mean())
            each = dict(image_id=image_id, category_id=PERSON, keypoints=points.ravel().tolist())
            each |= dict(bbox=[x1, y1, x2 - x1, y2 - y1], score=score)
            people.append(each | self._track(person))
        return people

    def to_rows(self) -> list[dict[str, Any]]:
        """A dict per person: source, frame, person, track_id if there is one, box x1, y1, x2, y2
        and its score, and of each keypoint NAME_x, NAME_y, NAME_score."""
        names = self.get('keypoint_names')
        rows = []
        for person, points in enumerate(self._points()):
            row = dict(source=self.source, frame=self.frame_id, person=person)
            row |= self._track(person)
            box = map(float, self.pred_instances.bboxes[person])
            row |= zip(('x1', 'y1', 'x2', 'y2'), box, strict=True)
            row['score'] = float(self.pred_instances.bbox_scores[person])
            for name, values in zip(names or map(str, range(len(points))), points, strict=True):
                row |= zip(
                    (f'{name}_x', f'{name}_y', f'{name}_score'), map(float, values), strict=True
                )
            rows.append(row)
        return rows

    def to_dataframe(self) -> Any:
        """`to_rows` as a pandas.DataFrame.

        Raises:
            ImportError: pandas is not installed.
        """
        return need('pandas', 'to_dataframe()').DataFrame(self.to_rows())

    def _points(self):
        """(K, 3) of each person: x, y, score; meshes have no scores, and 1 here."""
        people = self.pred_instances
        scores = people.get('keypoint_scores', np.ones(people.keypoints.shape[:2]))
        return np.concatenate([people.keypoints, np.asarray(scores)[..., None]], axis=2)

    def _track(self, person):
        tracks = self.pred_instances.get('track_ids')
        known = tracks is not None and tracks[person] >= 0
        return dict(track_id=int(tracks[person])) if known else {}


def paint_of(predictor: Predictor) -> Callable:
    """Function of drawing options to the painter of a predictor, without its network."""
    first = predictor.dataset_meta if predictor.faces is None else predictor.faces
    return partial(predictor.painter_type, first)
