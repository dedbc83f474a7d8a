"""Predictions are mmpose's own, in pixels of the picture, for any input, batch and crop."""

import json
import logging
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
import torch
from mmpose.structures import PoseDataSample
from PIL import Image
from small_models import mesh_config, noise, pose_config, write_clip, write_weights

from trunchier.inference import inferencer as module
from trunchier.inference.inferencer import MeshInferencer, PoseInferencer, full_camera

BOXES = np.float32([[40, 20, 120, 200], [100, 30, 230, 190], [-20, -10, 90, 260]])
CONFIGS = {'pose': pose_config, 'mesh': mesh_config}
KINDS = {'pose': PoseInferencer, 'mesh': MeshInferencer}


@pytest.fixture(scope='session')
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp('weights')
    files = {task: folder / f'{task}.pth' for task in CONFIGS}
    for task, file in files.items():
        write_weights(CONFIGS[task](), file)
    return files


@pytest.fixture(scope='session')
def inferencers(weights):
    """One of each task, on the CPU."""
    return {
        task: KINDS[task](CONFIGS[task](), weights[task], device='cpu', batch_size=4)
        for task in CONFIGS
    }


@pytest.fixture(params=['pose', 'mesh'])
def infer(request, inferencers):
    return inferencers[request.param]


@pytest.fixture(scope='session')
def picture():
    return noise(240, 320)


def keypoints(infer, given, **options):
    return [result.pred_instances.keypoints for result in infer(given, **options)]


# --- the numbers are right ---------------------------------------------------------------------


@pytest.fixture
def undeployed(monkeypatch):
    """Random heatmaps are so flat that rounding moves what is decoded from them."""
    monkeypatch.setattr(module._Inferencer, '_deployed', lambda infer, model: model)


@pytest.mark.parametrize('flip_test', [True, False])
def test_poses_equal_those_of_mmpose(undeployed, weights, picture, flip_test):
    from mmpose.apis import inference_topdown, init_model

    cfg = pose_config()
    cfg.model.test_cfg.flip_test = flip_test
    wanted = inference_topdown(init_model(cfg, str(weights['pose']), 'cpu'), picture, BOXES)
    infer = PoseInferencer(pose_config(), weights['pose'], flip_test=flip_test, device='cpu')
    (result,) = infer(picture, bboxes=BOXES)
    assert isinstance(result, PoseDataSample)
    found = result.pred_instances
    for i, each in enumerate(wanted):
        each = each.pred_instances
        np.testing.assert_allclose(found.keypoints[i], each.keypoints[0], atol=1e-3)
        np.testing.assert_allclose(found.keypoint_scores[i], each.keypoint_scores[0], atol=1e-5)
    np.testing.assert_array_equal(found.bboxes, BOXES)


def test_other_topdown_configs_of_mmpose_work(tmp_path, picture):
    """Another backbone, codec, input size and padding, by config alone."""
    from mmpose.apis import inference_topdown, init_model

    cfg = pose_config()
    codec = dict(
        type='SimCCLabel', input_size=(96, 128), sigma=6.0, simcc_split_ratio=2.0,
    )  # fmt: skip
    cfg.model.backbone = dict(type='ResNet', depth=18, base_channels=8, stem_channels=8)
    cfg.model.pop('neck')
    cfg.model.head = dict(
        type='SimCCHead', in_channels=64, out_channels=17, input_size=(96, 128),
        in_featuremap_size=(3, 4), simcc_split_ratio=2.0, deconv_out_channels=None,
        loss=dict(type='KLDiscretLoss'), decoder=codec,
    )  # fmt: skip
    cfg.test_dataloader.dataset.pipeline = [
        dict(type='LoadImage'),
        dict(type='GetBBoxCenterScale', padding=1.1),
        dict(type='TopdownAffine', input_size=(96, 128)),
        dict(type='PackPoseInputs'),
    ]
    write_weights_of(cfg, tmp_path / 'a.pth')
    wanted = inference_topdown(init_model(cfg, str(tmp_path / 'a.pth'), 'cpu'), picture, BOXES)
    (result,) = PoseInferencer(cfg, tmp_path / 'a.pth', device='cpu')(picture, bboxes=BOXES)
    for i, each in enumerate(wanted):
        each = each.pred_instances
        np.testing.assert_allclose(result.pred_instances.keypoints[i], each.keypoints[0], atol=1e-3)


