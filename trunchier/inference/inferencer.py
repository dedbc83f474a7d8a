"""Pictures and videos in, poses or bodies out, seen and saved: what a visitor tries first.

    for result in PoseInferencer('VMPose-T-S2')('photo.jpg', out_dir='out'):
        print(result.pred_instances.keypoints)

Reading, finding people, cropping, the network, decoding its output, drawing and saving overlap,
each in a thread of its own; people are batched across frames; results come in order, one a frame,
and memory stays bounded whatever the length. Argument names follow MMPoseInferencer.
"""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ..conventions import JOINTS_44
from ..deploy import runtime
from ..deploy.fuse import deploy
from ..files.version import __version__
from ..geometry import (
    camera_crop_to_full,
    full_image_focal,
    matrix_to_rotation_6d,
    rotation_6d_to_matrix,
)
from ..visualization.overlays import KeypointPainter, MeshPainter
from ..weights.find import find, pick_device, weights_note
from ..weights.load import load_checkpoint
from . import detection, tracking
from . import sources as inputs
from .pipeline import Begin, End, Job, Report, Stopwatch, ahead, batches
from .results import Saver

PRECISIONS = {'fp32': None, 'bf16': torch.bfloat16, 'fp16': torch.float16}
DEFAULT_SAVE = ('json', 'images', 'video')
WARP_LIMIT = 32766  # pixels a side that cv2.warpAffine takes

log = logging.getLogger('trunchier')


