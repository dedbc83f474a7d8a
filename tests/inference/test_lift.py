"""Bodies lifted from the keypoints of a pose model."""

import warnings

import numpy as np
import pytest
import torch
from mmpose.datasets.datasets.utils import parse_pose_metainfo
from small_models import noise, write_clip

from trunchier.conventions import COCO_17
from trunchier.deploy.export import export
from trunchier.inference.inferencer import Inferencer
from trunchier.inference.lift import BodyWindows, LiftPredictor, coco_places
from trunchier.inference.mesh import MeshInferencer
from trunchier.inference.pose import PoseInferencer, PosePredictor
from trunchier.inference.predictor import Crop
from trunchier.models.lifting.body import load_lifter
from trunchier.models.lifting.facing import facing, facing_track, turned
from trunchier.models.lifting.fit import KeypointFit
from trunchier.models.lifting.track import BodyTrackLifter, load_track_lifter
from trunchier.visualization.overlays import PerspectivePainter
from trunchier.weights.find import find


@pytest.fixture(scope='module')
def infer():
    return MeshInferencer('VMPose-T-S2+lift', device='cpu', batch_size=2, causal=False)


def fitted(keypoints, scores, lens):
    """Bodies lifted from keypoints by hand."""
    seen, turns = facing(keypoints, scores, *lens)
    return turned(KeypointFit()(load_lifter().lift(seen, scores), seen, scores), turns)


def test_the_body_is_that_of_the_keypoints_and_stands_on_them(infer, image, boxes, undeployed):
    poses = next(PoseInferencer('VMPose-T-S2', device='cpu')(image, bboxes=boxes)).pred_instances
    result = next(infer(image, bboxes=boxes))
    bodies, lens = result.pred_instances, (result.focal_length, result.principal_point)
    keypoints, scores = (
        torch.from_numpy(np.float32(each)) for each in (poses.keypoints, poses.keypoint_scores)
    )
    expected = fitted(keypoints, scores.clamp(0, 1), lens)
    for name in ('global_orient', 'body_pose', 'betas'):
        np.testing.assert_allclose(bodies[name], expected[name], atol=2e-3)
    moved = bodies.joints + bodies.translation[:, None]
    seen = moved[..., :2] / moved[..., 2:] * result.focal_length + result.principal_point
    np.testing.assert_allclose(bodies.keypoints, seen, atol=1e-2)
    sides = (result.pred_instances.bboxes[:, 2:4] - result.pred_instances.bboxes[:, :2]).max(1)
    assert (np.abs(np.median(seen - keypoints.numpy().mean(1)[:, None], 1)) < sides[:, None]).all()


def test_lift_alone_is_our_pose_model_lifted():
    found = find('lift')
    assert found == find('VMPose-T-S2+lift', task='mesh')._replace(cfg=found.cfg)
    assert found.lifted and found.name == 'VMPose-T-S2+lift' and found.weights.is_file()
    assert found.row.load('predictor') is LiftPredictor
    assert find('pose').row.load('predictor') is PosePredictor


@pytest.mark.parametrize(
    'name, task, message',
    [
        ('VMHMR2.0-T-S2+lift', None, 'is a mesh model, not pose'),
        ('VMPose-T-S9+lift', None, "no model 'VMPose-T-S9'; did you mean VMPose-T-S"),
        ('VMPose-T-S2+lift', 'pose', r'VMPose-T-S2\+lift gives results of the task mesh, not pose'),
    ],
)
def test_what_cannot_be_lifted_is_named(name, task, message):
    with pytest.raises(ValueError, match=message):
        find(name, task=task)


