"""Stored heatmaps: those of the teacher, warped into the training crop; what is refused."""

import json

import cv2
import numpy as np
import pytest
import small_trainings
import store_heatmaps
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, MODELS, TRANSFORMS, init_default_scope

from trunchier.conventions import COCO_17
from trunchier.datasets.heatmaps import (
    HeatmapStore,
    LoadTeacherHeatmaps,
    Origin,
    crop_to_map,
    image_to_crop,
    write_heatmaps,
)
from trunchier.models.teachers import Teacher
from trunchier.synthetic.coco import write_coco
from trunchier.weights.find import find

pytest.importorskip('mmpose.models')
STEADY = ('RandomFlip', 'RandomHalfBody', 'RandomBBoxTransform', 'PhotometricDistortion')


@pytest.fixture
def cfg(tmp_path):
    """A config of a student of stored heatmaps, without augmentation; eight people."""
    small_trainings.draw_people(tmp_path)
    (tmp_path / 'plain.py').write_text(small_trainings.pose(tmp_path))
    cfg = Config.fromfile(tmp_path / 'plain.py')
    torch.manual_seed(1)
    init_default_scope('mmpose')
    teacher = MODELS.build(cfg.model)
    torch.nn.init.normal_(teacher.head.final_layer.weight, std=0.1)
    torch.save(dict(state_dict=teacher.state_dict()), tmp_path / 'teacher.pth')
    weights = str(tmp_path / 'teacher.pth')
    cfg.model = dict(
        type='HeatmapDistiller', student=cfg.model, teacher=cfg.model, teacher_weights=weights
    )
    cfg.model.stored = True
    steps = [s for s in cfg.train_dataloader.dataset.pipeline if s.type not in STEADY]
    load = dict(type='LoadTeacherHeatmaps', folder=str(tmp_path / 'stored'))
    cfg.train_dataloader.dataset.pipeline = [*steps[:-1], load, steps[-1]]
    return cfg


def batch_of(cfg, model):
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    data = pseudo_collate([dataset[index] for index in range(4)])
    return model.data_preprocessor(data, training=True)


def student(cfg, **options):
    model = MODELS.build(dict(cfg.model, **options))
    model.init_weights()
    torch.manual_seed(2)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def test_without_augmentation_the_loss_is_that_of_the_teacher_at_work(cfg, tmp_path):
    store_heatmaps.store(cfg, batch_size=3)
    (path,) = (tmp_path / 'stored').iterdir()
    assert path.stat().st_size < 8 * (17 * 8 * 8 * 2 + 100) + 2000  # float16
    model, online = student(cfg), student(cfg, stored=False)
    data = batch_of(cfg, model)
    found, wanted = (each.loss(**data) for each in (model, online))
    torch.testing.assert_close(found['loss_teacher'], wanted['loss_teacher'], rtol=2e-3, atol=0)
    torch.testing.assert_close(found['loss_kpt'], wanted['loss_kpt'])
    assert model.teacher.loaded is None
    stored = torch.stack([each.gt_fields.teacher_heatmaps for each in data['data_samples']])
    torch.testing.assert_close(stored, online.teacher(data['inputs']), rtol=1e-3, atol=1e-3)