def write_weights_of(cfg, path):
    from mmpose.apis import init_model

    torch.save(dict(state_dict=init_model(cfg, None, 'cpu').state_dict()), path)


def test_meshes_equal_those_of_the_test_pipeline(inferencers, picture):
    """One person, cropped, run and put back by hand."""
    infer = inferencers['mesh']
    (result,) = infer(picture, bboxes=BOXES[1:2])
    centre, side = np.array([165.0, 110.0]), 160 * 256 / 256  # 130 x 160 is wider than 3:4:
    side = max(130 * 4 / 3, 160)
    crop = cv2.warpAffine(
        picture,
        np.array([[256 / side, 0, 128 - centre[0] * 256 / side],
                  [0, 256 / side, 128 - centre[1] * 256 / side]]),
        (256, 256),
    )  # fmt: skip
    mean, std = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
    batch = torch.from_numpy((crop[..., ::-1] - mean) / std).permute(2, 0, 1)[None].float()
    with torch.no_grad():
        wanted = infer.model(batch)
    found = result.pred_instances
    # A pixel of the crop may be rounded to the next grey level.
    np.testing.assert_allclose(found.camera, wanted['camera'], atol=2e-3)
    np.testing.assert_allclose(found.vertices, wanted['vertices'], atol=2e-3)
    np.testing.assert_allclose(
        found.keypoints, wanted['crop_keypoints'] * side + torch.from_numpy(centre), atol=0.5
    )


@pytest.mark.parametrize('flip_test', [True, False])
def test_deployed_poses_have_the_same_heatmaps(weights, picture, monkeypatch, flip_test):
    options = dict(flip_test=flip_test, draw_heatmap=True, device='cpu')
    deployed = PoseInferencer(pose_config(), weights['pose'], **options)
    monkeypatch.setattr(PoseInferencer, '_deployed', lambda infer, model: model)
    plain = PoseInferencer(pose_config(), weights['pose'], **options)
    (found,), (wanted,) = (infer(picture, bboxes=BOXES) for infer in (deployed, plain))
    found, wanted = (result.pred_fields.heatmaps for result in (found, wanted))
    assert np.abs(found - wanted).max() < 1e-5 * np.std(wanted)


def test_deployed_meshes_are_the_same(inferencers, undeployed, weights, picture):
    plain = MeshInferencer(mesh_config(), weights['mesh'], device='cpu')
    (found,), (wanted,) = (infer(picture, bboxes=BOXES) for infer in (inferencers['mesh'], plain))
    for name, values in wanted.pred_instances.items():
        np.testing.assert_allclose(
            found.pred_instances[name], values, rtol=1e-5, atol=1e-4, err_msg=name
        )


@pytest.mark.parametrize('task', CONFIGS)
def test_models_are_deployed_on_a_cpu(task, inferencers):
    assert inferencers[task].model.deployed


@pytest.mark.parametrize('task', CONFIGS)
def test_autocast_gets_the_model_as_it_is(task, weights):
    infer = KINDS[task](CONFIGS[task](), weights[task], device='cpu', precision='bf16')
    assert not hasattr(infer.model, 'deployed')


def test_results_do_not_depend_on_the_batch(infer, picture):
    given = [picture, picture[:, ::-1].copy(), picture[::-1].copy()]
    boxes = [BOXES, BOXES[:1], BOXES[1:]]
    wanted = keypoints(infer, given, bboxes=boxes, batch_size=64)
    for batch_size in (1, 2, 4):
        for a, b in zip(
            keypoints(infer, given, bboxes=boxes, batch_size=batch_size), wanted, strict=True
        ):
            np.testing.assert_allclose(a, b, atol=1e-2)


