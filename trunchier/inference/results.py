"""What a run leaves on the disk, so that an interrupted one can go on where it stopped.

    OUT/run.json                       what made the files: model, weights, options
    OUT/predictions/NAME.json, .npz
    OUT/visualizations/NAME.jpg, .mp4, NAME/000000.jpg...
    OUT/meshes/NAME.glb, NAME_0.obj..., NAME/000000.glb...

A picture is done when all its files are there. A video grows in stretches of frames below
OUT/.NAME.part, each complete in itself; the last one done, they are joined, without the frames
being encoded again, and the folder goes.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import torch

from ..files.whole import check_writable, whole_file
from ..geometry import matrix_to_axis_angle
from ..visualization.overlays import person_colors
from . import writers

FORMATS = ('json', 'npz', 'obj', 'glb', 'video', 'images')
STRETCH = 200  # frames of a video that are lost at most when a run is killed
PICTURE_SUFFIX = '.jpg'
RAW, CAMERA = 'raw_', 'camera_'  # prefixes in a stretch's npz

# A person in npz and JSON: the field of `pred_instances`, and the name there (smplx's, of meshes).
PLAIN_FIELDS = {
    'bboxes': 'bboxes',
    'bbox_scores': 'bbox_scores',
    'keypoints': 'keypoints',
    'keypoint_scores': 'keypoint_scores',
    'track_ids': 'track_ids',
    'betas': 'betas',
    'translation': 'transl',
    'joints': 'joints',
}
ROTATIONS = ('global_orient', 'body_pose')  # matrices there, axis-angle here


class Saver:
    """Writes the results of a run as they come, source by source.

    Args:
        home: folder of `run.json` and of unfinished videos.
        predictions, visualizations, meshes: folders; None: nothing of the kind is written.
        save: some of FORMATS. 'images' are pictures of stills, and of every frame of a video unless
            'video' is there too.
        settings: plain data that tells what the results depend on; for `run.json`.
        faces: (F, 3), of bodies.
        resume: go on with what an interrupted run with the same settings left.

    Raises:
        ValueError: an unknown format; `resume` with other settings.
        OSError: a folder cannot be written.
    """

    def __init__(
        self, home, predictions, visualizations, meshes, save, settings, faces=None, resume=False
    ):
        unknown = set(save) - set(FORMATS)
        if unknown:
            raise ValueError(f'cannot save {sorted(unknown)}; choose from {", ".join(FORMATS)}')
        if {'obj', 'glb'} & set(save) and faces is None:
            raise ValueError('obj and glb are of meshes; a pose model predicts none')
        self.home = Path(home)
        self.predictions = predictions and Path(predictions)
        self.visualizations = visualizations and Path(visualizations)
        self.meshes = meshes and Path(meshes)
        self.save = set(save)
        self.faces = faces
        self.resume = resume
        self.video = None  # the _Video that is growing
        for folder in (self.home, self.predictions, self.visualizations, self.meshes):
            if folder is not None:
                check_writable(folder)
        settings = json.loads(json.dumps(settings))
        if resume:
            self._check_settings(settings)
        writers.write_json(settings, self.home / 'run.json')

    def _check_settings(self, settings):
        path = self.home / 'run.json'
        if not path.is_file():
            return
        before = json.loads(path.read_text())
        changed = [
            f'{name}: {before.get(name)!r} then, {settings.get(name)!r} now'
            for name in sorted(before.keys() | settings.keys())
            if before.get(name) != settings.get(name)
        ]
        if changed:
            raise ValueError(
                f'{self.home} holds results of another run ({"; ".join(changed)}); repeat its '
                'options to resume it, or choose another folder'
            )

    @property
    def draws(self):
        """Whether pictures are written."""
        return self.visualizations is not None and bool({'video', 'images'} & self.save)

    # --- what is there -------------------------------------------------------------------------

    def is_done(self, source):
        """Whether an earlier run has written all about this source."""
        files = self._files(source)
        if not self.resume or not files or self.part_folder(source).exists():
            return False
        return all(file.exists() for file in files)

    def part_folder(self, source):
        """Where a video lies while it is unfinished."""
        return self.home / f'.{source.name}.part'

    def _files(self, source):
        """What a finished source leaves (OBJ files aside, of which there is one a person)."""
        files = []
        if self.predictions is not None:
            suffixes = [s for s in ('json', 'npz') if s in self.save]
            files += [self.predictions / f'{source.name}.{s}' for s in suffixes]
        if self.draws and (not source.moves or 'video' not in self.save):
            name = source.name if source.moves else source.name + PICTURE_SUFFIX
            files += [self.visualizations / name] if 'images' in self.save else []
        elif self.draws:
            files.append(self.visualizations / f'{source.name}.mp4')
        if self.meshes is not None and not source.moves and 'glb' in self.save:
            files.append(self.meshes / f'{source.name}.glb')
        return files

    def frames_done(self, source):
        """How many frames of a video an earlier run has done, from its first on."""
        stretches = self._stretches(source)
        return stretches[-1][1] if stretches else 0

    def stored(self, source):
        """What is kept of each of these frames: (index, dict of arrays (P, ...))."""
        return _stored(self.part_folder(source), self._stretches(source))

    def _stretches(self, source):
        if not self.resume or source.kind != 'video':
            return []
        return _complete_stretches(self.part_folder(source), self.writes_videos)

    @property
    def writes_videos(self):
        return self.draws and 'video' in self.save

    # --- what is added -------------------------------------------------------------------------

    def start(self, source, fps):
        """Begin a video or camera, after the frames that are done."""
        self.finish()
        self.video = _Video(self, source, fps, self._stretches(source))

    def add(self, frame, sample, picture=None, raw=None):
        """Write one frame's result.

        Args:
            frame: Frame. sample: its PoseDataSample. picture: drawn, or None.
            raw: dict of arrays (P, ...) to be handed back by `stored` when the run is resumed.
        """
        record = to_record(sample.pred_instances)
        name = frame.source.name
        if frame.source.moves:
            self._add_meshes(sample, f'{name}/{frame.index:06d}')
            if self.draws and 'video' not in self.save:
                path = self.visualizations / name / f'{frame.index:06d}{PICTURE_SUFFIX}'
                writers.write_image(picture, path)
            self.video.add(frame, record, picture, raw or {}, camera_of(sample))
            return
        if self.predictions is not None and 'json' in self.save:
            people = writers.instances_to_json(record)
            writers.write_json(people, self.predictions / f'{name}.json')
        if self.predictions is not None and 'npz' in self.save:
            writers.write_npz({**record, **camera_of(sample)}, self.predictions / f'{name}.npz')
        self._add_meshes(sample, name)
        if self.draws and 'images' in self.save:
            writers.write_image(picture, self.visualizations / f'{name}{PICTURE_SUFFIX}')

    def _add_meshes(self, sample, name):
        if self.meshes is None or not {'obj', 'glb'} & self.save:
            return
        instances = sample.pred_instances
        people = instances.vertices + instances.translation[:, None]
        if 'obj' in self.save:
            for person, vertices in enumerate(people):
                writers.write_obj(vertices, self.faces, self.meshes / f'{name}_{person}.obj')
        if 'glb' in self.save:
            colours = person_colors(instances)[:, ::-1] / 255
            writers.write_glb(people, self.faces, self.meshes / f'{name}.glb', colours)

    def finish(self):
        """The video that is growing is complete."""
        if self.video is not None:
            video, self.video = self.video, None
            video.finish()

    def interrupt(self):
        """Keep what is done of the video that is growing; a camera's is complete then."""
        if self.video is not None:
            video, self.video = self.video, None
            if video.source.kind == 'camera':
                video.finish()
            else:
                video.close_stretch()


