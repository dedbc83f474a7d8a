"""Output files of a run; interrupted runs resume.

    OUT/run.json                       model, weights and options that made the files
    OUT/predictions/NAME.json, .npz
    OUT/visualizations/NAME.jpg, .mp4, NAME/000000.jpg...
    OUT/meshes/NAME.glb, NAME_0.obj..., NAME/000000.glb...

An image is done when all its files exist. A video is written in segments of frames below
OUT/.NAME.part, each complete in itself; after the last one they are joined, without re-encoding,
and the folder is deleted.
"""

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.structures import BaseDataElement, InstanceData

from ..files import check_writable, save_npz, whole_file
from ..files.lock import FolderLock
from ..geometry import matrix_to_axis_angle
from ..visualization.overlays import person_colors
from . import writers
from .sources import Frame, Source

FOLDERS = {
    'json': 'predictions', 'npz': 'predictions', 'obj': 'meshes', 'glb': 'meshes',
    'video': 'visualizations', 'images': 'visualizations',
}  # fmt: skip
FORMATS = tuple(FOLDERS)
SEGMENT = 200  # frames of a video that are lost at most when a run is killed
IMAGE_SUFFIX = '.jpg'
RAW, CAMERA = 'raw_', 'camera_'  # prefixes in the npz of a segment

# Fields of a person in npz and JSON. Names there are smplx's, rotation matrices are axis-angle.
SAVED_FIELDS = (
    'bboxes', 'bbox_scores', 'keypoints', 'keypoint_scores', 'track_ids', 'betas', 'translation',
    'joints', 'global_orient', 'body_pose',
)  # fmt: skip
SMPLX_NAMES = {'translation': 'transl'}