def test_keypoints_move_with_the_picture(infer, picture):
    """A margin of black is what lies outside of a picture anyway."""
    framed = cv2.copyMakeBorder(picture, 30, 0, 50, 0, cv2.BORDER_CONSTANT)
    (plain,), (moved,) = (
        keypoints(infer, picture, bboxes=BOXES),
        keypoints(infer, framed, bboxes=BOXES + np.float32([50, 30, 50, 30])),
    )
    np.testing.assert_allclose(moved, plain + [50, 30], atol=0.05)


@pytest.mark.parametrize('limit', [150, 300])
def test_huge_pictures_give_what_small_ones_do(infer, picture, monkeypatch, limit):
    """OpenCV warps 32767 pixels a side; a lower limit takes the same way."""
    (wanted,) = keypoints(infer, picture, bboxes=BOXES[:2])
    monkeypatch.setattr(module, 'WARP_LIMIT', limit)
    (found,) = keypoints(infer, picture, bboxes=BOXES[:2])
    # Below the size of the crop the picture is made smaller first, which blurs it.
    assert np.median(np.abs(found - wanted)) < (0.01 if limit == 300 else 8)


def test_a_real_huge_picture_is_predicted_on(inferencers):
    wide = np.zeros((40, 40_000, 3), np.uint8)
    (result,) = inferencers['pose'](wide, bboxes=[[39_000, 0, 39_040, 40]])
    x = result.pred_instances.keypoints[..., 0]
    assert ((x > 38_900) & (x < 39_200)).all()


@pytest.mark.parametrize('size', [(1, 1), (2, 500), (37, 51)])
def test_tiny_pictures_are_predicted_on(infer, size):
    (result,) = infer(noise(*size))
    assert np.isfinite(result.pred_instances.keypoints).all()
    assert result.ori_shape == size


def test_every_form_of_a_picture_gives_the_same(infer, picture, tmp_path):
    cv2.imwrite(str(tmp_path / 'a.png'), picture)
    rgb = np.ascontiguousarray(picture[..., ::-1])
    forms = [
        picture, str(tmp_path / 'a.png'), tmp_path / 'a.png', Image.fromarray(rgb),
        torch.from_numpy(rgb).permute(2, 0, 1),
    ]  # fmt: skip
    wanted, *others = keypoints(infer, forms, bboxes=BOXES)
    for found in others:
        np.testing.assert_allclose(found, wanted, atol=1e-2)


def test_precision_changes_little(inferencers, weights, picture):
    (wanted,) = keypoints(inferencers['mesh'], picture, bboxes=BOXES)
    for precision in ('bf16', 'fp16'):
        infer = MeshInferencer(mesh_config(), weights['mesh'], precision=precision, device='cpu')
        (found,) = keypoints(infer, picture, bboxes=BOXES)
        assert 0 < np.abs(found - wanted).max() < 5


@pytest.mark.parametrize('dynamic', [True, False])
def test_exported_models_predict_the_same(infer, weights, picture, tmp_path, dynamic):
    pytest.importorskip('onnxscript', reason='writing ONNX needs onnxscript')
    from trunchier.deploy import export
    from trunchier.models.create import build_model
    from trunchier.weights.find import find_config
    from trunchier.weights.load import load_checkpoint

    cfg = CONFIGS[infer.task]()
    model = build_model(cfg)
    load_checkpoint(model, weights[infer.task])
    meta = getattr(infer, 'dataset_meta', None)
    facts = export.describe(find_config(cfg)._replace(name=infer.name), meta)
    export.write(model, tmp_path / 'a.onnx', facts, dynamic_batch=dynamic)
    exported = KINDS[infer.task](cfg, tmp_path / 'a.onnx', device='cpu')
    (wanted,), (found,) = (keypoints(each, picture, bboxes=BOXES) for each in (infer, exported))
    # Refining the maxima of nearly flat heatmaps enlarges what is rounded differently.
    assert np.median(np.abs(found - wanted)) < 1e-3 and np.abs(found - wanted).max() < 2
    with pytest.raises(ValueError, match=r'a.onnx is .*, not (VMPose|VMHMR2.0)-T-S2'):
        KINDS[infer.task]('vm-t-s2', tmp_path / 'a.onnx', device='cpu')


# --- the camera --------------------------------------------------------------------------------


