"""Distillers: the losses, what is saved, what is frozen, and which teachers are refused."""

import copy

import numpy as np
import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, TRANSFORMS, init_default_scope
from mmengine.structures import InstanceData, PixelData
from small_models import config, estimator, mesh_config, pose_config

from trunchier.conventions import COCO_17, HEAD_FIELDS, TARGETS, person
from trunchier.models.teachers import build_teacher, match_keypoints, read_token
from trunchier.models.tokens import TokenJoin, project, width_of
from trunchier.weights.find import find

pytest.importorskip('mmpose.models')
from mmpose.structures import PoseDataSample  # noqa: E402

SIZE = (64, 64)  # of the crops; (width, height)
CODEC = dict(type='UDPHeatmap', input_size=SIZE, heatmap_size=(16, 16), sigma=1)


@pytest.fixture(autouse=True)
def scope():
    init_default_scope('mmpose')


def pose(family='swin'):
    model = config('pose', family).model
    model.head.decoder = CODEC
    return model


def save(model, path):
    torch.save(dict(state_dict=model.state_dict()), path)
    return str(path)


@pytest.fixture
def weights(tmp_path):
    """A checkpoint of a pose model: its head gives heatmaps that differ from crop to crop."""
    return save(estimator_of(pose()), tmp_path / 'teacher.pth')


def estimator_of(cfg):
    torch.manual_seed(1)
    model = MODELS.build(cfg)
    if hasattr(model.head, 'final_layer'):
        torch.nn.init.normal_(model.head.final_layer.weight, std=0.1)
    return model


def distiller(weights, **options):
    cfg = dict(type='HeatmapDistiller', student=pose(), teacher=pose(), teacher_weights=weights)
    model = MODELS.build(cfg | options)
    torch.nn.init.normal_(model.head.final_layer.weight, std=0.1)
    return model.eval()


def images(count=2):
    return torch.randn(count, 3, *SIZE[::-1])


def samples(count=2, labels=1.0, teacher=None):
    """Labelled people: one dot in each heatmap."""
    people = []
    for _ in range(count):
        person = PoseDataSample()
        heatmaps = torch.zeros(17, 16, 16)
        heatmaps[:, 8, 8] = 1
        person.gt_fields = PixelData(heatmaps=heatmaps)
        person.gt_instance_labels = InstanceData(keypoint_weights=torch.full((1, 17), labels))
        if teacher is not None:
            person.gt_instance_labels.teacher_weight = torch.tensor([teacher])
        people.append(person)
    return people


def heatmaps(model, given):
    with torch.no_grad():
        return model.head(model.extract_feat(given))


def test_the_loss_is_the_mean_squared_error_to_the_teachers_heatmaps(weights):
    model, given = distiller(weights, teacher_weight=3.0), images()
    error = (heatmaps(model, given) - heatmaps(build_teacher(pose(), weights)[0], given)).square()
    losses = model.loss(given, samples())
    torch.testing.assert_close(losses['loss_teacher'], 3 * error.mean())
    plain = MODELS.build(pose()).eval()
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(losses['loss_kpt'], plain.loss(given, samples())['loss_kpt'])


def test_without_labels_only_the_teacher_is_learned(weights):
    model, given = distiller(weights, label_weight=0), images()
    losses = model.loss(given, [PoseDataSample(), PoseDataSample()])
    assert list(losses) == ['loss_teacher']
    losses['loss_teacher'].backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_samples_are_weighed_one_by_one(weights):
    model, given = distiller(weights), images()
    error = (heatmaps(model, given) - heatmaps(build_teacher(pose(), weights)[0], given)).square()
    people = [*samples(1, teacher=0.0), *samples(1, labels=0.0, teacher=0.5)]
    losses = model.loss(given, people)
    torch.testing.assert_close(losses['loss_teacher'], error[1].mean() * 0.5 / 2)
    alone = model.loss(given[:1], people[:1])['loss_kpt']
    torch.testing.assert_close(losses['loss_kpt'], alone / 2)


