"""3D joints of people in videos, by lifters of windows."""

import json

import numpy as np
import pytest
import torch
from mmengine.config import Config
from small_models import CONFIGS, ROOT, write_clip

from trunchier.conventions import COCO_17
from trunchier.inference import command
from trunchier.inference.inferencer import Inferencer
from trunchier.inference.joints import JointLifter, parts_of
from trunchier.weights.find import build_model

BOXES = [[10, 10, 60, 90], [70, 5, 120, 90]]


def lifter_config(name='mixste_243frm_h36m', **backbone):
    cfg = Config.fromfile(ROOT / f'configs/pose3d/{name}.py')
    cfg.model.backbone.update(width=16, depth=2, seq_len=9, num_heads=2, **backbone)
    cfg.model.head.in_channels = 16
    return cfg


@pytest.fixture(scope='module')
def models(tmp_path_factory, weights):
    folder = tmp_path_factory.mktemp('lifter')
    lifter_config().dump(folder / 'lifter.py')
    torch.manual_seed(0)
    torch.save(build_model(lifter_config()).state_dict(), folder / 'lifter.pth')
    CONFIGS['pose']().dump(folder / 'pose.py')
    return dict(
        model=str(folder / 'lifter.py'), weights=str(folder / 'lifter.pth'),
        pose=str(folder / 'pose.py'), pose_weights=str(weights['pose']),
    )  # fmt: skip


def test_a_lifter_of_windows_gives_joints_of_everybody_in_every_frame(models, tmp_path):
    clip = write_clip(tmp_path / 'clip.mp4', frames=12)
    names = dict(model='--model', weights='--weights', pose='--pose', pose_weights='--pose-weights')
    boxes = tmp_path / 'boxes.json'
    boxes.write_text(json.dumps({'clip.mp4': BOXES}))
    given = [text for name, option in names.items() for text in (option, models[name])]
    assert command.main(
        [str(clip), *given, '--device', 'cpu', '--boxes', str(boxes), '--out-dir',
         str(tmp_path / 'out'), '--save', 'json,npz', '--fov', '50', '--quiet']
    ) == 0  # fmt: skip
    content = json.loads((tmp_path / 'out/predictions/clip.json').read_text())
    assert content['meta_info']['joint_names'][:2] == ['root', 'right_hip']
    assert [frame['frame_id'] for frame in content['instance_info']] == [*range(12)]
    for frame in content['instance_info']:
        for person in frame['instances']:
            assert np.shape(person['joints']) == (17, 3) and person['transl'][2] > 0
            assert person['joints'][0] == [0, 0, 0] and len(person['keypoints']) == 17
    with np.load(tmp_path / 'out/predictions/clip.npz') as arrays:
        assert arrays['joints'].shape == (24, 17, 3) and arrays['track_ids'].max() == 1


@pytest.mark.parametrize('causal', [False, True])
def test_joints_are_those_of_the_window_by_hand(models, tmp_path, causal):
    clip = write_clip(tmp_path / 'clip.mp4', frames=7)
    infer = Inferencer(**models, device='cpu', causal=causal)
    results = list(infer(clip, bboxes=BOXES[:1]))
    lifter = infer.predictor.windows
    people = [result.pred_instances for result in results]
    points = np.stack([each.keypoints[0] for each in people])
    scores = np.stack([each.keypoint_scores[0] for each in people])
    pads = (8, 0) if causal else (0, 2)
    points, scores = (np.pad(a, [pads] + [(0, 0)] * (a.ndim - 1), 'edge') for a in (points, scores))
    start = 6 if causal else 0  # the window of the last frame
    window = dict(
        keypoints=points[None, start : start + 9], keypoint_scores=scores[None, start : start + 9]
    )
    joints = lifter(window, np.ones((1, 9), bool), results[-1])['joints'][0, 8 if causal else 6]
    np.testing.assert_allclose(people[-1].joints[0], joints, atol=1e-5)


def test_images_are_lifted_as_windows_that_repeat_them(models, image, boxes):
    infer = Inferencer(**models, device='cpu')
    some, nobody = infer([image, image], bboxes=[boxes, []])
    assert some.pred_instances.joints.shape == (3, 17, 3)
    assert nobody.pred_instances.joints.shape == (0, 17, 3)
    assert nobody.pred_instances.translation.shape == (0, 3)


def test_every_kind_of_lifter_runs_on_keypoints_with_gaps():
    torch.manual_seed(0)
    configs = [
        lifter_config(),
        lifter_config('d3dp_243frm_h36m'),
        Config.fromfile(ROOT / 'configs/pose3d/mixste_tpc-n7f61_243frm_h36m.py'),
        Config.fromfile(ROOT / 'configs/pose3d/mixste_h2ot-tps-tri_243frm_h36m.py'),
        Config.fromfile(ROOT / 'configs/pose3d/motionbert-256_hot-n1f81_243frm_h36m.py'),
    ]
    for cfg in configs[2:]:
        cfg.model.backbone.schedule = {1: 4}
    for cfg in configs[2:4]:
        cfg.model.backbone.backbone.update(width=16, depth=2, seq_len=9, num_heads=2)
        cfg.model.head.in_channels = 16
    small = dict(feat_size=16, depth=2, num_heads=2, mlp_ratio=2, seq_len=9)
    configs[4].model.backbone.backbone.update(small)
    configs[4].model.head.update(in_channels=16, embedding_size=16)
    fields = dict(
        keypoints=np.random.default_rng(0).uniform(0, 99, (2, 9, 17, 2)).astype(np.float32),
        keypoint_scores=np.ones((2, 9, 17), np.float32),
    )
    fields['keypoint_scores'][0, :3] = np.nan
    fields['keypoints'][1, 4] = np.inf
    result = type('', (), dict(ori_shape=(80, 120)))
    for cfg in configs:
        lifter = JointLifter(build_model(cfg).eval(), cfg, COCO_17)
        found = lifter({n: a.copy() for n, a in fields.items()}, np.ones((2, 9), bool), result)
        frames = 1 if lifter.centered else 9
        assert lifter.length == 9 and found['joints'].shape == (2, frames, 17, 3)
        assert np.isfinite(found['joints']).all() and (found['joints'][:, :, 0] == 0).all()
        assert found['points'][0, 0, 0, 2] == 0 and found['points'].shape == (2, 9, 17, 3)


def test_keypoints_that_cannot_be_made_are_named():
    hips = [COCO_17.index(side) for side in ('left_hip', 'right_hip')]
    assert parts_of(('root', 'nose'), COCO_17) == [hips, [0]]
    with pytest.raises(ValueError, match=r'takes head_top, which cannot be made .* \(--pose\)'):
        parts_of(('head_top', 'neck', 'root'), COCO_17)
    cfg = lifter_config('mixste_243frm_mpi-inf-3dhp')
    with pytest.raises(ValueError, match='head_top'):
        JointLifter(build_model(cfg), cfg, COCO_17)
    cfg.test_dataloader.dataset.type = 'OwnJoints'
    with pytest.raises(ValueError, match='keypoints of OwnJoints are unknown'):
        JointLifter(build_model(cfg), cfg, COCO_17)


def test_a_2d_model_must_be_top_down(models):
    with pytest.raises(ValueError, match='gives results of the task mesh|no top-down'):
        Inferencer(models['model'], models['weights'], pose='lift')