# ---------------------------------------------------------------------------------------------
# Inferencers
# ---------------------------------------------------------------------------------------------
class _Inferencer:
    """What PoseInferencer and MeshInferencer share.

    Args:
        model: the paper's name (`VMPose-T-S3`), the encoder's (`vm-t-s3`), a config's path, or a
            Config.
        weights: checkpoint, or an exported model (.onnx, .pt2; see `portable`). None: the weights
            that come with the package, if any do.
        device: 'auto', 'cpu', 'cuda', 'cuda:1'...
        det_model: who finds people: 'whole_image', an .onnx file of YOLOX, boxes, an mmdet config
            or alias; see `detection.find_people`.
        det_weights: of an mmdet config.
        bbox_thr, nms_thr: score and overlap at which detections are dropped.
        batch_size: people a batch.
        precision: 'fp32', 'bf16' or 'fp16' (autocast).
        track: give people in videos ids; None: if the library `trackers` is there.
        smooth: smooth videos over time: True, or options of `tracking.TrackSmoother`.
        cfg_options: changes to the config, as --cfg-options of tools/test.py.

    Raises:
        FileNotFoundError: no such file, or no weights are published.
        ValueError: unknown model or option. CheckpointError: weights of another model.
    """

    task = None
    faces = None
    smoothed = ()  # fields of `pred_instances` that smoothing changes

    def __init__(
        self,
        model,
        weights=None,
        device='auto',
        det_model='whole_image',
        det_weights=None,
        bbox_thr=detection.SCORE_THRESHOLD,
        nms_thr=detection.NMS_THRESHOLD,
        batch_size=8,
        precision='fp32',
        track=None,
        smooth=False,
        cfg_options=None,
    ):
        if precision not in PRECISIONS:
            raise ValueError(f'precision must be one of {", ".join(PRECISIONS)}, got {precision!r}')
        if batch_size < 1:
            raise ValueError(f'batch_size must be 1 or more, got {batch_size}')
        found = find(model, weights, self.task)
        self.cfg, self.name, self.weights = found.cfg, found.name, found.required_weights()
        self.device = pick_device(device)
        self.find_people = detection.find_people(
            det_model, str(self.device), det_weights, bbox_thr, nms_thr
        )
        self.batch_size, self.precision = batch_size, precision
        self.track = track
        self.smooth = dict(smooth) if isinstance(smooth, dict) else ({} if smooth else None)
        if cfg_options:
            self.cfg.merge_from_dict(cfg_options)
        self._build()
        if note := weights_note(self.weights):
            log.warning('%s: %s', self.weights.name, note)
        self.report = Report()
        self.settings = dict(
            trunchier=__version__,
            model=self.name,
            weights=[self.weights.name, self.weights.stat().st_size],
            people=str(det_model),
            bbox_thr=bbox_thr,
            nms_thr=nms_thr,
            precision=precision,
            track=track,
            smooth=smooth,
        )

    def _deployed(self, model):
        """The model as it is faster on a CPU: autocast has casts of its own, a GPU its kernels."""
        if self.device.type == 'cpu' and self.precision == 'fp32':
            return deploy(model, inplace=True)
        return model

    def __call__(
        self,
        inputs_,
        bboxes=None,
        batch_size=None,
        out_dir=None,
        pred_out_dir=None,
        vis_out_dir=None,
        mesh_out_dir=None,
        save=DEFAULT_SAVE,
        resume=False,
        return_vis=False,
        return_image=False,
        show=False,
        show_progress=False,
        **painting,
    ):
        """Predict; results come as they are asked for, one for each frame.

        Args:
            inputs_: what `sources.find` takes: paths, folders, globs, videos, cameras,
                arrays, PIL images, tensors, or a list of these.
            bboxes: boxes for this call: an array (P, 4 or 5) xyxy[score] in pixels, a list of them
                (one a picture or frame), a dict by name, or a .json or .npy file (see
                `detection.GivenBoxes`). None: people are found as the constructor says.
            batch_size: people a batch, for this call.
            out_dir: folder for everything: predictions/, visualizations/, meshes/.
            pred_out_dir, vis_out_dir, mesh_out_dir: single folders, before those of `out_dir`.
            save: what is written there: json, npz, obj, glb, video, images.
            resume: go on where a run with the same settings stopped.
            return_vis: the drawn picture (H, W, 3) BGR is `result.visualization`.
            return_image: the picture itself (H, W, 3) BGR is `result.image`.
            show: open a window (needs a display; `--viewer` of tools/predict.py does not).
            show_progress: a bar with rate and time left, if stderr is a terminal.
            painting: of KeypointPainter (`radius`, `thickness`, `kpt_thr`, `draw_bbox`,
                `skeleton_style`, `black_background`) or MeshPainter (`style`, `alpha`, `side`,
                `draw_bbox`, `black_background`).

        Returns:
            Iterator of PoseDataSample. `pred_instances` holds numpy arrays: `bboxes` (P, 4),
            `bbox_scores` (P,), `keypoints` (P, K, 2) in pixels of the picture, `keypoint_scores`
            (P, K), of videos `track_ids` (P,), and of meshes what `MeshInferencer` says. Metainfo:
            `img_path`, `ori_shape` (H, W), `frame_id`, `source`, `time`. After the last one
            `self.report` says how it went.

        Raises:
            FileNotFoundError, ValueError, TypeError: in what was asked for, before any work.
        """
        if isinstance(inputs_, Iterator):
            sources = inputs.find(inputs_)
        else:
            sources = list(inputs.find(inputs_))
        find_people = self.find_people if bboxes is None else detection.find_people(bboxes)
        painter = self.painter(**painting)
        if show:
            _check_display()
        saver = self._saver(
            out_dir, pred_out_dir, vis_out_dir, mesh_out_dir, save, resume, bboxes, painting
        )
        draws = return_vis or show or (saver is not None and saver.draws)
        self.report = Report()
        painter = painter if draws else None
        batch_size = batch_size or self.batch_size
        run = self._run(sources, find_people, batch_size, painter, saver, return_image)
        return self._deliver(run, sources, return_vis, return_image, show, show_progress)

    def _saver(self, out, predictions, visualizations, meshes, save, resume, bboxes, painting):
        if out is not None:
            out = Path(out)
            predictions = predictions or out / 'predictions'
            visualizations = visualizations or out / 'visualizations'
            meshes = meshes or out / 'meshes'
        home = out or predictions or visualizations or meshes
        if home is None:
            if resume:
                raise ValueError('resume=True wants an out_dir, in which an earlier run stopped')
            return None
        if not {'json', 'npz'} & set(save):
            predictions = None
        if not {'images', 'video'} & set(save):
            visualizations = None
        if not {'obj', 'glb'} & set(save):
            meshes = None
        given = str(bboxes) if isinstance(bboxes, str | Path) else bboxes is not None
        settings = dict(self.settings, bboxes=given, save=sorted(save), painting=painting)
        return Saver(home, predictions, visualizations, meshes, save, settings, self.faces, resume)

    # --- the stages, first to last -------------------------------------------------------------

    def _run(self, sources, find_people, batch_size, painter, saver, keep_image):
        """Jobs in order, each through every stage. Stages are generators, a thread each."""
        clock, report = Stopwatch(), self.report
        report.seconds = clock.seconds
        live = isinstance(sources, list) and any(source.kind == 'camera' for source in sources)
        waiting = dict(depth=1, may_drop=inputs.Frame) if live else dict(depth=4)
        keep_image = keep_image or painter is not None
        stages = ahead(clock.items(self._read(sources, saver), 'read'), **waiting)
        stages = ahead(self._find(stages, find_people, clock), 2)
        stages = ahead(batches(self._crop(stages, clock, keep_image), batch_size), 1)
        stages = ahead(self._predict(stages, clock), 1)
        stages = ahead(self._assemble(stages, saver, clock), 2)
        if painter is not None:
            stages = ahead(self._draw(stages, painter, clock), 2)
        if saver is not None:
            stages = ahead(self._save(stages, saver, clock), 2)
        try:
            for item in stages:
                report.elapsed = clock.elapsed
                if isinstance(item, Job):
                    report.frames += 1
                    report.people += len(item.result.pred_instances)
                    yield item
        finally:
            stages.close()
            report.elapsed = clock.elapsed

    def _read(self, sources, saver):
        """Begin, frames and End of every source that is not done yet."""
        for source in sources:
            if saver is not None and saver.is_done(source):
                self.report.done_before += 1
                continue
            try:
                begin = Begin(source)
                if source.moves:
                    begin.fps = inputs.video_info(source).fps
                    begin.start = saver.frames_done(source) if saver is not None else 0
                    self.report.done_before += begin.start
                yield begin
                for frame in inputs.read(source, begin.start):
                    if isinstance(frame, inputs.Unreadable):
                        self.report.skip(source.name, frame)
                    else:
                        yield frame
            except inputs.Unreadable as error:
                self.report.skip(source.path or source.name, error)
            yield End(source)

    def _find(self, items, find_people, clock):
        live = 0
        for item in items:
            if not isinstance(item, inputs.Frame):
                yield item
                continue
            if item.source.kind == 'camera':  # count what was not dropped
                item, live = replace(item, index=live), live + 1
            with clock('find people'):
                boxes = find_people(item)
                usable = detection.usable(boxes, item.image.shape[:2])
                for box in boxes[~usable]:
                    self.report.skip(
                        f'{item.source.name}, frame {item.index}',
                        f'the box {box[:4].tolist()} is empty, not finite or off the picture',
                    )
                job = Job(item, item.image.shape[:2], boxes[usable])
            yield job

    def _crop(self, items, clock, keep_image):
        for item in items:
            if isinstance(item, Job):
                with clock('crop'):
                    item.crops = [self._crop_near(item.frame, box) for box in item.boxes]
                    item.people = [None] * len(item.crops)
                    if not keep_image:
                        item.frame = replace(item.frame, image=None)
            yield item

    def _crop_near(self, frame, box):
        """`_crop_person` of pictures of any size: OpenCV warps 32767 pixels a side at most."""
        if max(frame.image.shape[:2]) <= WARP_LIMIT:
            return self._crop_person(frame, box)
        image, near, factor, corner = cut_out(frame.image, box)
        crop = self._crop_person(replace(frame, image=image), near)
        sample = crop['data_samples']
        centre, scale = np.asarray(sample.input_center), np.asarray(sample.input_scale)
        centre = (centre + 0.5) * factor - 0.5 + corner
        sample.set_metainfo(dict(input_center=centre, input_scale=scale * factor))
        return crop

    def _predict(self, loads, clock):
        """The network, batch by batch; what it returns may still be on its way from the GPU."""
        dtype = PRECISIONS[self.precision]
        for load in loads:
            output = None
            if load.crops:
                with clock('network'), torch.no_grad():
                    crops = [job.crops[place] for job, place in load.crops]
                    batch = torch.stack([crop['inputs'] for crop in crops])
                    if self.device.type == 'cuda':
                        batch = batch.pin_memory().to(self.device, non_blocking=True)
                    cast = torch.autocast(self.device.type, dtype) if dtype else nullcontext()
                    with cast:
                        output = self._forward(batch, [crop['data_samples'] for crop in crops])
            yield load, output

    def _assemble(self, loads, saver, clock):
        """Decode the network's output, put people together to frames, follow them over time."""
        follow = None
        for load, output in loads:
            with clock('decode'):
                people = self._decode(output) if output is not None else []
                for (job, place), sample in zip(load.crops, people, strict=True):
                    job.crops[place], job.people[place] = None, sample
            for item in load.items:
                with clock('decode'):
                    if isinstance(item, Begin):
                        follow = _Followers(self, item)
                        if saver is not None and item.start:
                            for index, record in saver.stored(item.source):
                                follow.again(index, record)
                    elif isinstance(item, Job):
                        item.result = self._result(item)
                        item.raw = follow(item.frame.index, item.result.pred_instances)
                yield item

    def _result(self, job):
        """The frame's PoseDataSample; people whose prediction is not finite are left out."""
        from mmengine.structures import InstanceData
        from mmpose.structures import PoseDataSample, merge_data_samples

        frame, finite = job.frame, []
        for person, sample in enumerate(job.people):
            arrays = sample.pred_instances.values()
            if all(np.isfinite(np.asarray(a, np.float32)).all() for a in arrays):
                finite.append(person)
        lost = len(job.people) - len(finite)
        if lost:
            self.report.skip(
                f'{frame.source.name}, frame {frame.index}',
                f'{lost} of {len(job.people)} people: the network gave values that are not finite'
                + (f' in {self.precision}; try fp32' if self.precision != 'fp32' else ''),
            )
        people = [job.people[person] for person in finite]
        result = PoseDataSample()
        if people:
            for sample in people:
                del sample.gt_instances
            merged = merge_data_samples(people)
            result.pred_instances = merged.pred_instances
            if 'pred_fields' in merged:
                result.pred_fields = merged.pred_fields
        else:
            result.pred_instances = InstanceData(**self._nobody())
        result.pred_instances.bboxes = job.boxes[finite, :4]
        result.pred_instances.bbox_scores = job.boxes[finite, 4]
        result.set_metainfo(
            dict(
                img_path=frame.source.path,
                source=frame.source.name,
                ori_shape=job.shape,
                img_shape=job.shape,
                frame_id=frame.index,
                time=frame.time,
            )
        )
        self._complete(result, people)
        return result

    def _draw(self, items, painter, clock):
        for item in items:
            if isinstance(item, Job):
                with clock('draw'):
                    item.picture = painter(item.frame.image, item.result)
            yield item

    def _save(self, items, saver, clock):
        complete = False
        try:
            for item in items:
                with clock('save'):
                    if isinstance(item, Begin) and item.source.moves:
                        saver.start(item.source, item.fps)
                    elif isinstance(item, End):
                        saver.finish()
                    elif isinstance(item, Job):
                        saver.add(item.frame, item.result, item.picture, item.raw)
                yield item
            complete = True
        finally:
            if not complete:
                saver.interrupt()

    # --- to the caller -------------------------------------------------------------------------

    def _deliver(self, jobs, sources, return_vis, return_image, show, show_progress):
        bar = Bar(sources) if show_progress and sys.stderr.isatty() else nullcontext()
        with bar as advance, closing(jobs):
            for job in jobs:
                if return_vis:
                    job.result.set_field(job.picture, 'visualization')
                if return_image:
                    job.result.set_field(job.frame.image, 'image')
                if show:
                    _show(job.picture, job.frame.source)
                if advance is not None:
                    advance()
                yield job.result