def test_a_checkpoint_is_the_students_and_its_optimizer_too(weights):
    model, plain = distiller(weights), MODELS.build(pose())
    model.loss(images(), samples())
    assert model.state_dict().keys() == plain.state_dict().keys()
    plain.load_state_dict(model.state_dict())
    wrapper = dict(
        optimizer=dict(type='AdamW', lr=1e-3),
        constructor='DepthDecayOptimWrapperConstructor',
        paramwise_cfg=dict(layer_decay_rate=0.5),
    )
    groups = [
        [(group['lr'], group['param_names']) for group in each.optimizer.param_groups]
        for each in (
            build_optim_wrapper(copy.deepcopy(m), copy.deepcopy(wrapper)) for m in (model, plain)
        )
    ]
    assert groups[0] == groups[1] and len({lr for lr, _ in groups[0]}) > 2


def test_the_teacher_is_frozen_and_shared_by_an_averaged_copy(weights):
    model = distiller(weights).train()
    model.loss(images(), samples())['loss_teacher'].backward()
    teacher = model.teacher.model
    assert not any(module.training for module in teacher.modules())
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert copy.deepcopy(model).teacher is model.teacher


def test_a_teacher_in_bfloat16_gives_nearly_the_same_targets(weights):
    given = images()
    exact, half = (
        distiller(weights, precision=precision).teacher(given)
        for precision in ('float32', 'bfloat16')
    )
    assert half.dtype == torch.bfloat16
    assert (exact - half).abs().max() < 0.05 * exact.abs().max()


def test_keypoints_are_matched_by_name(tmp_path):
    shuffled = [*COCO_17[::-1], 'tail']
    cfg = pose()
    cfg.head.out_channels = 18
    path = save(estimator_of(cfg), tmp_path / 'other.pth')
    options = dict(teacher=cfg, keypoints=COCO_17, teacher_keypoints=shuffled)
    model, given = distiller(path, **options), images()
    target = heatmaps(build_teacher(cfg, path)[0], given)[:, :17].flip(1)
    error = (heatmaps(model, given) - target).square().mean()
    torch.testing.assert_close(model.loss(given, samples())['loss_teacher'], error)


def test_a_metainfo_file_names_keypoints():
    assert match_keypoints(('nose', 'wing'), ('head', 'nose'), 2, 2) == ([0], [1])
    from trunchier.models.teachers import keypoint_names

    assert keypoint_names('configs/_base_/datasets/coco.py') == COCO_17


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(teacher_weights=None), 'has no weights: give teacher_weights'),
        (dict(precision='int4'), "precision of the teacher is 'int4'"),
        (dict(keypoints=COCO_17, teacher_keypoints=['a'] * 17), 'no keypoint of the student'),
        (dict(keypoints=COCO_17), 'the student has 17 keypoints, the teacher 17: name both'),
        (dict(keypoints=['nose'], teacher_keypoints=COCO_17), '17 heatmaps, but 1 names'),
    ],
)
def test_unsuitable_teachers_are_refused_before_training(weights, options, message):
    with pytest.raises(ValueError, match=message):
        distiller(weights, **options).init_weights()


def test_a_teacher_of_other_heatmaps_images_or_colors_is_refused(weights):
    coarse = pose()
    coarse.head.decoder = dict(CODEC, heatmap_size=(8, 8))
    with pytest.raises(ValueError, match='student are 16 x 16 .*teacher 8 x 8'):
        distiller(weights, teacher=coarse).init_weights()
    large = pose()
    large.head.decoder = dict(CODEC, input_size=(128, 128))
    with pytest.raises(ValueError, match='teacher takes crops of 128 x 128'):
        distiller(weights, teacher=large).loss(images(), samples())
    gray = pose()
    gray.data_preprocessor.mean = [128.0] * 3
    with pytest.raises(ValueError, match='mean of the data_preprocessor: student'):
        distiller(weights, teacher=gray).init_weights()
    with pytest.raises(FileNotFoundError, match='absent.pth'):
        distiller('absent.pth').init_weights()