def test_heatmaps_are_stored_once_and_new_people_added(cfg, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(store_heatmaps, 'PEOPLE', 3)
    people = json.loads((tmp_path / 'people.json').read_text())
    fewer = dict(people, annotations=people['annotations'][:4])
    (tmp_path / 'people.json').write_text(json.dumps(fewer))
    store_heatmaps.store(cfg)
    (tmp_path / 'people.json').write_text(json.dumps(people))
    cfg.dump(tmp_path / 'cfg.py')
    store_heatmaps.main([str(tmp_path / 'cfg.py'), '--workers', '0'])
    assert '4 of 8 people to store' in capsys.readouterr().out
    assert sorted(HeatmapStore(tmp_path / 'stored').places) == list(range(8))
    assert len(list((tmp_path / 'stored').iterdir())) == 4


def test_a_teacher_that_has_changed_is_refused(cfg, tmp_path):
    store_heatmaps.store(cfg)
    data = batch_of(cfg, student(cfg))
    names = dict(keypoints=COCO_17, teacher_keypoints=COCO_17)
    with pytest.raises(ValueError, match='names of keypoints have changed; store them anew'):
        student(cfg, **names).loss(**data)
    state = torch.load(tmp_path / 'teacher.pth')
    state['state_dict']['head.final_layer.bias'] += 0.5
    torch.save(state, tmp_path / 'teacher.pth')
    with pytest.raises(ValueError, match='are not those of TopdownPoseEstimator .*store them anew'):
        student(cfg).loss(**data)
    with pytest.raises(ValueError, match='stored has heatmaps of .* name another folder'):
        store_heatmaps.store(cfg)


def test_keypoints_that_the_teacher_lacks_do_not_count(cfg, tmp_path):
    cfg.model.keypoints = (*COCO_17[:16], 'tail')
    cfg.model.teacher_keypoints = COCO_17
    store_heatmaps.store(cfg)
    model = student(cfg)
    data = batch_of(cfg, model)
    maps = data['data_samples'][0].gt_fields.teacher_heatmaps
    assert maps[16].isnan().all() and not maps[:16].isnan().any()
    error = model.head(model.extract_feat(data['inputs']))[:, :16] - torch.stack(
        [each.gt_fields.teacher_heatmaps[:16] for each in data['data_samples']]
    )
    torch.testing.assert_close(model.loss(**data)['loss_teacher'], error.square().mean() * 16 / 17)


def test_what_cannot_be_used_is_refused_with_the_remedy(cfg, tmp_path):
    with pytest.raises(FileNotFoundError, match='store_heatmaps.py CONFIG writes them'):
        DATASETS.build(cfg.train_dataloader.dataset)[0]
    with pytest.raises(ValueError, match='stores no heatmaps: give its model stored=True'):
        store_heatmaps.store(Config(dict(cfg.to_dict(), model=cfg.model.student)))
    store_heatmaps.store(cfg)
    stored = HeatmapStore(tmp_path / 'stored')
    with pytest.raises(KeyError, match='no heatmaps of annotation 9 .*which has 8'):
        stored[9]
    people = json.loads((tmp_path / 'people.json').read_text())
    people['annotations'][0]['bbox'] = [4, 4, 40, 50]
    (tmp_path / 'people.json').write_text(json.dumps(people))
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    with pytest.raises(ValueError, match=r'annotation 0 has the box \[4.0, 4.0, 44.0, 54.0\]'):
        dataset[0]
    steps = cfg.train_dataloader.dataset.pipeline
    for step in steps:
        step.pop('encoder', None) or step.pop('folder', None)
    model = student(cfg)
    data = batch_of(
        Config(dict(train_dataloader=dict(dataset=dict(
            cfg.train_dataloader.dataset, pipeline=[*steps[:3], steps[-1]]
        )))), model,
    )  # fmt: skip
    model.label_weight = 0
    with pytest.raises(ValueError, match='a sample has no teacher_heatmaps: put LoadTeacher'):
        model.loss(**data)
    (path,) = (tmp_path / 'stored').iterdir()
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match='cut off or not a safetensors file'):
        HeatmapStore(tmp_path / 'stored')


AUGMENTED = [
    dict(type='GetBBoxCenterScale'),
    dict(type='RandomFlip', prob=1.0, direction='horizontal'),
    dict(type='RandomBBoxTransform', shift_prob=1.0, scale_prob=1.0, rotate_prob=1.0,
         scale_factor=(0.8, 1.2), rotate_factor=40.0),
]  # fmt: skip


def crop(results, steps, size, udp):
    init_default_scope('mmpose')
    for step in [*steps, dict(type='TopdownAffine', input_size=size, use_udp=udp)]:
        results = TRANSFORMS.build(step)(dict(results))
    return results