class _Followers:
    """Track ids and smoothing along one source."""

    def __init__(self, inferencer, begin):
        self.inferencer = inferencer
        self.tracker = self.smoother = None
        if not begin.source.moves:
            return
        if inferencer.track is not False:
            try:
                self.tracker = tracking.Tracker(begin.fps)
            except ImportError as error:
                if inferencer.track or inferencer.smooth is not None:
                    raise
                log.warning('people get no track ids: %s', error)
        if inferencer.smooth is not None:
            self.smoother = tracking.TrackSmoother(begin.fps, **inferencer.smooth)

    def __call__(self, index, instances, redraw=True):
        """Add `track_ids` to a frame's people and smooth their fields.

        Returns:
            dict of what the fields were before, for `again`.
        """
        if self.tracker is None:
            return {}
        boxes = np.hstack([instances.bboxes, instances.bbox_scores[:, None]])
        instances.track_ids = self.tracker(boxes)
        if self.smoother is None:
            return {}
        fields = [name for name in self.inferencer.smoothed if name in instances]
        raw = {name: np.array(instances.get(name)) for name in fields}
        for person, track in enumerate(instances.track_ids.tolist()):
            box = instances.bboxes[person]
            for name in fields:
                unit = np.hypot(*(box[2:] - box[:2])) if name == 'keypoints' else 1.0
                value = instances.get(name)[person]
                instances.get(name)[person] = _smooth(
                    self.smoother, track, name, index, value, unit
                )
        if redraw:
            self.inferencer._pose_again(instances)
        return raw

    def again(self, index, record):
        """Follow the people of a frame that an earlier run has stored."""
        from mmengine.structures import InstanceData

        raw = {n.removeprefix('raw_'): a for n, a in record.items() if n.startswith('raw_')}
        boxes = dict(bboxes=record['bboxes'], bbox_scores=record['bbox_scores'])
        self(index, InstanceData(**boxes, **raw), redraw=False)