def test_a_student_without_heatmaps_is_refused(weights):
    with pytest.raises(TypeError, match='HMR2Head has no final_layer'):
        MODELS.build(dict(type='HeatmapDistiller', student=mesh_config().model, teacher=pose()))


def test_the_config_of_a_distiller_names_its_student(tmp_path):
    cfg = pose_config()
    student = copy.deepcopy(cfg.model)
    cfg.model = dict(type='HeatmapDistiller', student=cfg.model, teacher='VMPose-T-S4')
    assert find(cfg).cfg.model == student
    cfg.dump(tmp_path / 'distill.py')
    assert find(str(tmp_path / 'distill.py')).task == 'pose'


# --- tokens ---------------------------------------------------------------------------------------
@pytest.fixture
def token(tmp_path, weights):
    model = MODELS.build(dict(type='TeacherToken', teacher=pose(), teacher_weights=weights))
    return save(model, tmp_path / 'token.pth')


@pytest.mark.parametrize('join', ['row', 'add'])
def test_in_the_first_stage_only_the_token_changes(weights, join):
    options = dict(teacher=pose(), teacher_weights=weights, join=join)
    model = MODELS.build(dict(type='TeacherToken', **options))
    model.init_weights()
    model.train()
    before = {key: value.clone() for key, value in model.named_parameters()}
    buffers = {key: value.clone() for key, value in model.named_buffers()}
    cfg = dict(
        optimizer=dict(type='AdamW', lr=0.1, weight_decay=0.1),
        constructor='DepthDecayOptimWrapperConstructor',
    )
    wrapper = build_optim_wrapper(model, cfg)
    for _ in range(2):
        wrapper.update_params(
            sum(value for key, value in model.loss(images(), samples()).items() if 'loss' in key)
        )
    changed = [key for key, value in model.named_parameters() if not value.equal(before[key])]
    assert changed == ['token']
    assert all(value.equal(buffers[key]) for key, value in model.named_buffers())
    assert list(model.state_dict()) == ['token']


def test_a_token_resumes(token, weights):
    model = MODELS.build(dict(type='TeacherToken', teacher=pose(), teacher_weights=weights))
    loaded = torch.load(token)['state_dict']
    model.token.data.zero_()
    assert model.load_state_dict(loaded, strict=True).missing_keys == []
    assert model.token.equal(loaded['token'])
    with pytest.raises(RuntimeError, match='Missing key.*token'):
        model.load_state_dict({}, strict=True)


@pytest.mark.parametrize('family', ['swin', 'gmf', 'vmamba'])
@pytest.mark.parametrize('join', ['row', 'add'])
def test_a_token_changes_the_map_of_every_family_but_not_its_size(family, join):
    backbone = estimator('pose', family).backbone
    given = images(1)
    before = backbone(given)[-1]
    joined = TokenJoin(backbone, 1, join)
    assert backbone(given)[-1].equal(before)
    joined.token = torch.randn(width_of(backbone, 1))
    after = backbone(given)[-1]
    assert after.shape == before.shape and not torch.allclose(after, before, atol=1e-3)


def test_a_token_is_appended_to_the_sequence_of_a_vit():
    pytest.importorskip('mmpretrain')
    arch = dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64)
    options = dict(arch=arch, img_size=64, patch_size=16, with_cls_token=False)
    vit = MODELS.build(dict(type='mmpretrain.VisionTransformer', out_type='featmap', **options))
    vit.eval()
    joined, given, seen = TokenJoin(vit, 0, 'row'), images(1), []
    vit.layers[1].register_forward_pre_hook(lambda block, args: seen.append(args[0].shape))
    before = vit(given)[-1]
    joined.token = torch.randn(32)
    after = vit(given)[-1]
    assert seen == [(1, 16, 32), (1, 17, 32)]
    assert after.shape == before.shape and not torch.allclose(after, before, atol=1e-4)


