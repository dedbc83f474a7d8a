"""Predictions of any task on images, videos and cameras; argument names follow MMPoseInferencer.

for result in Inferencer('VMPose-T-S2')('image.jpg', out_dir='out'):
    print(result.pred_instances.keypoints)
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..files import shipped
from ..files.images import MAX_PIXELS
from ..files.version import __version__
from ..weights.official import release_of
from ..zoo.releases import EXPECT
from . import detection, screen, sources
from .results import Saver
from .run import Report, Run
from .smoothing import smooth_option
from .world import World
from .writers import DEFAULT_FORMATS, check_formats

if TYPE_CHECKING:
    from mmengine.config import Config

    from ..weights.find import Found
    from .exported import ExportedModel
    from .predictor import Predictor
    from .result import Result

log = logging.getLogger('trunchier')


class Inferencer:
    """Predictions on images, videos and cameras, drawn and saved.

    Args:
        model: 'pose' or 'mesh' (the model of that task that comes with weights), the paper's name
            (`VMPose-T-S3`), the encoder's (`vm-t-s3`), path of a config, a Config, or what
            `weights.find.find` returned.
        weights: checkpoint, or an exported model (.onnx, and .pt or .pt2 with trust=True; see
            `deploy.export`). None: the weights that come with the package, if any.
        device: 'auto', 'cpu', 'cuda', 'cuda:1'...
        detector, detector_weights, score_thr, nms_thr: see `detection.make_detector`. 'auto' finds
            one in the first call without boxes.
        batch_size: people per batch.
        precision: 'fp32', 'int8' (CPU), 'bf16' or 'fp16' (autocast); 'auto': the fastest on this
            CPU, measured once.
        track: give people in videos ids; None: if the package `trackers` is installed.
        smooth: smooth videos over time: True, or options of `tracking.TrackSmoother`; 'offline' or
            'guidance', see `smoothing.Smoother`.
        cfg_options: changes to the config, as --cfg-options of tools/test.py.
        max_pixels: width times height of the largest image or video that is read.
        options: of the predictor; trust=True runs exported files of torch, which are programs;
            runtime='auto' takes the runtime that is fastest on this CPU, see `Predictor.load`.

    Attributes:
        predictor: Predictor, also usable alone.
        report: Report of the last run.

    Raises:
        FileNotFoundError: no such file, or no weights are published.
        ValueError: unknown model or option.
        CheckpointError: weights of another model.
    """

    task: ClassVar[str | None] = None  # None: that of the model

    def __init__(
        self,
        model: str | Config | Found | ExportedModel | None = None,
        weights: str | Path | None = None,
        device: str = 'auto',
        detector: str | Path = 'auto',
        detector_weights: str | None = None,
        score_thr: float = detection.SCORE_THRESHOLD,
        nms_thr: float = detection.NMS_THRESHOLD,
        batch_size: int = 8,
        precision: str = 'fp32',
        track: bool | None = None,
        smooth: bool | str | dict[str, float] = False,
        cfg_options: dict[str, Any] | None = None,
        max_pixels: int = MAX_PIXELS,
        **options: Any,
    ):
        if batch_size < 1:
            raise ValueError(f'batch_size must be 1 or more, got {batch_size}')
        model = model or self.task or 'pose'
        found, device = _found(model, weights, self.task, device)
        self.name, self.weights = found.name, found.required_weights()
        kind = found.row.load('predictor')
        if kind.finds_people:
            if detector != 'auto':
                raise ValueError(f'{found.name} finds people itself; leave out the detector')
            detector, options['score_thr'] = 'whole_image', score_thr
        self._detector = detector, device, detector_weights, score_thr, nms_thr
        if detector != 'auto':
            self.detector  # noqa: B018  fails before the model is loaded
        note = _note(self.weights)
        log.log(logging.WARNING if note else logging.INFO, '%s', provenance(found, note))
        if cfg_options:
            found.cfg.merge_from_dict(cfg_options)
        self.predictor: Predictor = kind.load(found, device, precision, **options)
        self.batch_size, self.track, self.max_pixels = batch_size, track, max_pixels
        self.smooth = smooth_option(smooth)
        own_body = self.predictor.settings.get('body_model')
        if found.smpl and not (own_body or found.cfg.model.get('body_model')):
            log.warning(
                '%s was trained for SMPL: its shapes mean something else on the embedded body. '
                'Convert SMPL by trunchier convert-smpl and give it as body_model (--body-model)',
                screen.printable(self.weights.name),
            )
        self.report = Report()
        self.settings = dict(
            trunchier=__version__,
            model=self.name,
            weights=[self.weights.name, self.weights.stat().st_size],
            detector=str(detector),
            score_thr=score_thr,
            nms_thr=nms_thr,
            precision=self.predictor.precision,
            track=track,
            smooth=smooth,
            **self.predictor.settings,
        )

    @cached_property
    def detector(self) -> Callable:
        """Function of a `sources.Frame` to boxes (P, 5), see `detection`."""
        detector = detection.make_detector(*self._detector)
        if detector is not detection.whole_image:
            log.info('people are found by %s', detection.name_of(detector))
        return detector

    def __call__(
        self,
        inputs: Any,
        bboxes: Any = None,
        batch_size: int | None = None,
        out_dir: str | Path | None = None,
        pred_out_dir: str | Path | None = None,
        vis_out_dir: str | Path | None = None,
        mesh_out_dir: str | Path | None = None,
        save: str | tuple[str, ...] = DEFAULT_FORMATS,
        resume: bool = False,
        return_vis: bool = False,
        return_image: bool = False,
        show: bool = False,
        show_progress: bool = False,
        painter: Callable | None = None,
        frames: slice | range = slice(None),
        detector_every: int = 1,
        world: bool = False,
        extrinsics: Any = None,
        **painting: Any,
    ) -> Iterator[Result]:
        """Predict; results are computed as they are asked for, one per frame.

        Args:
            inputs: what `sources.find` takes: paths, folders, globs, videos, cameras, arrays, PIL
                images, tensors, or a list of these.
            bboxes: boxes to use instead of the detector, see `detection.GivenBoxes.of`.
            batch_size: people per batch, for this call.
            out_dir: folder for everything: predictions/, visualizations/, meshes/.
            pred_out_dir, vis_out_dir, mesh_out_dir: replace those of `out_dir`.
            save: formats to write: json, npz, obj, glb, video, images, of videos animation and bvh;
                a list, or 'json,npz'.
            resume: continue a run with the same settings where it stopped.
            world: also write joints in world coordinates, and animation and bvh in these alone, see
                `world.World`: the camera must not move.
            extrinsics: (3, 4), of a camera that was measured: world to camera, y up, meters.
            return_vis: `result.visualization` is the drawn image (H, W, 3) BGR.
            return_image: `result.image` is the image itself (H, W, 3) BGR.
            show: open a window (requires a display; `--viewer` of tools/predict.py does not).
            show_progress: show a bar with rate and remaining time, if stderr is a terminal.
            frames: those of videos and cameras to predict: slice(100, 200, 2).
            detector_every: find people in every so many frames of a video, and interpolate their
                boxes between these.
            painter: from `painter()`.
            painting: instead of it, options of KeypointPainter or MeshPainter.

        Returns:
            Iterator of `result.Result`, mmpose's PoseDataSample with `plot()`, `save()`,
            `to_coco()` and `to_dataframe()`. `pred_instances` holds numpy arrays: `bboxes` (P, 4),
            `bbox_scores` (P,), `keypoints` (P, K, 2) in pixels of the image, `keypoint_scores`
            (P, K), in videos `track_ids` (P,), which are -1 for uncertain people who are not
            tracked, and for meshes see `MeshInferencer`. Metainfo: `img_path`, `ori_shape` (H, W),
            `frame_id`, `source`, `time`, `keypoint_names`. `self.report` is complete after the
            last one.

        Raises:
            FileNotFoundError, ValueError, TypeError: invalid arguments, before any work.
        """
        frames = sources.frame_range(frames)
        if detector_every < 1:
            raise ValueError(f'detector_every must be 1 or more, got {detector_every}')
        save = check_formats(save, self.predictor.faces is not None)
        found = sources.find(inputs)
        if not isinstance(inputs, Iterator):
            found = list(found)
        if bboxes is None:
            detector = self.detector
        elif self.predictor.finds_people:
            raise ValueError(f'{self.name} finds people itself; leave out the boxes')
        else:
            detector = detection.GivenBoxes.of(bboxes)
            if isinstance(found, list) and (missing := detector.missing(found)):
                named = screen.printable(', '.join(missing[:5]))
                log.warning('no boxes for %d of %d inputs: %s', len(missing), len(found), named)
        painter = painter or self.painter(**painting)
        if show:
            screen.check_display()
        folders = (out_dir, pred_out_dir, vis_out_dir, mesh_out_dir)
        every = 1 if self.predictor.finds_people or bboxes is not None else detector_every
        options = dict(frames=[frames.start, frames.stop, frames.step], detector_every=every)
        place: bool | World = world
        if extrinsics is not None:
            place = World.of_extrinsics(np.reshape(extrinsics, (-1, 4)))
        if place:
            if 'translation' not in self.predictor.smoothed:
                raise ValueError(f'{self.name} gives no places in 3D for world coordinates')
            options['world'] = True if place is True else place.matrix.tolist()
        saver = self._saver(folders, save, resume, bboxes, painter, frames, options, place)
        draws = return_vis or show or (saver is not None and saver.draws)
        run = Run(
            self.predictor,
            detector,
            batch_size or self.batch_size,
            self.track,
            self.smooth,
            painter if draws else None,
            saver,
            keep_images=return_image,
            live=isinstance(found, list) and any(source.kind == 'camera' for source in found),
            max_pixels=self.max_pixels,
            frames=frames,
            detector_every=every,
        )
        self.report = run.report
        show_progress = show_progress and sys.stderr.isatty()
        return self._deliver(run(found), found, return_vis, return_image, show, show_progress)

    def painter(self, **options: Any) -> Callable:
        """Function of an image and its result that draws it: KeypointPainter or MeshPainter."""
        return self.predictor.painter(**options)

    def _saver(self, folders, save, resume, bboxes, painter, frames, options, world):
        out_dir, *others = folders = [folder and Path(folder) for folder in folders]
        if not any(folders):
            if resume:
                raise ValueError('resume=True requires the out_dir of an earlier run')
            return None
        kinds = dict(zip(('predictions', 'visualizations', 'meshes'), others, strict=True))
        if out_dir:
            kinds = {kind: folder or out_dir / kind for kind, folder in kinds.items()}
        given = str(bboxes) if isinstance(bboxes, str | Path) else bboxes is not None
        plain = bool | int | float | str | None
        painting = {n: value for n, value in vars(painter).items() if isinstance(value, plain)}
        settings = self.settings | options
        if bboxes is None and settings['detector'] == 'auto':
            settings['detector'] = detection.name_of(self.detector)
        settings |= dict(bboxes=given, save=sorted(save), painting=painting)
        home = next(filter(None, folders))
        of_bodies = dict(faces=self.predictor.faces, body=self.predictor.body)
        return Saver(
            home, kinds, save, settings, resume=resume, frames=frames, world=world, **of_bodies
        )

    def _deliver(self, tasks, found, return_vis, return_image, show, show_progress):
        with closing(tasks):
            for task in screen.bar(found, tasks) if show_progress else tasks:
                if return_vis:
                    task.result.set_field(task.drawing, 'visualization')
                if return_image:
                    task.result.set_field(task.frame.image, 'image')
                if show:
                    screen.show(task.drawing, task.frame.source)
                yield task.result


def _found(model, weights, task, device):
    """The model with its weights, and the device."""
    from .exported import ExportedModel

    if isinstance(model, ExportedModel):
        return model, 'cpu'
    from ..weights.find import Found, find, pick_device

    found = model if isinstance(model, Found) else find(model, weights, task)
    return found, str(pick_device(device))


def _note(path):
    if path.suffix != '.safetensors':
        return None
    from ..weights.find import weights_note

    return weights_note(path)


def provenance(found: Found | ExportedModel, note: str | None) -> str:
    """One line: a model, where its weights are from, what they were trained on, their license.

    Args:
        note: of the file; official files are known by their names.
    """
    path = found.required_weights()
    if note is None and (row := release_of(path)) is not None:
        note = f'official, trained on {row.what}; license: {row.license}'
    ours = path == shipped.asset(path.name)
    text = f'{found.name}: weights ' + ('that come with trunchier' if ours else f'{path}')
    texts = text, note, EXPECT.get(found.name) if ours else None
    return screen.printable('; '.join(filter(None, texts)))