def _smooth(smoother, track, name, index, value, unit):
    """One person's field, smoothed; rotations by their first two columns, made orthogonal again."""
    if name not in ('global_orient', 'body_pose'):
        return smoother(track, name, index, value, unit)
    columns = matrix_to_rotation_6d(torch.from_numpy(value)).numpy()
    columns = smoother(track, name, index, columns, unit)
    return rotation_6d_to_matrix(torch.from_numpy(columns)).numpy()


class PoseInferencer(_Inferencer):
    """2D keypoints of people.

    Any top-down config of mmpose works too: crop, normalisation, input size and decoding are those
    of its test pipeline and codec.

    Args:
        model, weights: see `_Inferencer`.
        flip_test: average with the mirrored picture; None: as the config says.
        draw_heatmap: put heatmaps into results and pictures.
        common: the other arguments of `_Inferencer`.
    """

    task = 'pose'
    smoothed = ('keypoints',)

    def __init__(self, model, weights=None, flip_test=None, draw_heatmap=False, **common):
        self.flip_test, self.draw_heatmap = flip_test, draw_heatmap
        super().__init__(model, weights, **common)
        self.settings.update(flip_test=flip_test)

    def _build(self):
        from mmengine.dataset import Compose
        from mmpose.apis import init_model
        from mmpose.structures import PoseDataSample  # noqa: F401  import it before the threads do

        if self.cfg.model.type != 'TopdownPoseEstimator':
            raise ValueError(
                f'{self.name} is a {self.cfg.model.type}; PoseInferencer runs top-down models '
                '(TopdownPoseEstimator). For others: mmpose.apis.MMPoseInferencer'
            )
        self.model = init_model(self.cfg, None, device='cpu')
        if runtime.is_exported(self.weights):
            network = ExportedNetwork(self.weights, self.name)
            self.model.extract_feat = lambda images: images
            self.model.head.forward = lambda images: network(images)['heatmaps']
        else:
            meta = load_checkpoint(self.model, self.weights)
            self.model.dataset_meta = meta or self.model.dataset_meta
            self.model = self._deployed(self.model)
        self.dataset_meta = self.model.dataset_meta
        self.model.to(self.device)
        self.pipeline = Compose(self.cfg.test_dataloader.dataset.pipeline)
        self.model.test_cfg = dict(self.model.test_cfg or {}, output_heatmaps=self.draw_heatmap)
        if self.flip_test is not None:
            self.model.test_cfg['flip_test'] = self.flip_test
        # `predict` of this very model stops before it decodes: `_decode` does that in its own time.
        self.model.head.decode = self._hold
        self.model.add_pred_to_datasample = lambda preds, fields, samples: (preds, fields)

    def _hold(self, outputs):
        from mmengine.structures import InstanceData

        self.held = outputs
        first = outputs[0] if isinstance(outputs, tuple) else outputs
        return [InstanceData()] * len(first)

    def painter(self, **options):
        """What draws its results: a KeypointPainter."""
        return KeypointPainter(self.dataset_meta, **options)

    def _crop_person(self, frame, box):
        data = dict(
            img=frame.image,
            img_path=frame.source.path or f'{frame.source.name}.jpg',
            bbox=box[None, :4],
            bbox_score=box[4:5],
            **self.dataset_meta,
        )
        return self.pipeline(data)

    def _forward(self, batch, samples):
        data = self.model.data_preprocessor(dict(inputs=batch, data_samples=samples), False)
        self.held = None
        preds, fields = self.model.predict(**data)
        held, self.held = self.held, None
        return _to_cpu(held), preds, fields, samples

    def _decode(self, output):
        (held, arrived), preds, fields, samples = output
        arrived()
        head = self.model.head
        if held is not None:
            preds = type(head).decode(head, held)
        return type(self.model).add_pred_to_datasample(self.model, preds, fields, samples)

    def _nobody(self):
        count = self.dataset_meta['num_keypoints']
        return dict(
            keypoints=np.empty((0, count, 2), np.float32),
            keypoint_scores=np.empty((0, count), np.float32),
            keypoints_visible=np.empty((0, count), np.float32),
        )

    def _complete(self, result, people):
        pass

    def _pose_again(self, instances):
        pass


