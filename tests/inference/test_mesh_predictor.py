"""Meshes are cropped as in evaluation and stand before the camera of the whole image."""

import cv2
import numpy as np
import PIL.Image
import pytest
import torch
from mmengine.dataset import Compose
from small_models import keypoints, mesh_config
from versions import needs_torch

from trunchier.conventions import ANNOTATED, person
from trunchier.geometry import axis_angle_to_matrix
from trunchier.inference.mesh import MeshInferencer, MeshPredictor, full_camera
from trunchier.models.mesh.estimator import pose_bodies


def test_meshes_equal_those_of_the_test_pipeline(inferencers, image, boxes):
    """One person, cropped, run and put back by hand."""
    infer = inferencers['mesh']
    (result,) = infer(image, bboxes=boxes[1:2])
    center, side = np.array([165.0, 110.0]), 130 * 4 / 3  # 130 x 170 is wider than 3:4
    crop = cv2.warpAffine(
        image,
        np.array([[256 / side, 0, 128 - center[0] * 256 / side],
                  [0, 256 / side, 128 - center[1] * 256 / side]]),
        (256, 256),
    )  # fmt: skip
    mean, std = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
    batch = torch.from_numpy((crop[..., ::-1] - mean) / std).permute(2, 0, 1)[None].float()
    with torch.no_grad():
        network = infer.predictor.network(batch[..., 32:224])
        expected = pose_bodies(network, infer.predictor.body)
    found = result.pred_instances
    # A pixel of the crop may be rounded to the next gray level.
    np.testing.assert_allclose(found.camera, expected['camera'], atol=2e-3)
    np.testing.assert_allclose(found.vertices, expected['vertices'], atol=2e-3)
    np.testing.assert_allclose(
        found.keypoints, expected['crop_keypoints'] * side + torch.from_numpy(center), atol=0.5
    )


@pytest.mark.parametrize(
    'change',
    [
        {},
        dict(size=128, border='replicate'),
        dict(antialias=True, size=64),
        dict(antialias=True, official=True, aspect=None),
    ],
)
def test_crops_equal_those_of_the_test_pipeline(image, boxes, change):
    """Which takes an annotated person."""
    cfg = mesh_config()
    cfg.test_dataloader.dataset.pipeline[0].update(change)
    predictor = MeshPredictor(cfg, network=None)
    pipeline = Compose(cfg.test_dataloader.dataset.pipeline)
    nobody = {name: np.zeros(person()[name].shape, np.float32) for name in ANNOTATED}
    for box in np.float64(boxes):
        crop = predictor.crop(image, box)
        record = dict(
            nobody, image=image, center=(box[:2] + box[2:]) / 2, scale=(box[2:] - box[:2]) / 200,
            key='a', dataset='a', img_path='a', id=0,
        )  # fmt: skip
        packed = pipeline(record)
        width = packed['inputs'].shape[-1]
        seen = packed['inputs'][..., width // 8 : width - width // 8]
        np.testing.assert_array_equal(crop.pixels, seen)
        np.testing.assert_allclose(crop.center, packed['data_samples'].input_center)
        np.testing.assert_allclose(crop.size, packed['data_samples'].input_scale)


def test_deployed_meshes_are_equal(inferencers, undeployed, weights, image, boxes):
    plain = MeshInferencer(mesh_config(), weights['mesh'], device='cpu')
    (found,), (expected,) = (infer(image, bboxes=boxes) for infer in (inferencers['mesh'], plain))
    for name, values in expected.pred_instances.items():
        np.testing.assert_allclose(
            found.pred_instances[name], values, rtol=1e-5, atol=1e-4, err_msg=name
        )


@pytest.mark.parametrize('focal', [(500, 500), (3000, 2000)])
def test_crop_and_image_camera_agree_at_the_depth_of_the_body(focal):
    """There and back: pixels by the crop's (s, tx, ty), pixels by the translation."""
    rng = np.random.default_rng(0)
    camera = np.hstack([rng.uniform(0.5, 1.5, (5, 1)), rng.normal(0, 0.3, (5, 2))])
    boxes = np.hstack([rng.uniform(0, 900, (5, 2)), rng.uniform(50, 500, (5, 1))])
    points = rng.normal(0, 0.5, (5, 2))  # of a body, meters, at its own depth
    center = np.array([310.0, 250.0])
    stretch = np.array([1, focal[0] / focal[1]])  # pixels that are not square

    by_crop = boxes[:, :2] + camera[:, :1] * boxes[:, 2:] / 2 * (points + camera[:, 1:]) / stretch
    t = full_camera(camera, boxes, focal, center)
    by_whole = (points + t[:, :2]) / t[:, 2:] * np.array(focal) + center
    np.testing.assert_allclose(by_whole, by_crop, atol=1e-3)


def test_vertices_lie_over_the_keypoints_with_the_focal_length_of_4d_humans(weights, image, boxes):
    infer = MeshInferencer(mesh_config(), weights['mesh'], device='cpu', focal='4D-Humans')
    (result,) = infer(image, bboxes=boxes)
    np.testing.assert_allclose(result.focal_length, 5000 / 256 * 320)
    found = result.pred_instances
    placed = found.joints + found.translation[:, None]
    pixels = placed[..., :2] / placed[..., 2:] * result.focal_length + result.principal_point
    height = np.ptp(found.keypoints[..., 1], axis=1)[:, None]
    assert (np.abs(pixels - found.keypoints).max(-1) < 0.03 * height).all()  # of perspective


def test_focal_length_and_intrinsics_can_be_given(weights, image, boxes):
    matrix = np.array([[900.0, 0, 150], [0, 900, 130], [0, 0, 1]])
    options = dict(weights=weights['mesh'], device='cpu')
    by_focal = MeshInferencer(mesh_config(), focal=900, **options)
    by_matrix = MeshInferencer(mesh_config(), intrinsics=matrix, **options)
    (a,), (b,) = by_focal(image, bboxes=boxes), by_matrix(image, bboxes=boxes)
    np.testing.assert_array_equal(a.focal_length, [900, 900])
    np.testing.assert_array_equal(a.principal_point, [160, 120])
    np.testing.assert_array_equal(b.principal_point, [150, 130])
    shift = (b.pred_instances.translation - a.pred_instances.translation)[:, :2]
    depth = a.pred_instances.translation[:, 2:]
    np.testing.assert_allclose(shift, [[10, -10]] * depth / 900, atol=1e-4)
    with pytest.raises(ValueError, match='not both focal and intrinsics'):
        MeshInferencer(mesh_config(), focal=900, intrinsics=matrix, **options)
    with pytest.raises(ValueError, match='one or two positive numbers'):
        MeshInferencer(mesh_config(), focal=-1, **options)


def test_cameras_that_nobody_gave_are_realistic():
    """EXIF's focal length, else 60 degrees along the longer side."""
    focal = {
        name: [predictor.metainfo(shape, exif)['focal_length'] for shape, exif in PHOTOS]
        for name, predictor in (
            (name, MeshPredictor(mesh_config(), None, **options))
            for name, options in dict(
                default={}, fov=dict(fov=90), theirs=dict(focal='4D-Humans'), given=dict(focal=9)
            ).items()
        )
    }
    wide = 320 / np.tan(np.pi / 6)
    np.testing.assert_allclose(focal['default'], [[wide] * 2, [wide] * 2, [700] * 2])
    np.testing.assert_allclose(focal['fov'], 320)
    np.testing.assert_allclose(focal['theirs'], 12500)
    np.testing.assert_allclose(focal['given'], 9)


PHOTOS = ((480, 640), None), ((640, 480), None), ((480, 640), 700.0)  # (H, W), by EXIF


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(focal='5D-Humans'), "or '4D-Humans', got '5D-Humans'"),
        (dict(fov=0.1), 'between 1 and 170 degrees'),
        (dict(fov=60, focal=[900]), 'not both focal and fov'),
    ],
)
def test_wrong_cameras_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MeshPredictor(mesh_config(), None, **options)