class Saver:
    """Writes the results of a run as they arrive, source by source.

    Args:
        home: folder of `run.json` and of unfinished videos.
        folders: by kind: predictions, visualizations, meshes; None: nothing of it is written.
        save: some of FORMATS. 'images': of images, and of every frame of a video unless 'video' is
            given too.
        settings: what the results depend on, as plain data for `run.json`.
        faces: (F, 3) of meshes.
        resume: continue an interrupted run with the same settings.

    Attributes:
        draws: whether drawings are written.

    Raises:
        ValueError: an unknown format; `resume` with other settings.
        OSError: a folder cannot be written.
        FolderInUse: another run writes into `home`.
    """

    def __init__(
        self,
        home: str | Path,
        folders: dict[str, Path | None],
        save: Iterable[str],
        settings: dict[str, Any],
        faces: np.ndarray | None = None,
        resume: bool = False,
    ):
        unknown = set(save) - set(FORMATS)
        if unknown:
            raise ValueError(f'cannot save {sorted(unknown)}; choose from {", ".join(FORMATS)}')
        if {'obj', 'glb'} & set(save) and faces is None:
            raise ValueError('obj and glb require a mesh model')
        kinds = {name: folders[FOLDERS[name]] for name in save}
        self.folders = {name: folder for name, folder in kinds.items() if folder}  # by format
        self.home, self.faces, self.resume = Path(home), faces, resume
        self.writes_videos = 'video' in self.folders
        self.draws = 'images' in self.folders or self.writes_videos
        self.video = None  # the _Video being written
        for folder in {self.home, *self.folders.values()}:
            check_writable(folder)
        self.lock = FolderLock(self.home)
        settings = json.loads(json.dumps(settings))
        try:
            if resume:
                self._check_settings(settings)
            writers.write_json(settings, self.home / 'run.json')
        except BaseException:
            self.lock.release()
            raise

    def _check_settings(self, settings):
        path = self.home / 'run.json'
        if not path.is_file():
            return
        try:
            before = json.loads(path.read_text())
        except (ValueError, RecursionError):
            before = None
        if not isinstance(before, dict):
            raise ValueError(f'{path} was not written by a run; choose another folder')
        changed = [
            f'{name}: {before.get(name)!r} then, {settings.get(name)!r} now'
            for name in sorted(before.keys() | settings.keys())
            if before.get(name) != settings.get(name)
        ]
        if changed:
            raise ValueError(
                f'{self.home} has results of another run ({"; ".join(changed)}); resume it with '
                'its options, or choose another folder'
            )

    # --- earlier results -----------------------------------------------------------------------

    def is_done(self, source: Source) -> bool:
        """Whether an earlier run has written all files of this source.

        OBJ does not count, of which there is one file per person.
        """
        suffixes = dict(json='.json', npz='.npz')
        if not source.moves:
            suffixes |= dict(images=IMAGE_SUFFIX, glb='.glb')
        else:  # '': a folder
            suffixes |= dict(video='.mp4') if self.writes_videos else dict(images='')
        files = [
            self.folders[name] / f'{source.name}{suffix}'
            for name, suffix in suffixes.items()
            if name in self.folders
        ]
        unfinished = not self.resume or not files or self.part_folder(source).exists()
        return not unfinished and all(file.exists() for file in files)

    def part_folder(self, source: Source) -> Path:
        """Folder of an unfinished video."""
        return self.home / f'.{source.name}.part'

    def frames_done(self, source: Source) -> int:
        """Number of frames of a video that an earlier run has done, from its first on."""
        segments = self._segments(source)
        return segments[-1][1] if segments else 0

    def stored(self, source: Source) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """Index and arrays (P, ...) of each of these frames."""
        return _stored(self.part_folder(source), self._segments(source))

    def _segments(self, source):
        """(start, end) of the complete segments of a video that follow each other from 0 on."""
        segments, ends, start = [], {}, 0
        if self.resume and source.kind == 'video':
            for path in self.part_folder(source).glob('[0-9]*-[0-9]*.npz'):
                complete = not self.writes_videos or path.with_suffix('.mp4').exists()
                if complete and _is_whole(path):
                    ends.update([map(int, path.stem.split('-'))])
        while start in ends:
            segments.append((start, ends[start]))
            start = ends[start]
        return segments

    # --- new results ---------------------------------------------------------------------------

    def start(self, source: Source, fps: float) -> None:
        """Begin a video or camera, after the frames that are done."""
        self.video = _Video(self, source, fps, self._segments(source))

    def add(
        self,
        frame: Frame,
        sample: BaseDataElement,
        drawing: np.ndarray | None = None,
        raw: dict[str, np.ndarray] | None = None,
    ) -> None:
        """Write one frame's result; `raw`: arrays (P, ...) for `stored` of a resumed run."""
        record = to_record(sample.pred_instances)
        name = frame.source.name
        if frame.source.moves:
            self._add_meshes(sample, f'{name}/{frame.index:06d}')
            if 'images' in self.folders and not self.writes_videos:
                path = self.folders['images'] / name / f'{frame.index:06d}{IMAGE_SUFFIX}'
                writers.write_image(drawing, path)
            self.video.add(frame, record, drawing, raw or {}, camera_of(sample))
            return
        if 'json' in self.folders:
            people = writers.instances_to_json(record)
            writers.write_json(people, self.folders['json'] / f'{name}.json')
        if 'npz' in self.folders:
            save_npz(self.folders['npz'] / f'{name}.npz', **record, **camera_of(sample))
        self._add_meshes(sample, name)
        if 'images' in self.folders:
            writers.write_image(drawing, self.folders['images'] / f'{name}{IMAGE_SUFFIX}')

    def _add_meshes(self, sample, name):
        if not {'obj', 'glb'} & self.folders.keys():
            return
        instances = sample.pred_instances
        people, places = instances.vertices, instances.translation
        if 'obj' in self.folders:
            for person, vertices in enumerate(people):
                path = self.folders['obj'] / f'{name}_{person}.obj'
                writers.write_obj(vertices, self.faces, places[person], path)
        if 'glb' in self.folders:
            path, colors = self.folders['glb'] / f'{name}.glb', person_colors(instances)
            writers.write_glb(people, self.faces, places, path, colors[:, ::-1] / 255)

    def finish(self) -> None:
        """Complete the video being written."""
        if self.video is not None:
            video, self.video = self.video, None
            video.finish()

    def interrupt(self) -> None:
        """End the run: keep what is done of a video being written; that of a camera is complete."""
        try:
            if self.video is not None and self.video.source.kind == 'video':
                self.video.close_segment()
                self.video = None
            self.finish()
        finally:
            self.lock.release()


