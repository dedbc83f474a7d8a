"""Output files of a run; interrupted runs resume.

    OUT/run.json                       model, weights and options that made the files
    OUT/predictions/NAME.json, .npz
    OUT/visualizations/NAME.jpg, .mp4, NAME/000000.jpg...
    OUT/meshes/NAME.glb, NAME_0.obj..., NAME/000000.glb..., NAME_0_from0.bvh...

An image is done when all its files exist. A video is written in segments of frames below
OUT/.NAME.part, each complete in itself; after the last one they are joined, without re-encoding,
and the folder is deleted.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..files import check_writable, save_npz, whole_file
from ..files.lock import FolderLock
from ..visualization.overlays import person_colors
from . import animation, writers
from .samples import InstancesOfFrame, SampleOfFrame
from .sources import EVERY_FRAME, Frame, Source
from .tracking import UNTRACKED
from .world import World
from .writers import FOLDERS, check_formats

if TYPE_CHECKING:
    from ..models.mesh.body import BodyModel

SEGMENT = 200  # frames of a video that are lost at most when a run is killed
IMAGE_SUFFIX = '.jpg'
RAW, CAMERA = 'raw_', 'camera_'  # prefixes in the npz of a segment
INDICES = 'all_frames'  # its array of the indices of its frames, also of those without people

# Fields of a person in npz and JSON. Names there are smplx's, rotation matrices are axis-angle.
SAVED_FIELDS = (
    'bboxes', 'bbox_scores', 'keypoints', 'keypoint_scores', 'track_ids', 'betas', 'translation',
    'joints', 'global_orient', 'body_pose', 'coco_keypoints',
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
        frames: indices of the frames of videos that are predicted.
        body: of `faces`, for 'animation' and 'bvh'.
        world: also write joints in world coordinates, and motion in these alone: True, or a camera
            that was measured.

    Attributes:
        draws: whether drawings are written.

    Raises:
        ValueError: an unknown format; `resume` with other settings.
        OSError: a folder cannot be written.
    """

    def __init__(
        self,
        home: str | Path,
        folders: dict[str, Path | None],
        save: Iterable[str],
        settings: dict[str, Any],
        faces: np.ndarray | None = None,
        resume: bool = False,
        frames: range = EVERY_FRAME,
        body: BodyModel | None = None,
        world: bool | World = False,
    ):
        save = check_formats(save, faces is not None)
        kinds = {name: folders[FOLDERS[name]] for name in save}
        self.folders = {name: folder for name, folder in kinds.items() if folder}  # by format
        self.home, self.faces, self.resume, self.frames = Path(home), faces, resume, frames
        self.body, self.world = body, world
        self.writes_videos = 'video' in self.folders
        self.draws = 'images' in self.folders or self.writes_videos
        self.video = None  # the _Video being written
        for folder in {self.home, *self.folders.values()}:
            check_writable(folder)
        self.settings = json.loads(json.dumps(settings))
        self._check_settings()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs out of `home`, and write `run.json`.

        Raises:
            FolderInUse: another run writes into `home`.
            ValueError, OSError: as at first; another run may have been there since.
        """
        lock = FolderLock(self.home)
        try:
            self._check_settings()
            writers.write_json(self.settings, self.home / 'run.json')
            yield
        finally:
            lock.release()

    def _check_settings(self):
        path, settings = self.home / 'run.json', self.settings
        if not self.resume or not path.is_file():
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
        """Whether an earlier run has written all files of this source."""
        files = self.files(source)
        unfinished = not self.resume or not files or self.part_folder(source).exists()
        return not unfinished and all(file.exists() for file in files)

    def files(self, source: Source) -> list[Path]:
        """Files of a source, without OBJ and BVH, of which there is one per person."""
        suffixes = dict(json='.json', npz='.npz')
        if not source.moves:
            suffixes |= dict(images=IMAGE_SUFFIX, glb='.glb')
        else:  # '': a folder
            suffixes |= dict(animation='.glb')
            suffixes |= dict(video='.mp4') if self.writes_videos else dict(images='')
        return [
            self.folders[name] / f'{source.name}{suffix}'
            for name, suffix in suffixes.items()
            if name in self.folders
        ]

    def part_folder(self, source: Source) -> Path:
        """Folder of an unfinished video."""
        return self.home / f'.{source.name}.part'

    def frames_left(self, source: Source) -> range:
        """Indices of the frames of a video that no earlier run has done."""
        segments = self._segments(source)
        done = segments[-1][1] - self.frames.start if segments else 0
        return self.frames[-(-done // self.frames.step) :]

    def stored(self, source: Source) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """Index and arrays (P, ...) of each of these frames."""
        return _stored(self.part_folder(source), self._segments(source))

    def _segments(self, source):
        """(start, end) of the complete segments of a video that follow each other."""
        segments, ends, start = [], {}, self.frames.start
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
        sample: SampleOfFrame,
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
        content, camera = to_content(sample), camera_of(sample)
        if self.world and len(sample.pred_instances):
            found = self.found_world(record, camera)
            record['joints_world'] = _in_world(found, record)
            camera['camera_to_world'] = found.matrix
            content = dict(
                meta_info=content['meta_info'] | dict(camera_to_world=found.matrix.tolist()),
                instance_info=writers.instances_to_json(record),
            )
        if 'json' in self.folders:
            writers.write_json(content, self.folders['json'] / f'{name}.json')
        if 'npz' in self.folders:
            save_npz(self.folders['npz'] / f'{name}.npz', **record, **camera)
        self._add_meshes(sample, name)
        if 'images' in self.folders:
            writers.write_image(drawing, self.folders['images'] / f'{name}{IMAGE_SUFFIX}')

    def found_world(self, arrays: dict[str, np.ndarray], camera: dict[str, np.ndarray]) -> World:
        """The given world, or that of people (N, ...) as arrays of `to_record`."""
        if isinstance(self.world, World):
            return self.world
        names = camera.get('joint_names', camera['keypoint_names'])
        return World.of_arrays(arrays, np.asarray(names).tolist())

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
        if self.video is not None and self.video.source.kind == 'video':
            self.video.close_segment()
            self.video = None
        self.finish()


class _Video:
    """Unfinished results of a video or camera: segments in a hidden folder."""

    def __init__(self, saver, source, fps, segments):
        self.saver, self.source, self.fps = saver, source, fps
        self.folder = saver.part_folder(source)
        if not segments and self.folder.exists():
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.segments = segments
        self.start = segments[-1][1] if segments else saver.frames.start
        self.indices = []  # of the frames of the segment
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
        self.indices.append(frame.index)
        if len(self.indices) >= SEGMENT:
            self.close_segment()

    def close_segment(self):
        """Complete the current segment. Its npz is written last and marks it as complete."""
        if not self.indices:
            return
        # Taken first: a segment that cannot be written is given up.
        segment, (indices, self.indices) = (self.start, self.indices[-1] + 1), (self.indices, [])
        self.start = segment[1]
        (rows, self.rows), (writer, self.writer) = (self.rows, []), (self.writer, None)
        if writer is not None:
            writer.close()
            self.writing.rename(_path(self.folder, segment, '.mp4'))
        arrays = {n: np.concatenate([row[n] for row in rows]) for n in rows[0]}
        arrays[INDICES] = np.array(indices)
        save_npz(_path(self.folder, segment, '.npz'), **arrays, **self.camera)
        self.segments.append(segment)

    def finish(self):
        self.close_segment()
        folders, name = self.saver.folders if self.segments else {}, self.source.name
        self.world = self._found_world() if self.saver.world and self.segments else None
        if 'json' in folders:
            self._write_json(folders['json'] / f'{name}.json')
        if 'npz' in folders:
            self._write_npz(folders['npz'] / f'{name}.npz')
        if {'animation', 'bvh'} & folders.keys():
            self._write_motion(folders, name)
        if 'video' in folders:
            parts = [_path(self.folder, segment, '.mp4') for segment in self.segments]
            writers.concatenate_videos(parts, folders['video'] / f'{name}.mp4')
        shutil.rmtree(self.folder)

    def _write_json(self, path):
        """What MMPose's demos write, frame by frame."""
        constants = self._constants()
        if self.world is not None:
            constants['camera_to_world'] = self.world.matrix
        meta = json.dumps(meta_info(self.source, constants))
        with whole_file(path) as part, open(part, 'w') as file:
            separator = f'{{"meta_info": {meta}, "instance_info": ['
            for index, record in _stored(self.folder, self.segments):
                if self.world is not None:
                    record['joints_world'] = _in_world(self.world, record)
                people = writers.instances_to_json(record)
                file.write(separator + json.dumps(dict(frame_id=index, instances=people)))
                separator = ',\n'
            file.write(']}')

    def _write_npz(self, path):
        parts = [_path(self.folder, segment, '.npz') for segment in self.segments]
        constants = self._constants()
        if self.world is not None:
            rows = self._rows('joints', 'transl', 'track_ids')
            constants |= dict(joints_world=_in_world(self.world, rows))
            constants |= dict(camera_to_world=self.world.matrix)
        writers.concatenate_npz(parts, path, constants, leave_out=(RAW, CAMERA, INDICES))

    def _rows(self, *fields):
        """Those of the fields (N, ...) that there are, of all frames."""
        rows = [record for _, record in _stored(self.folder, self.segments)]
        return {
            name: np.concatenate([row[name] for row in rows]) for name in fields if name in rows[0]
        }

    def _found_world(self):
        rows = self._rows('joints', 'transl', 'track_ids', 'coco_keypoints')
        # Untracked, the n-th people of two frames may be different ones.
        rows.setdefault('track_ids', np.full(len(rows['joints']), UNTRACKED))
        return self.saver.found_world(rows, self._constants())

    def _write_motion(self, folders, name):
        step = self.saver.frames.step if self.source.kind == 'video' else 1
        arrays = self._rows(*animation.MOTION_FIELDS)
        first = self.segments[0][0] if self.source.kind == 'video' else 0
        motions = animation.motions_of(arrays, self.saver.body, first, step)
        if self.world is not None:
            motions = [animation.in_world(motion, self.world) for motion in motions]
        if 'animation' in folders:
            lens, path = self._constants(), folders['animation'] / f'{name}.glb'
            camera = lens['image_size'], float(lens['focal_length'][1])
            lens = *camera, self.world
            animation.write_animated_glb(motions, self.saver.body, self.fps, path, *lens)
        for motion in motions if 'bvh' in folders else ():
            path = folders['bvh'] / f'{name}_{motion.track}_from{motion.frames[0]}.bvh'
            animation.write_bvh(motion, self.fps, path)

    def _constants(self):
        """What `camera_of` says of the first frame, and the frame rate."""
        with np.load(_path(self.folder, self.segments[0], '.npz'), allow_pickle=False) as file:
            constants = {n.removeprefix(CAMERA): a for n, a in file.items() if n.startswith(CAMERA)}
        return constants | {'fps': np.float64(self.fps)}