class MeshInferencer(_Inferencer):
    """Bodies of people, in SMPL's layout, with a camera for the whole picture.

    `pred_instances` of a result: `keypoints` (P, 44, 2) pixels, `global_orient` (P, 1, 3, 3) and
    `body_pose` (P, 23, 3, 3) rotation matrices, `betas` (P, 10), `camera` (P, 3) and
    `camera_translation` (P, 3) of the crop, `vertices` (P, 6890, 3) and `joints` (P, 44, 3) in
    metres before `translation` (P, 3), which brings them into the camera of the whole picture:
    x right, y down, z forward, `focal_length` (2,) and `principal_point` (2,) in pixels (metainfo).

    Args:
        model, weights: see `_Inferencer`.
        focal: focal length of the pictures, pixels: one number or (fx, fy). None: 4D-Humans' guess,
            5000 / 256 * the longer side.
        intrinsics: (3, 3) camera matrix instead of `focal`.
        body_model: the user's SMPL, see `models.body.BodyModel`; None: the embedded body.
        common: the other arguments of `_Inferencer`.
    """

    task = 'mesh'
    smoothed = ('keypoints', 'global_orient', 'body_pose', 'betas', 'translation')

    def __init__(self, model, weights=None, focal=None, intrinsics=None, body_model=None, **common):
        self.focal, self.centre = _intrinsics(focal, intrinsics)
        self.body_model = body_model
        super().__init__(model, weights, **common)
        self.settings.update(
            focal=None if focal is None else np.ravel(focal).tolist(),
            intrinsics=None if intrinsics is None else np.asarray(intrinsics).tolist(),
            body_model=body_model and str(body_model),
        )

    def _build(self):
        import mmpose.models  # noqa: F401  registers the preprocessor
        from mmengine.dataset import Compose
        from mmengine.registry import MODELS, init_default_scope

        init_default_scope(self.cfg.get('default_scope', 'mmpose'))
        self.cfg.model.discriminator = None
        self.cfg.model.backbone.init_cfg = None
        if self.body_model is not None:
            self.cfg.model.body_model = dict(path=str(self.body_model))
        self.model = MODELS.build(self.cfg.model)
        if runtime.is_exported(self.weights):
            self.model.head = ExportedNetwork(self.weights, self.name)
            self.model.extract_feat = lambda images: [seen_columns(images)]
        else:
            load_checkpoint(self.model, self.weights)
            self.model = self._deployed(self.model)
        self.model.to(self.device).eval()
        self.model.test_cfg['with_vertices'] = True
        self.faces = self.model.body.faces
        self.pipeline = Compose(self.cfg.test_dataloader.dataset.pipeline)

    def painter(self, **options):
        """What draws its results: a MeshPainter."""
        return MeshPainter(self.faces, **options)

    def _crop_person(self, frame, box):
        box = box[:4].astype(np.float64)
        name = frame.source.name
        return self.pipeline(
            dict(
                UNANNOTATED,
                image=frame.image,
                center=(box[:2] + box[2:]) / 2,
                scale=(box[2:] - box[:2]) / 200,
                key=f'{name}:{frame.index}',
                dataset='user',
                img_path=frame.source.path or name,
                id=frame.index,
            )
        )

    def _forward(self, batch, samples):
        data = self.model.data_preprocessor(dict(inputs=batch, data_samples=samples), False)
        return _to_cpu(self.model.regress(data['inputs'])), samples

    def _decode(self, output):
        (pred, arrived), samples = output
        arrived()
        return self.model.add_pred_to_samples(pred, samples)

    def _nobody(self):
        body, joints = len(self.model.body.parents) - 1, len(JOINTS_44)
        shapes = dict(
            keypoints=(joints, 2), keypoint_scores=(joints,), global_orient=(1, 3, 3),
            body_pose=(body, 3, 3), betas=(10,), camera=(3,), camera_translation=(3,),
            vertices=(self.faces.max() + 1, 3), joints=(joints, 3),
        )  # fmt: skip
        return {name: np.empty((0, *shape), np.float32) for name, shape in shapes.items()}

    def _complete(self, result, people):
        """Add the camera of the whole picture."""
        height, width = result.ori_shape
        focal, centre = self.focal, self.centre
        if focal is None:
            focal = np.repeat(full_image_focal(torch.tensor([[width, height]])).numpy(), 2)
        if centre is None:
            centre = np.array([width / 2, height / 2])
        result.set_metainfo(dict(focal_length=focal, principal_point=centre))
        instances = result.pred_instances
        boxes = np.array([[*s.input_center, s.input_scale[0]] for s in people]).reshape(-1, 3)
        instances.translation = full_camera(instances.camera, boxes, focal, centre)

    def _pose_again(self, instances):
        """Vertices and joints of poses that were smoothed."""
        if len(instances) == 0:
            return
        pose = (instances.global_orient, instances.body_pose, instances.betas)
        with torch.no_grad():
            body = self.model.body(*(torch.from_numpy(a).float().to(self.device) for a in pose))
        instances.vertices = body['vertices'].cpu().numpy()
        instances.joints = body['joints'].cpu().numpy()