class _Video:
    """Unfinished results of a video or camera: segments in a hidden folder."""

    def __init__(self, saver, source, fps, segments):
        self.saver, self.source, self.fps = saver, source, fps
        self.folder = saver.part_folder(source)
        if not segments and self.folder.exists():
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.segments = segments
        self.start = self.count = segments[-1][1] if segments else 0
        self.rows, self.camera = [], {}  # arrays (P, ...) of each frame of the segment
        self.writer, self.writing = None, self.folder / '.growing.mp4'

    def add(self, frame, record, drawing, raw, camera):
        if self.saver.writes_videos:
            if self.writer is None:
                self.writer = writers.VideoWriter(self.writing, self.fps, drawing.shape[:2])
            self.writer.write(drawing)
        raw = {RAW + name: array for name, array in raw.items()}
        self.rows.append(dict(frame=np.full(len(record['bboxes']), frame.index), **record, **raw))
        self.camera = {CAMERA + name: array for name, array in camera.items()}
        self.count += 1
        if self.count - self.start >= SEGMENT:
            self.close_segment()

    def close_segment(self):
        """Complete the current segment. Its npz is written last and marks it as complete."""
        if self.count == self.start:
            return
        # Taken first: a segment that cannot be written is given up.
        segment, self.start = (self.start, self.count), self.count
        (rows, self.rows), (writer, self.writer) = (self.rows, []), (self.writer, None)
        if writer is not None:
            writer.close()
            self.writing.rename(_path(self.folder, segment, '.mp4'))
        arrays = {n: np.concatenate([row[n] for row in rows]) for n in rows[0]}
        save_npz(_path(self.folder, segment, '.npz'), **arrays, **self.camera)
        self.segments.append(segment)

    def finish(self):
        self.close_segment()
        folders, name = self.saver.folders if self.segments else {}, self.source.name
        if 'json' in folders:
            self._write_json(folders['json'] / f'{name}.json')
        if 'npz' in folders:
            self._write_npz(folders['npz'] / f'{name}.npz')
        if 'video' in folders:
            parts = [_path(self.folder, segment, '.mp4') for segment in self.segments]
            writers.concatenate_videos(parts, folders['video'] / f'{name}.mp4')
        shutil.rmtree(self.folder)

    def _write_json(self, path):
        """MMPose's list of {frame_id, instances}, written frame by frame."""
        with whole_file(path) as part, open(part, 'w') as file:
            separator = '['
            for index, record in _stored(self.folder, self.segments):
                people = writers.instances_to_json(record)
                file.write(separator + json.dumps(dict(frame_id=index, instances=people)))
                separator = ',\n'
            file.write(']')

    def _write_npz(self, path):
        parts = [_path(self.folder, segment, '.npz') for segment in self.segments]
        with np.load(parts[0], allow_pickle=False) as file:
            constants = {n.removeprefix(CAMERA): a for n, a in file.items() if n.startswith(CAMERA)}
        constants['fps'] = np.float64(self.fps)
        writers.concatenate_npz(parts, path, constants, leave_out=(RAW, CAMERA))


def _path(folder, segment, suffix):
    return folder / f'{segment[0]:08d}-{segment[1]:08d}{suffix}'


def _is_whole(path):
    """Whether a segment can be read; a damaged one is made again."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return 'frame' in [name for name, array in arrays.items() if array.ndim]
    except Exception:  # of zipfile, zlib, and numpy's parser
        return False


def _stored(folder, segments):
    """Index and arrays (P, ...) of every frame in segments."""
    for segment in segments:
        with np.load(_path(folder, segment, '.npz'), allow_pickle=False) as file:
            arrays = {n: a for n, a in file.items() if not n.startswith(CAMERA)}
        for index in range(*segment):
            here = arrays['frame'] == index
            yield index, {name: array[here] for name, array in arrays.items()}


def to_record(instances: InstanceData) -> dict[str, np.ndarray]:
    """People as arrays (P, ...) for npz and JSON, see SAVED_FIELDS."""
    record = {}
    for name in SAVED_FIELDS:
        if name in instances:
            array = np.asarray(instances[name])
            if array.ndim == 4:
                array = matrix_to_axis_angle(torch.from_numpy(array)).flatten(1).numpy()
            record[SMPLX_NAMES.get(name, name)] = array
    return record


def camera_of(sample: BaseDataElement) -> dict[str, np.ndarray]:
    """The image's camera, by name: pixels, x before y."""
    height, width = sample.ori_shape
    names = [name for name in ('focal_length', 'principal_point') if name in sample]
    camera = {name: np.asarray(sample.get(name)) for name in names}
    return camera | {'image_size': np.array([width, height])}