def _in_world(world, record):
    """Joints (N, J, 3) of `to_record` in the world."""
    joints = record['joints'] + record['transl'][:, None]
    tracks = record.get('track_ids', np.arange(len(joints)))
    return world(joints, tracks).astype(np.float32)


def _path(folder, segment, suffix):
    return folder / f'{segment[0]:08d}-{segment[1]:08d}{suffix}'


def _is_whole(path):
    """Whether a segment can be read; a damaged one is made again."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {'frame', INDICES} <= {name for name, array in arrays.items() if array.ndim}
    except Exception:  # of zipfile, zlib, and numpy's parser
        return False


def _stored(folder, segments):
    """Index and arrays (P, ...) of every frame in segments."""
    for segment in segments:
        with np.load(_path(folder, segment, '.npz'), allow_pickle=False) as file:
            arrays = {n: a for n, a in file.items() if not n.startswith(CAMERA)}
        for index in arrays.pop(INDICES).tolist():
            here = arrays['frame'] == index
            yield index, {name: array[here] for name, array in arrays.items()}


def to_record(instances: InstancesOfFrame) -> dict[str, np.ndarray]:
    """People as arrays (P, ...) for npz and JSON, see SAVED_FIELDS."""
    record = {}
    for name in SAVED_FIELDS:
        if name in instances:
            array = np.asarray(instances[name])
            if array.ndim == 4:  # of meshes, whose models need torch anyway
                import torch

                from ..geometry import matrix_to_axis_angle

                array = matrix_to_axis_angle(torch.from_numpy(array)).flatten(1).numpy()
            record[SMPLX_NAMES.get(name, name)] = array
    return record


def camera_of(sample: SampleOfFrame) -> dict[str, np.ndarray]:
    """The image's camera by name, in pixels, x before y; and the names of the keypoints."""
    height, width = sample.ori_shape
    names = ('focal_length', 'principal_point', 'keypoint_names', 'joint_names')
    camera = {name: np.asarray(sample.get(name)) for name in names if name in sample}
    return camera | {'image_size': np.array([width, height])}


def to_content(sample: SampleOfFrame) -> dict[str, Any]:
    """Content of a JSON file of one image."""
    people = writers.instances_to_json(to_record(sample.pred_instances))
    return dict(meta_info=_meta_of(sample), instance_info=people)


def _meta_of(sample):
    numbers = {name: array.tolist() for name, array in camera_of(sample).items()}
    return {'source': sample.img_path or sample.source, **numbers}


def meta_info(source: Source, camera: dict[str, np.ndarray]) -> dict[str, Any]:
    """`meta_info` of a JSON file: the path of the image or video, and what `camera_of` says."""
    numbers = {name: np.asarray(array).tolist() for name, array in camera.items()}
    return {'source': source.path or source.name, **numbers}


def frame_to_json(sample: SampleOfFrame) -> dict[str, Any]:
    """A result as one JSON object: `meta_info` of its image, `frame_id`, `time`, `instances`."""
    people = writers.instances_to_json(to_record(sample.pred_instances))
    return dict(
        meta_info=_meta_of(sample), frame_id=sample.frame_id, time=sample.time, instances=people
    )