def test_the_focal_length_of_a_photo_is_that_of_its_exif_data(inferencers, image, tmp_path):
    """28 mm: the picture's diagonal of 400 pixels is that of film, 43.27 mm."""
    exif = PIL.Image.Exif()
    exif.get_ifd(0x8769)[0xA405] = 28
    PIL.Image.fromarray(image).save(tmp_path / 'a.jpg', exif=exif)
    (result,) = inferencers['mesh'](tmp_path / 'a.jpg')
    np.testing.assert_allclose(result.focal_length, 28 / 43.27 * 400, rtol=1e-6)


def test_npz_poses_the_same_body_in_smplx(inferencers, image, tmp_path, boxes):
    infer = inferencers['mesh']
    (result,) = infer(image, bboxes=boxes, out_dir=tmp_path, save=['npz'])
    with np.load(tmp_path / 'predictions/000000.npz') as saved:
        saved = dict(saved)
    shapes = dict(global_orient=(3, 3), body_pose=(3, 69), betas=(3, 10), transl=(3, 3))
    assert {name: saved[name].shape for name in shapes} == shapes
    posed = infer.predictor.body.layer.forward(
        **{n: axis_angle(saved[n]) for n in ('global_orient', 'body_pose')},
        betas=torch.from_numpy(saved['betas']),
        transl=torch.from_numpy(saved['transl']),
        pose2rot=False,
    )
    expected = result.pred_instances.vertices + result.pred_instances.translation[:, None]
    np.testing.assert_allclose(posed.vertices, expected, atol=1e-3)
    np.testing.assert_array_equal(saved['image_size'], [320, 240])


def axis_angle(rotations):
    return axis_angle_to_matrix(torch.from_numpy(rotations).unflatten(1, (-1, 3)))


@pytest.mark.parametrize(
    'precision',
    ['bf16', pytest.param('fp16', marks=needs_torch('2.4', 'autocast to float16 on CPU'))],
)
def test_precision_changes_little(inferencers, weights, image, boxes, precision):
    (expected,) = keypoints(inferencers['mesh'], image, bboxes=boxes)
    infer = MeshInferencer(mesh_config(), weights['mesh'], precision=precision, device='cpu')
    (found,) = keypoints(infer, image, bboxes=boxes)
    assert 0 < np.abs(found - expected).max() < 5