class _Video:
    """One video's or camera's results while they grow: stretches in a hidden folder."""

    def __init__(self, saver, source, fps, stretches):
        self.saver, self.source, self.fps = saver, source, fps
        self.folder = saver.part_folder(source)
        if not stretches and self.folder.exists():
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.stretches = stretches
        self.start = self.count = stretches[-1][1] if stretches else 0
        self.frames, self.records, self.raw, self.camera = [], [], [], {}
        self.writer = self.writing = None

    def add(self, frame, record, picture, raw, camera):
        if self.saver.writes_videos:
            if self.writer is None:
                self.writing = self.folder / '.growing.mp4'
                self.writer = writers.VideoWriter(self.writing, self.fps, picture.shape[:2])
            self.writer.write(picture)
        self.frames.append(np.full(len(record['bboxes']), frame.index))
        self.records.append(record)
        self.raw.append(raw)
        self.camera = camera
        self.count += 1
        if self.count - self.start >= STRETCH:
            self.close_stretch()

    def close_stretch(self):
        """Complete the stretch that is growing. The npz comes last: it says that all is there."""
        if self.count == self.start:
            return
        stretch = (self.start, self.count)
        if self.writer is not None:
            writer, self.writer = self.writer, None
            writer.close()
            self.writing.rename(_path(self.folder, stretch, '.mp4'))
        arrays = {'frame': np.concatenate(self.frames)}
        arrays |= {CAMERA + name: value for name, value in self.camera.items()}
        for prefix, rows in (('', self.records), (RAW, self.raw)):
            arrays |= {prefix + n: np.concatenate([row[n] for row in rows]) for n in rows[0]}
        writers.write_npz(arrays, _path(self.folder, stretch, '.npz'))
        self.stretches.append(stretch)
        self.start = self.count
        self.frames, self.records, self.raw = [], [], []

    def finish(self):
        self.close_stretch()
        saver, name = self.saver, self.source.name
        if self.stretches and saver.predictions is not None:
            if 'json' in saver.save:
                self._write_json(saver.predictions / f'{name}.json')
            if 'npz' in saver.save:
                self._write_npz(saver.predictions / f'{name}.npz')
        if self.stretches and saver.writes_videos:
            writers.concatenate_videos(
                [_path(self.folder, stretch, '.mp4') for stretch in self.stretches],
                saver.visualizations / f'{name}.mp4',
            )
        shutil.rmtree(self.folder)

    def _write_json(self, path):
        """MMPose's list of {frame_id, instances}, written frame by frame."""
        with whole_file(path) as part, open(part, 'w') as file:
            separator = '['
            for index, record in _stored(self.folder, self.stretches):
                people = writers.instances_to_json(record)
                file.write(separator + json.dumps(dict(frame_id=index, instances=people)))
                separator = ',\n'
            file.write(']')

    def _write_npz(self, path):
        parts = [_path(self.folder, stretch, '.npz') for stretch in self.stretches]
        with np.load(parts[0], allow_pickle=False) as file:
            constants = {n.removeprefix(CAMERA): a for n, a in file.items() if n.startswith(CAMERA)}
        constants['fps'] = np.float64(self.fps)
        writers.concatenate_npz(parts, path, constants, leave_out=(RAW, CAMERA))