@pytest.mark.parametrize('focal', [(500, 500), (3000, 2000)])
def test_crop_and_whole_camera_agree_at_the_depth_of_the_body(focal):
    """There and back: pixels by the crop's (s, tx, ty), pixels by the translation."""
    rng = np.random.default_rng(0)
    camera = np.hstack([rng.uniform(0.5, 1.5, (5, 1)), rng.normal(0, 0.3, (5, 2))])
    boxes = np.hstack([rng.uniform(0, 900, (5, 2)), rng.uniform(50, 500, (5, 1))])
    points = rng.normal(0, 0.5, (5, 2))  # of a body, metres, at its own depth
    centre = np.array([310.0, 250.0])
    stretch = np.array([1, focal[0] / focal[1]])  # pixels that are not square

    by_crop = boxes[:, :2] + camera[:, :1] * boxes[:, 2:] / 2 * (points + camera[:, 1:]) / stretch
    t = full_camera(camera, boxes, focal, centre)
    by_whole = (points + t[:, :2]) / t[:, 2:] * np.array(focal) + centre
    np.testing.assert_allclose(by_whole, by_crop, atol=1e-3)


def test_vertices_lie_over_the_keypoints(inferencers, picture):
    (result,) = inferencers['mesh'](picture, bboxes=BOXES)
    found = result.pred_instances
    placed = found.joints + found.translation[:, None]
    pixels = placed[..., :2] / placed[..., 2:] * result.focal_length + result.principal_point
    height = np.ptp(found.keypoints[..., 1], axis=1)[:, None]
    assert (np.abs(pixels - found.keypoints).max(-1) < 0.03 * height).all()  # of perspective


def test_focal_length_and_intrinsics_are_the_users(weights, picture):
    matrix = np.array([[900.0, 0, 150], [0, 900, 130], [0, 0, 1]])
    options = dict(weights=weights['mesh'], device='cpu')
    by_focal = MeshInferencer(mesh_config(), focal=900, **options)
    by_matrix = MeshInferencer(mesh_config(), intrinsics=matrix, **options)
    (a,), (b,) = by_focal(picture, bboxes=BOXES), by_matrix(picture, bboxes=BOXES)
    np.testing.assert_array_equal(a.focal_length, [900, 900])
    np.testing.assert_array_equal(a.principal_point, [160, 120])
    np.testing.assert_array_equal(b.principal_point, [150, 130])
    shift = (b.pred_instances.translation - a.pred_instances.translation)[:, :2]
    depth = a.pred_instances.translation[:, 2:]
    np.testing.assert_allclose(shift, [[10, -10]] * depth / 900, atol=1e-4)
    with pytest.raises(ValueError, match='not both'):
        MeshInferencer(mesh_config(), focal=900, intrinsics=matrix, **options)
    with pytest.raises(ValueError, match='one or two positive numbers'):
        MeshInferencer(mesh_config(), focal=-1, **options)


# --- results -----------------------------------------------------------------------------------


def test_results_come_lazily_in_order_one_a_frame(infer, picture):
    asked = []

    def endless():
        for i in range(10**9):
            asked.append(i)
            yield picture[: 100 + i % 100]

    results = infer(endless())
    first = [next(results) for _ in range(6)]
    assert [result.ori_shape[0] for result in first] == [100, 101, 102, 103, 104, 105]
    results.close()
    assert len(asked) < 80  # a bounded step ahead


def test_a_result_becomes_a_dict(infer, picture):
    (result,) = infer(picture, bboxes=BOXES)
    content = result.to_dict()
    assert content['pred_instances']['keypoints'].shape[:2] == (3, infer_joints(infer))
    assert result.metainfo.keys() >= {'img_path', 'source', 'ori_shape', 'frame_id'}


def infer_joints(infer):
    return 17 if infer.task == 'pose' else 44


def test_pictures_come_with_the_result_when_asked_for(infer, picture):
    (result,) = infer(picture, bboxes=BOXES, return_vis=True, return_image=True, draw_bbox=True)
    np.testing.assert_array_equal(result.image, picture)
    assert result.visualization.shape == picture.shape
    assert (result.visualization != picture).any()
    (plain,) = infer(picture, bboxes=BOXES)
    assert 'visualization' not in plain and 'image' not in plain