@pytest.mark.parametrize(
    ('attention', 'join'), [('full', 'row'), ('full', 'add'), ('shift', 'add')]
)
def test_a_token_joins_a_plain_vit_that_learns_from_it(token, attention, join):
    arch = dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64)
    student = pose()
    student['backbone'] = dict(
        type='PlainViT', arch=arch, img_size=64, attention=attention, window_size=(2, 2)
    )
    student['neck'] = None
    student['head'].update(in_channels=32, deconv_out_channels=(16, 16), deconv_kernel_sizes=(4, 4))
    options = dict(token=token, stage=0, join=join, projection='orthogonal', rate=1.0)
    model = MODELS.build(dict(type='TokenDistiller', student=student, **options)).train()
    given = images(1)
    model.loss(given, samples(1))['loss_kpt'].backward()
    seen = model.backbone(given)[-1]
    model.eval()
    assert seen.shape == model.backbone(given)[-1].shape == (1, 32, 4, 4)
    model.joined.token = model.token * 100
    assert not torch.allclose(model.backbone(given)[-1], seen, atol=1e-4)
    assert model.state_dict().keys() == MODELS.build(student).state_dict().keys()


def test_a_row_on_windows_of_a_vit_is_refused():
    vit = MODELS.build(dict(type='PlainViT', arch='small', img_size=64, attention='window'))
    with pytest.raises(ValueError, match="give join='add'"):
        TokenJoin(vit, 0, 'row')


def test_in_the_second_stage_the_token_is_frozen_and_absent_from_predictions(weights, token):
    cfg = dict(type='TokenDistiller', student=pose(), token=token, join='add', rate=1.0)
    model, given = MODELS.build(cfg), images()
    model.init_weights()
    assert model.token.equal(read_token(token))
    model.token *= 100  # as far from 0 as a trained one
    torch.nn.init.normal_(model.head.final_layer.weight, std=0.1)
    plain = MODELS.build(pose()).eval()
    model.backbone.apply(lambda module: setattr(module, 'drop_path_rate', 0.0))
    model.train()
    losses = model.loss(given, samples())
    assert 'loss_teacher' not in losses
    with_token = losses['loss_kpt']
    model.rate = 0.0
    assert not model.loss(given, samples())['loss_kpt'].isclose(with_token, rtol=1e-4)
    with_token.backward()
    assert model.token.grad is None and not model.token.requires_grad
    assert model.state_dict().keys() == plain.state_dict().keys()
    model.rate = 1.0
    model.loss(given, samples())
    model.eval()
    plain.load_state_dict(model.state_dict())
    assert heatmaps(model, given).equal(heatmaps(plain, given))


def test_token_and_heatmaps_are_learned_together(weights, token):
    options = dict(type='TokenDistiller', token=token, rate=1.0)
    losses = distiller(weights, **options).loss(images(), samples())
    assert set(losses) == {'loss_kpt', 'acc_pose', 'loss_teacher'}


def test_a_projection_keeps_the_mean_square_and_is_asked_for():
    token = torch.randn(400)
    for width in (60, 400, 700):
        projected = project(token, width, 'orthogonal')
        assert projected.square().mean().sqrt() == pytest.approx(1, abs=0.2)
        assert projected.equal(project(token, width, 'orthogonal'))
    with pytest.raises(ValueError, match="400 channels, the student's stage 60"):
        project(token, 60, None)


def test_files_without_a_token_are_refused(weights):
    with pytest.raises(ValueError, match='holds no token'):
        read_token(weights)
    with pytest.raises(FileNotFoundError, match='train one with a TeacherToken'):
        read_token('absent.pth')