def _path(folder, stretch, suffix):
    return folder / f'{stretch[0]:08d}-{stretch[1]:08d}{suffix}'


def _complete_stretches(folder, with_video):
    """(start, end) of the stretches in a folder that follow each other from frame 0 on."""
    ends = {}
    for path in folder.glob('[0-9]*.npz'):
        start, end = map(int, path.stem.split('-'))
        if not with_video or path.with_suffix('.mp4').exists():
            ends[start] = end
    stretches, start = [], 0
    while start in ends:
        stretches.append((start, ends[start]))
        start = ends[start]
    return stretches


def _stored(folder, stretches):
    """(index, dict of arrays (P, ...)) of every frame in stretches."""
    for stretch in stretches:
        with np.load(_path(folder, stretch, '.npz'), allow_pickle=False) as file:
            arrays = {n: a for n, a in file.items() if not n.startswith(CAMERA)}
        for index in range(*stretch):
            here = arrays['frame'] == index
            yield index, {name: array[here] for name, array in arrays.items()}


def to_record(instances):
    """People as arrays (P, ...) for npz and JSON: rotations as axis-angle, smplx's names."""
    record = {
        new: np.asarray(instances[old]) for old, new in PLAIN_FIELDS.items() if old in instances
    }
    for name in ROTATIONS:
        if name in instances:
            matrices = torch.from_numpy(np.asarray(instances[name]))
            record[name] = matrix_to_axis_angle(matrices).flatten(1).numpy()
    return record


def camera_of(sample):
    """The picture's camera, by name: pixels, x before y."""
    height, width = sample.ori_shape
    camera = {'image_size': np.array([width, height])}
    for name in ('focal_length', 'principal_point'):
        if name in sample:
            camera[name] = np.asarray(sample.get(name))
    return camera