def test_heatmaps_come_and_are_drawn_when_asked_for(weights, picture):
    infer = PoseInferencer(pose_config(), weights['pose'], draw_heatmap=True, device='cpu')
    (result,) = infer(picture, bboxes=BOXES, return_vis=True)
    assert result.pred_fields.heatmaps.shape == (17, *picture.shape[:2])
    assert result.visualization.shape == (2 * picture.shape[0], picture.shape[1], 3)


def test_nobody_is_an_empty_result_of_the_same_form(infer, picture, tmp_path):
    some, nobody = infer([picture] * 2, bboxes=[BOXES, []], out_dir=tmp_path)
    assert len(nobody.pred_instances) == 0
    for name, value in nobody.pred_instances.items():
        assert value.shape[1:] == some.pred_instances.get(name).shape[1:], name
    assert (tmp_path / 'predictions/000001.json').read_text() == '[]'
    assert cv2.imread(str(tmp_path / 'visualizations/000001.jpg')).shape == picture.shape


def test_videos_get_track_ids_and_stills_do_not(infer, picture, tmp_path):
    path = write_clip(tmp_path / 'clip.mp4', frames=5)
    for result in infer(path, bboxes=[[10, 10, 60, 90], [70, 5, 120, 90]]):
        assert result.pred_instances.track_ids.tolist() == [0, 1]
        assert result.time == result.frame_id / 10
    (still,) = infer(picture)
    assert 'track_ids' not in still.pred_instances


def test_smoothing_calms_a_video_and_keeps_bodies_bodies(weights, tmp_path):
    path = write_clip(tmp_path / 'clip.mp4', frames=8)
    for task, kind in KINDS.items():
        found = {}
        for smooth in (False, dict(beta=0.0, min_cutoff=0.3)):
            infer = kind(CONFIGS[task](), weights[task], smooth=smooth, device='cpu')
            results = list(infer(path))
            found[bool(smooth)] = np.stack([r.pred_instances.keypoints[0] for r in results])
        jump = {smooth: np.abs(np.diff(k, axis=0)).mean() for smooth, k in found.items()}
        assert 0 < jump[True] < 0.5 * jump[False]
        np.testing.assert_array_equal(found[True][0], found[False][0])
    last = results[-1].pred_instances
    product = last.body_pose @ last.body_pose.swapaxes(-1, -2)
    np.testing.assert_allclose(product, np.broadcast_to(np.eye(3), (1, 23, 3, 3)), atol=1e-5)
    pose = (torch.from_numpy(a) for a in (last.global_orient, last.body_pose, last.betas))
    np.testing.assert_allclose(last.vertices, infer.model.body(*pose)['vertices'], atol=1e-5)


def test_the_report_says_how_long_what_took(infer, picture):
    list(infer([picture] * 3, return_vis=True))
    report = infer.report
    assert (report.frames, report.people, report.skipped) == (3, 3, [])
    assert {'read', 'crop', 'network', 'decode', 'draw'} <= report.seconds.keys()
    assert '3 frames, 3 people' in str(report) and 'network' in str(report)


# --- bad input ---------------------------------------------------------------------------------


def test_what_cannot_be_read_is_skipped_and_counted(infer, picture, tmp_path, caplog):
    for name in ('a.png', 'c.png'):
        cv2.imwrite(str(tmp_path / name), picture)
    (tmp_path / 'b.png').write_bytes(b'broken')
    (tmp_path / 'd.mp4').write_bytes(b'broken')
    with caplog.at_level(logging.WARNING):
        assert [result.source for result in infer(tmp_path)] == ['a', 'c']
    assert [where.rsplit('/')[-1] for where, _ in infer.report.skipped] == ['b.png', 'd.mp4']
    assert 'b.png' in caplog.text and '2 skipped' in str(infer.report)


def test_boxes_that_cannot_be_cropped_are_skipped_and_counted(infer, picture):
    boxes = np.vstack([BOXES[:1], [[5, 5, 5, 50]], [[np.nan, 0, 9, 9]], [[900, 0, 990, 90]]])
    (result,) = infer(picture, bboxes=boxes)
    assert len(result.pred_instances) == 1 and len(infer.report.skipped) == 3