def seen_columns(images):
    """The middle three quarters of square crops, which is all that a mesh model sees of them."""
    margin = images.shape[-1] // 8
    return images[..., margin : images.shape[-1] - margin]


# What a mesh pipeline expects of a person beside the box.
UNANNOTATED = dict(
    keypoints_2d=np.zeros((44, 3), np.float32),
    keypoints_3d=np.zeros((44, 4), np.float32),
    body_pose=np.zeros(72, np.float32),
    betas=np.zeros(10, np.float32),
    has_body_pose=np.float32(0),
    has_betas=np.float32(0),
)


def full_camera(camera, boxes, focal, centre):
    """Where bodies stand before the camera of the whole picture.

    The crop's camera (s, tx, ty) puts a point X of the body at pixel box_centre + s * side / 2 *
    (X + t) for points at the body's depth; so does the camera with `focal` and `centre` after this
    translation. Pixels that are not square (fx != fy) are made so first, along y.

    Args:
        camera: (P, 3) as (s, tx, ty).
        boxes: (P, 3) as centre x, centre y, side of the square crop, pixels of the picture.
        focal, centre: (2,), pixels of the picture, x before y.

    Returns:
        (P, 3), metres.
    """
    camera, boxes, focal, centre = (
        np.asarray(a, np.float64) for a in (camera, boxes, focal, centre)
    )
    squared = boxes[:, :2].copy()
    squared[:, 1] = centre[1] + (boxes[:, 1] - centre[1]) * focal[0] / focal[1]
    translation = camera_crop_to_full(
        torch.from_numpy(camera),
        torch.from_numpy(squared),
        torch.from_numpy(boxes[:, 2]),
        torch.from_numpy(np.tile(2 * centre, (len(boxes), 1))),
        focal[0],
    )
    return translation.float().numpy()