@pytest.mark.parametrize('udp', [True, False])
def test_a_dot_moves_as_mmpose_moves_its_keypoint(udp, tmp_path):
    """Stored for crops of 288 x 384, read for crops of 192 x 256; flipped, rotated, scaled."""
    rng = np.random.default_rng(0)
    points = rng.uniform((155, 160), (205, 250), (1, 17, 2))
    image = np.zeros((400, 360, 3), np.uint8)
    given = dict(img=image, img_shape=image.shape[:2], keypoints=points, id=7)
    given |= dict(bbox=np.float32([[100, 80, 260, 330]]), keypoints_visible=np.ones((1, 17)))
    given['flip_indices'] = [0, *(i + 1 - 2 * (i % 2 == 0) for i in range(1, 17))]
    still = crop(given, AUGMENTED[:1], (288, 384), udp)
    to_map = crop_to_map((288, 384), (72, 96), udp)
    y, x = np.mgrid[:96, :72]
    centers = cv2.transform(still['transformed_keypoints'], to_map[:2])[0]
    dots = np.stack([np.exp(-((x - a) ** 2 + (y - b) ** 2) / 18) for a, b in centers])
    about = Origin(digest=1, teacher='dots', heatmap_size=(72, 96), aligned=udp, udp=udp)
    warp = (to_map @ image_to_crop(still, udp))[:2]
    person = dict(id=7, box=given['bbox'][0], size=(360, 400), warp=warp, heatmaps=dots)
    write_heatmaps(tmp_path, about, [person])

    load = LoadTeacherHeatmaps(tmp_path, heatmap_size=(48, 64))
    for seed in range(4):
        np.random.seed(seed)
        moved = crop(given, AUGMENTED, (192, 256), udp)
        maps = np.nan_to_num(load(moved)['teacher_heatmaps'])
        wanted = cv2.transform(
            moved['transformed_keypoints'], crop_to_map((192, 256), (48, 64), udp)[:2]
        )
        y, x = np.mgrid[:64, :48]
        found = np.stack([(maps * x).sum((1, 2)), (maps * y).sum((1, 2))], -1)
        found /= maps.sum((1, 2))[:, None]
        assert np.abs(found - wanted[0]).max() < 0.02


@pytest.mark.slow
def test_in_flipped_and_rotated_crops_the_peaks_are_where_the_teacher_finds_them(tmp_path):
    """The weights that ship look at the crops themselves: sure peaks within 3 of 64 pixels."""
    write_coco(tmp_path / 'people', 2, size=256)
    found = find('VMPose-T-S2')
    cfg = found.cfg
    (width, height), heatmap_size = cfg.codec.input_size, cfg.codec.heatmap_size
    load = dict(type='LoadTeacherHeatmaps', folder=str(tmp_path / 'stored'))
    affine = dict(type='TopdownAffine', input_size=(width, height), use_udp=True)
    dataset = dict(type='CocoDataset', data_mode='topdown', data_root=str(tmp_path / 'people'))
    dataset |= dict(ann_file='annotations.json', data_prefix=dict(img='images/'))
    dataset['pipeline'] = [
        dict(type='LoadImage'), *AUGMENTED, affine, load, dict(type='PackPoseInputs')
    ]  # fmt: skip
    model = dict(type='HeatmapDistiller', student=cfg.model, teacher='VMPose-T-S2', stored=True)
    store_heatmaps.store(Config(dict(model=model, train_dataloader=dict(dataset=dataset))))
    np.random.seed(0)
    people = pseudo_collate(list(DATASETS.build(dataset)))
    teacher = Teacher('VMPose-T-S2', None)
    data = teacher.model.data_preprocessor(people)
    online = teacher(data['inputs']).numpy()
    stored = np.stack([each.gt_fields.teacher_heatmaps for each in data['data_samples']])
    assert stored.shape[2:] == heatmap_size[::-1]
    sure = (online.max((2, 3)) > 0.5) & (np.nan_to_num(stored).max((2, 3)) > 0.5)
    places = [np.nan_to_num(each).reshape(2, 17, -1).argmax(-1) for each in (online, stored)]
    peaks = [np.stack(np.unravel_index(each, stored.shape[2:]), -1) for each in places]
    distance = np.linalg.norm(peaks[0] - peaks[1], axis=-1)[sure]
    assert len(distance) > 15 and distance.max() <= 3 and distance.mean() < 1


def test_a_new_shard_does_not_take_the_place_of_one_that_is_there(tmp_path):
    about = Origin(digest=1, teacher='dots', heatmap_size=(3, 4), aligned=True, udp=True)
    person = dict(box=np.zeros(4), size=(9, 9), warp=np.eye(3)[:2], heatmaps=np.zeros((17, 4, 3)))
    paths = [write_heatmaps(tmp_path, about, [dict(person, id=number)]) for number in range(3)]
    paths[1].unlink()
    assert write_heatmaps(tmp_path, about, [dict(person, id=3)]) == paths[1]
    assert HeatmapStore(tmp_path).places.keys() == {0, 2, 3}