def test_people_whose_prediction_is_not_finite_are_left_out(infer, picture, monkeypatch):
    decode = infer._decode

    def poisoned(output):
        people = decode(output)
        people[1].pred_instances.keypoints[0, 3] = np.nan
        return people

    monkeypatch.setattr(infer, '_decode', poisoned)
    (result,) = infer(picture, bboxes=BOXES)
    np.testing.assert_array_equal(result.pred_instances.bboxes, BOXES[[0, 2]])
    assert 'not finite' in infer.report.skipped[0][1]


def test_a_network_of_nan_predicts_nobody(weights, picture, tmp_path):
    content = torch.load(weights['mesh'])
    content['state_dict']['head.camera_out.bias'][:] = float('nan')
    torch.save(content, tmp_path / 'nan.pth')
    infer = MeshInferencer(mesh_config(), tmp_path / 'nan.pth', device='cpu')
    (result,) = infer(picture, bboxes=BOXES, return_vis=True)
    assert len(result.pred_instances) == 0 and len(infer.report.skipped) == 1
    np.testing.assert_array_equal(result.visualization, picture)


@pytest.mark.parametrize(
    'change, says',
    [
        (dict(precision='fp8'), "one of fp32, bf16, fp16, got 'fp8'"),
        (dict(batch_size=0), 'batch_size must be 1 or more'),
        (dict(det_model='nowhere.onnx'), 'no file nowhere.onnx'),
        (dict(flip=True), 'flip'),
    ],
)
def test_options_that_make_no_sense_are_refused(weights, change, says):
    with pytest.raises((ValueError, FileNotFoundError, TypeError), match=says):
        PoseInferencer(pose_config(), weights['pose'], device='cpu', **change)


def test_calls_that_make_no_sense_are_refused_at_once(infer, picture, monkeypatch, tmp_path):
    monkeypatch.delenv('DISPLAY', raising=False)
    monkeypatch.delenv('WAYLAND_DISPLAY', raising=False)
    (tmp_path / 'file').touch()
    for options, error, says in (
        (dict(show=True), RuntimeError, 'wants a display'),
        (dict(resume=True), ValueError, 'wants an out_dir'),
        (dict(out_dir=tmp_path, save=['png']), ValueError, r"cannot save \['png'\]"),
        (dict(out_dir=tmp_path / 'file' / 'x'), OSError, 'nothing can be written to'),
        (dict(colour='red'), TypeError, 'colour'),
    ):
        with pytest.raises(error, match=says):
            infer(picture, **options)


def test_models_of_other_kinds_are_refused(weights):
    with pytest.raises(ValueError, match='is a pose model, not mesh; use PoseInferencer'):
        MeshInferencer(pose_config(), weights['pose'], device='cpu')
    bottomup = pose_config()
    bottomup.model.type = 'BottomupPoseEstimator'
    with pytest.raises(ValueError, match='runs top-down models'):
        PoseInferencer(bottomup, weights['pose'], device='cpu')


# --- files -------------------------------------------------------------------------------------


def test_all_files_of_pictures(infer, picture, tmp_path):
    cv2.imwrite(str(tmp_path / 'a.png'), picture)
    formats = ['json', 'npz', 'images'] + (['obj', 'glb'] if infer.task == 'mesh' else [])
    list(infer(tmp_path / 'a.png', bboxes=BOXES, out_dir=tmp_path / 'out', save=formats))
    found = {str(p.relative_to(tmp_path / 'out')) for p in (tmp_path / 'out').rglob('*.*')}
    wanted = {'run.json', 'predictions/a.json', 'predictions/a.npz', 'visualizations/a.jpg'}
    if infer.task == 'mesh':
        wanted |= {'meshes/a.glb', *(f'meshes/a_{i}.obj' for i in range(3))}
    assert found == wanted