def _intrinsics(focal, intrinsics):
    """(2,) focal lengths and (2,) principal point, or None for what is to be guessed."""
    centre = None
    if intrinsics is not None:
        if focal is not None:
            raise ValueError('give focal or intrinsics, not both')
        matrix = np.asarray(intrinsics, np.float64)
        if matrix.shape != (3, 3):
            raise ValueError(f'intrinsics want (3, 3), got {matrix.shape}')
        focal, centre = matrix[[0, 1], [0, 1]], matrix[:2, 2]
    if focal is None:
        return None, None
    focal = np.asarray(focal, np.float64).reshape(-1)
    if focal.size not in (1, 2) or not (np.isfinite(focal).all() and (focal > 0).all()):
        raise ValueError(f'a focal length is one or two positive numbers, in pixels; got {focal}')
    return np.broadcast_to(focal, 2).copy(), centre


# ---------------------------------------------------------------------------------------------
# Exported models
# ---------------------------------------------------------------------------------------------
class ExportedNetwork(torch.nn.Module):
    """A network that runs from an exported file instead of the model that it is called in.

    Args:
        path: see `portable`. name: of the model that it is to stand for.

    Raises:
        ValueError: it is of another model. ExportError, ImportError: it cannot be run here.
    """

    def __init__(self, path, name):
        super().__init__()
        self.network = runtime.ExportedNetwork(path, name=name)

    def forward(self, images):
        """(B, 3, H, W) normalised -> {output: (B, ...)}, on the device of `images`."""
        return self.network(images)