def mmposes(name):
    """Metainfo of a data set of mmpose."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # the file is mmpose's own
        return parse_pose_metainfo(dict(from_file=f'configs/_base_/datasets/{name}.py'))


@pytest.mark.parametrize(
    ('name', 'missing'),
    [
        ('coco', []),
        ('coco_wholebody', []),
        ('halpe26', []),
        ('posetrack18', ['left_eye', 'right_eye']),
        *((each, COCO_17[:5]) for each in ('mpii', 'aic', 'crowdpose', 'jhmdb', 'h36m')),
    ],
)
def test_keypoints_of_other_sets_are_found_by_their_names(name, missing):
    names = list(mmposes(name)['keypoint_id2name'].values())
    found = {COCO_17[ours]: names[theirs] for ours, theirs in coco_places(names)}
    assert [each for each in COCO_17 if each not in found] == list(missing)
    feet = dict(left_ankle='left_foot', right_ankle='right_foot') if name == 'h36m' else {}
    assert all(theirs == feet.get(ours, ours) for ours, theirs in found.items())


@pytest.mark.parametrize('name', ['ap10k', 'atrw', 'interhand2d', 'coco_wholebody_face'])
def test_sets_without_a_human_body_are_refused(name):
    with pytest.raises(ValueError, match='10 of nose, .*, as COCO, .* MPII, AIC, .* of them among'):
        coco_places(list(mmposes(name)['keypoint_id2name'].values()))


def test_a_model_of_other_keypoints_is_refused():
    found = find('VMPose-T-S2')
    meta = dict(
        num_keypoints=17, flip_indices=[*range(17)], keypoint_id2name=dict(enumerate('abcdefghij'))
    )
    with pytest.raises(ValueError, match='this model has 0 of them'):
        LiftPredictor(found.cfg, None, 'cpu', 'fp32', meta)


def test_a_model_without_a_face_is_lifted_from_its_limbs(infer, image, boxes):
    of, ours = infer.predictor, infer.predictor.pose
    meta = dict(ours.dataset_meta)
    meta['keypoint_id2name'] = dict(enumerate(('neck', *'abcd', *COCO_17[5:])))
    predictor = LiftPredictor(of.cfg, LiftPredictor.build(of.cfg), 'cpu', of.precision, meta)
    predictor.network = predictor.pose.network = ours.network
    crops = [predictor.crop(image, boxes[0])]
    (person,) = predictor.decode(predictor.forward(crops), crops)
    keypoints, scores = torch.from_numpy(person['coco_keypoints'])[None].split((2, 1), 2)
    assert not scores[:, :5].any() and (scores[:, 5:] > 0).all()
    expected = fitted(keypoints, scores[..., 0], predictor.lenses(crops))
    np.testing.assert_allclose(person['body_pose'], expected['body_pose'][0], atol=1e-4)


def test_meshes_of_a_lifted_model_are_written(infer, image, boxes, tmp_path):
    results = list(infer(image, bboxes=boxes[:1], out_dir=tmp_path, save='json,obj'))
    assert results[0].pred_instances.vertices.shape == (1, 6890, 3)
    assert {path.suffix for path in tmp_path.rglob('*') if path.is_file()} == {'.json', '.obj'}
    assert isinstance(infer.painter(), PerspectivePainter)  # bodies lie over their keypoints
    assert isinstance(infer, Inferencer) and infer.name == 'VMPose-T-S2+lift'


def test_what_is_exported_is_the_pose_model(tmp_path):
    with pytest.raises(ValueError, match=r'export VMPose-T-S2, whose keypoints'):
        export('VMPose-T-S2+lift', path=tmp_path / 'model.onnx')


@pytest.fixture
def by_frames_and_windows(infer, monkeypatch):
    """Results of pictures, each alone and by a new lifter of windows of three."""

    def lift(pictures, boxes):
        clip = np.stack(pictures)  # a file would change each picture a little
        lifter = BodyTrackLifter(load_lifter(), width=16, depth=1, window=3).eval()
        for windows in (None, BodyWindows(infer.predictor, lifter, fit_frames=0.01)):
            monkeypatch.setattr(infer.predictor, 'windows', windows)
            found = [each.pred_instances for each in infer(clip, bboxes=boxes)]
            assert len(found) == len(pictures)
            yield found

    return lift


BOXES = [[10, 10, 60, 90], [70, 5, 120, 90]]


@torch.no_grad()
def test_windows_of_a_new_track_lifter_give_the_bodies_of_the_frames(infer, by_frames_and_windows):
    frames, windows = by_frames_and_windows([noise(96, 128)] * 4, BOXES)
    assert infer.predictor.causal is False and infer.predictor.settings['causal'] is False
    crops = [Crop.of_box(box, (96, 128)) for box in np.float32(BOXES)]
    for one, two in zip(frames, windows, strict=True):
        np.testing.assert_allclose(one.body_pose, two.body_pose, atol=1e-4)
        names = 'global_orient', 'body_pose', 'betas'
        bodies = {name: torch.from_numpy(two[name]) for name in names}
        keypoints = torch.from_numpy(one.coco_keypoints)
        for person, placed in enumerate(infer.predictor.placed(bodies, keypoints, crops)):
            np.testing.assert_allclose(two.keypoints[person], placed['keypoints'], atol=0.01)


def test_people_of_a_window_have_one_shape(infer, by_frames_and_windows, monkeypatch):
    # A long lens, so that the camera is hardly turned: windows turn it once, frames each.
    monkeypatch.setattr(infer.predictor.lens, 'focal', np.full(2, 1e6))
    monkeypatch.setattr(infer.predictor, 'fit', lambda bodies, *_: bodies)
    frames, windows = by_frames_and_windows([noise(96, 128, seed=seed) for seed in range(4)], BOXES)
    betas = np.array([each.betas for each in frames])
    assert np.ptp(betas, axis=0).max() > 0.01
    np.testing.assert_allclose(windows[0].betas, betas[:3].mean(0), atol=1e-5)
    poses, other = (np.array([each.body_pose for each in found]) for found in (frames, windows))
    assert abs(np.diff(poses, axis=0)).max((1, 2, 3, 4)).min() > 0.1
    np.testing.assert_allclose(poses, other, atol=1e-5)


def test_videos_are_lifted_by_the_shipped_lifter_of_tracks(infer, tmp_path):
    clip = write_clip(tmp_path / 'clip.mp4', frames=4)
    found = [each.pred_instances for each in infer(clip, bboxes=[[10, 10, 60, 90]])]
    keypoints, scores = torch.from_numpy(
        np.stack([each.coco_keypoints[0] for each in found])
    ).split((2, 1), 2)
    scores = scores[..., 0]
    lens = infer.predictor.lens.of((96, 128)).values()
    seen, turns = facing_track(keypoints, scores, *lens)
    expected = load_track_lifter().lift(seen, scores)
    expected = KeypointFit()(expected, seen, scores, infer.predictor.windows.fit_frames)
    expected = turned(expected, turns)
    for name in ('global_orient', 'body_pose'):
        ours = np.stack([each[name][0] for each in found])
        np.testing.assert_allclose(ours, expected[name], atol=1e-3)