def test_npz_holds_what_smplx_takes(inferencers, picture, tmp_path):
    infer = inferencers['mesh']
    (result,) = infer(picture, bboxes=BOXES, out_dir=tmp_path, save=['npz'])
    with np.load(tmp_path / 'predictions/000000.npz') as saved:
        saved = dict(saved)
    shapes = dict(global_orient=(3, 3), body_pose=(3, 69), betas=(3, 10), transl=(3, 3))
    assert {name: saved[name].shape for name in shapes} == shapes
    posed = infer.model.body.layer.forward(
        **{n: axis_angle(saved[n]) for n in ('global_orient', 'body_pose')},
        betas=torch.from_numpy(saved['betas']),
        transl=torch.from_numpy(saved['transl']),
        pose2rot=False,
    )
    wanted = result.pred_instances.vertices + result.pred_instances.translation[:, None]
    np.testing.assert_allclose(posed.vertices, wanted, atol=1e-3)
    np.testing.assert_array_equal(saved['image_size'], [320, 240])


def axis_angle(rotations):
    from trunchier.geometry import axis_angle_to_matrix

    return axis_angle_to_matrix(torch.from_numpy(rotations).unflatten(1, (-1, 3)))


def test_a_single_folder_can_be_named(infer, picture, tmp_path):
    list(infer(picture, pred_out_dir=tmp_path / 'p'))
    assert {p.name for p in tmp_path.rglob('*.*')} == {'run.json', '000000.json'}
    list(infer(picture, vis_out_dir=tmp_path / 'v'))
    assert {p.name for p in (tmp_path / 'v').iterdir()} == {'run.json', '000000.jpg'}


# --- cameras -----------------------------------------------------------------------------------


class Camera:
    """Stands for cv2.VideoCapture: 80 pictures, 200 a second."""

    def __init__(self, number):
        self.left = 80

    def isOpened(self):
        return True

    def read(self):
        time.sleep(0.005)
        self.left -= 1
        return self.left >= 0, noise(48, 64)

    def release(self):
        pass


def test_a_camera_is_predicted_on_live(infer, monkeypatch, tmp_path):
    monkeypatch.setattr(cv2, 'VideoCapture', Camera)
    ids = [result.frame_id for result in infer('camera', out_dir=tmp_path)]
    assert ids == list(range(len(ids))) and 1 <= len(ids) < 80  # what came meanwhile is dropped
    assert infer.report.skipped == [('camera0', 'camera 0 sends no more pictures')]
    saved = json.loads((tmp_path / 'predictions/camera0.json').read_text())
    assert [frame['frame_id'] for frame in saved] == ids
    assert (tmp_path / 'visualizations/camera0.mp4').exists()


def test_a_camera_that_the_user_stops_leaves_complete_files(infer, monkeypatch, tmp_path):
    monkeypatch.setattr(cv2, 'VideoCapture', Camera)
    results = infer(0, out_dir=tmp_path)
    next(results)
    results.close()
    assert json.loads((tmp_path / 'predictions/camera0.json').read_text())
    assert not list(tmp_path.glob('.*'))


# --- MMPoseInferencer --------------------------------------------------------------------------


def test_mmpose_inferencer_takes_the_papers_names_after_a_mere_import(tmp_path):
    """In a process of its own; the model is real, its weights are not."""
    cv2.imwrite(str(tmp_path / 'a.png'), noise(64, 48))
    script = f"""
import torch, trunchier
from mmpose.apis import MMPoseInferencer, init_model
from mmengine.config import Config
from trunchier.weights.find import find_config
model = init_model(find_config('SwinPose-T-S2').cfg, None, 'cpu')
torch.save(dict(state_dict=model.state_dict()), r'{tmp_path}/a.pth')
infer = MMPoseInferencer('SwinPose-T-S2', r'{tmp_path}/a.pth', device='cpu',
                         det_model='whole_image')
print(len(next(infer(r'{tmp_path}/a.png'))['predictions'][0][0]['keypoints']))
try:
    MMPoseInferencer('SwinPose-T-S9', device='cpu', det_model='whole_image')
except ValueError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, '-W', 'ignore', '-c', script], capture_output=True,
                         text=True, cwd=tmp_path)  # fmt: skip
    assert run.stdout.splitlines()[-2:] == ['17', 'Cannot find model: swinpose-t-s9 in mmpose'], (
        run.stderr
    )