# --- bodies ---------------------------------------------------------------------------------------
def bodies(tmp_path, **options):
    cfg = mesh_config().model
    cfg.init_cfg = None
    teacher = estimator_of(copy.deepcopy(cfg))
    torch.nn.init.normal_(teacher.head.pose_out.weight, std=0.02)
    path = save(teacher, tmp_path / 'mesh.pth')
    model = dict(type='BodyDistiller', student=cfg, teacher=copy.deepcopy(cfg))
    return MODELS.build(dict(model, teacher_weights=path, **options)).eval(), teacher.eval()


def unlabelled(count=2):
    people = []
    for _ in range(count):
        sample = PoseDataSample()
        zeros = {name: np.zeros((1, *person()[name].shape), np.float32) for name in TARGETS}
        sample.gt_instances = InstanceData(**zeros)
        people.append(sample)
    return people


def test_a_student_equal_to_its_teacher_has_no_loss(tmp_path):
    model, teacher = bodies(tmp_path)
    model.load_state_dict(teacher.state_dict())
    losses, _ = model.loss(images(), unlabelled())
    assert {name: float(value) for name, value in losses.items() if value > 1e-5} == {}
    assert 'loss_teacher_camera' in losses and 'loss_keypoints_2d' in losses


def test_the_losses_of_a_body_are_those_of_annotations(tmp_path):
    model, teacher = bodies(tmp_path, agreement=None, teacher_weight=2.0)
    given = images()
    losses, pred = model.loss(given, unlabelled())
    target = teacher.regress(given)
    error = (pred['body_pose'] - target['body_pose']).square().sum()
    torch.testing.assert_close(losses['loss_teacher_body_pose'], 2 * 0.001 * error)
    points = (pred['crop_keypoints'] - target['crop_keypoints']).abs().sum()
    torch.testing.assert_close(losses['loss_teacher_keypoints_2d'], 2 * 0.01 * points)
    losses['loss_teacher_body_pose'].backward()
    assert model.backbone.stem.parameters().__next__().grad is not None


def test_a_teacher_that_contradicts_its_mirror_image_counts_less(tmp_path):
    model, _ = bodies(tmp_path)
    given = images(1)
    alike = torch.cat((given, given.flip(-1)))
    target, weights = model.teach(alike)
    assert target['joints'].shape == (2, 44, 3) and set(HEAD_FIELDS) <= set(target)
    assert ((weights > 0) & (weights < 1)).all()
    torch.testing.assert_close(weights[0], weights[1])  # each is the mirror image of the other
    model.agreement = 100.0
    assert model.teach(alike)[1].min() > weights.max()


def test_a_pose_model_teaches_no_bodies(tmp_path, weights):
    model, _ = bodies(tmp_path)
    model.teacher.loaded = None
    model.teacher.source, model.teacher.weights = pose(), weights
    with pytest.raises(ValueError, match='predicts no bodies'):
        model.init_weights()
    with pytest.raises(ValueError, match=r"\['toes'\]; expected some of"):
        bodies(tmp_path, weights=dict(toes=1.0))


# --- weights of samples ---------------------------------------------------------------------------
def test_labels_of_a_person_are_weighed():
    weigh = TRANSFORMS.build(dict(type='WeighPerson', labels=0.0, teacher=0.5))
    record = weigh(dict(keypoint_weights=np.ones((1, 17), np.float32)))
    assert not record['keypoint_weights'].any() and record['teacher_weight'] == 0.5
    assert set(record['label_mapping_table']) == {'keypoint_weights', 'teacher_weight'}
    points = np.ones((44, 4), np.float32)
    given = dict(has_pose=1.0, has_betas=1.0, keypoints_3d=points)
    record = weigh(given)
    assert record['has_pose'] == record['has_betas'] == 0
    assert record['keypoints_3d'][:, :3].all() and not record['keypoints_3d'][:, 3].any()
    assert points.all()
    with pytest.raises(KeyError, match='after GenerateTarget'):
        weigh({})
    with pytest.raises(ValueError, match='at least 0'):
        TRANSFORMS.build(dict(type='WeighPerson', labels=-1))