# ---------------------------------------------------------------------------------------------
# Small helpers
# ---------------------------------------------------------------------------------------------
def _to_cpu(tensors):
    """Start copying to the CPU; returns the copies, and a function that waits for them."""
    single = isinstance(tensors, torch.Tensor)
    if tensors is None:
        return None, lambda: None
    named = (
        tensors if isinstance(tensors, dict) else dict(enumerate([tensors] if single else tensors))
    )
    copies = {}
    for name, tensor in named.items():
        tensor = tensor.detach().float()
        if tensor.is_cuda:
            copies[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            copies[name].copy_(tensor, non_blocking=True)
        else:
            copies[name] = tensor.cpu()
    wait = lambda: None  # noqa: E731
    if any(tensor.is_cuda for tensor in named.values()):
        event = torch.cuda.Event()
        event.record()
        wait = event.synchronize
    if isinstance(tensors, dict):
        return copies, wait
    return (copies[0] if single else tuple(copies.values())), wait


def cut_out(image, box, limit=WARP_LIMIT):
    """The part of a huge picture around a box, made smaller if it is still too large to warp.

    Args:
        image: (H, W, 3). box: (5,), xyxy and score, pixels. limit: pixels a side of the part.

    Returns:
        the part; the box in it; the factor that it is smaller by; its corner (2,): x of the picture
        is (x of the part + 0.5) * factor - 0.5 + corner.
    """
    import cv2

    size, centre = box[2:4] - box[:2], (box[:2] + box[2:4]) / 2
    reach = 1.5 * size.max()  # what any crop of the box may show
    shape = np.array(image.shape[1::-1])
    low = np.clip(np.floor(centre - reach), 0, shape - 1).astype(int)
    high = np.clip(np.ceil(centre + reach), low + 1, shape).astype(int)
    part = image[low[1] : high[1], low[0] : high[0]]
    factor = -(-max(part.shape[:2]) // limit)
    if factor > 1:
        part = cv2.resize(part, None, fx=1 / factor, fy=1 / factor, interpolation=cv2.INTER_AREA)
    near = box.copy()
    near[:4] = (box[:4] - np.tile(low, 2) + 0.5) / factor - 0.5
    return part, near, factor, low


def _check_display():
    if sys.platform.startswith('linux') and not (
        os.environ.get('DISPLAY') or os.environ.get('WAYLAND_DISPLAY')
    ):
        raise RuntimeError(
            'show=True wants a display, and there is none here; write pictures with vis_out_dir, '
            'or look at them in a browser with --viewer'
        )


def _show(picture, source):
    import cv2

    cv2.imshow(source.name, picture)
    cv2.waitKey(1 if source.moves else 0)


class Bar:
    """A bar on stderr: frames, rate, time left; `with` gives the function that advances it."""

    def __init__(self, sources):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeRemainingColumn as TimeLeft

        self.progress = Progress(
            TextColumn('frames'), BarColumn(), MofNCompleteColumn(),
            TextColumn('{task.fields[rate]}'), TimeLeft(), console=Console(stderr=True),
        )  # fmt: skip
        self.task = self.progress.add_task('frames', total=_count(sources), rate='')
        self.clock, self.frames = Stopwatch(), 0

    def __enter__(self):
        self.progress.start()
        return self._advance

    def _advance(self):
        self.frames += 1
        rate = f'{self.frames / self.clock.elapsed:.1f} a second'
        self.progress.update(self.task, advance=1, rate=rate)

    def __exit__(self, *_):
        self.progress.stop()


def _count(sources):
    """Frames of all sources, or None where that is unknown."""
    if not isinstance(sources, list):
        return None
    total = 0
    for source in sources:
        try:
            number = inputs.video_info(source).num_frames if source.moves else 1
        except inputs.Unreadable:
            number = 0
        if number is None:
            return None
        total += number
    return total
