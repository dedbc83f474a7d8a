"""The mesh model: predictions, training of generator and discriminator, errors."""

import copy
import subprocess
import sys

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmengine.runner import Runner
from people import write_shards
from small_models import ROOT, mesh_config

from trunchier.conventions import HEAD_FIELDS, POSED_FIELDS, person
from trunchier.datasets import MixedPeople
from trunchier.weights.load import read_weights

pytest.importorskip('mmpose')


def config(folder, adversarial=True):
    """A tiny mesh model with the whole recipe, on shards of noise."""
    cfg = mesh_config()
    cfg.model.init_cfg = None
    cfg.model.backbone.drop_path_rate = 0.0
    cfg.model.discriminator = dict(type='HMRDiscriminator') if adversarial else None
    cfg.model.loss = dict(reduction='mean')
    pipeline = [
        dict(type='AugmentPerson'),
        dict(type='CropPerson', size=64),
        dict(type='AddRealPoses'),
        dict(type='PackPerson'),
    ]
    dataset = dict(type='ShardPeople', name='noise', urls=str(folder / 'shards'))
    cfg.train_dataloader = dict(
        batch_size=4,
        num_workers=0,
        sampler=dict(type='MixSampler', seed=3),
        dataset=dict(type='MixedPeople', datasets=[dataset], pipeline=pipeline),
    )
    cfg.optim_wrapper.optimizer = dict(type='SGD', lr=0.01)
    cfg.val_dataloader = cfg.val_evaluator = cfg.val_cfg = None
    cfg.test_dataloader = cfg.test_evaluator = cfg.test_cfg = None
    cfg.work_dir = str(folder / 'work')
    cfg.train_cfg = dict(type='StreamTrainLoop', max_iters=4, val_interval=100)
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', by_epoch=False, interval=2)
    cfg.log_level = 'WARNING'
    cfg.randomness = dict(seed=0)
    cfg.env_cfg.dist_cfg.backend = 'gloo'
    return cfg


@pytest.fixture
def shards(tmp_path):
    write_shards(tmp_path / 'shards')
    return tmp_path


def build(cfg):
    init_default_scope('mmpose')
    torch.manual_seed(0)
    return MODELS.build(copy.deepcopy(cfg.model))


def batch(cfg, size=4):
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    dataset.full_init()
    return pseudo_collate([dataset[0, i] for i in range(size)])


def optimizers(model, cfg):
    return build_optim_wrapper(model, copy.deepcopy(cfg.optim_wrapper))


# --- predictions -----------------------------------------------------------------------------


@pytest.fixture
def model(shards):
    return build(config(shards)).eval()


def test_tensor_mode_returns_bodies_and_cameras(model):
    out = model(torch.randn(2, 3, 64, 64))
    assert set(out) == {*HEAD_FIELDS, *POSED_FIELDS}
    for name, value in out.items():
        assert value.shape == (2, *person()[name].shape), name


def test_only_the_middle_columns_of_a_square_crop_are_seen(model):
    crop = torch.randn(1, 3, 64, 64)
    seen, outside = model(crop), crop.clone()
    outside[..., :8] += 1
    outside[..., 56:] += 1
    narrow = model(crop[..., 8:56].contiguous())
    for other in (model(outside), narrow):
        assert torch.equal(other['betas'], seen['betas'])


def test_another_shape_is_refused(model):
    with pytest.raises(ValueError, match=r'square crops or 4:3 .*\(1, 3, 64, 40\)'):
        model(torch.randn(1, 3, 64, 40))


def test_another_mode_is_refused(model):
    with pytest.raises(ValueError, match="'tensor', 'predict' or 'loss', got 'train'"):
        model(torch.randn(1, 3, 64, 64), mode='train')


def test_predicted_keypoints_are_joints_projected_by_the_crop_camera(shards):
    cfg = config(shards)
    model = build(cfg).eval()
    data = model.data_preprocessor(batch(cfg, 2), False)
    samples = model(**data, mode='predict')
    for sample in samples:
        pred = sample.pred_instances
        points = pred.joints[0] + pred.camera_translation[0]
        crop = 5000 * points[:, :2] / points[:, 2:] / 256  # fractions of the crop's side
        wanted = crop * np.float32(sample.input_scale) + np.float32(sample.input_center)
        assert np.allclose(pred.keypoints[0], wanted, atol=1e-3)
        assert pred.keypoint_scores.shape == (1, 44)
        assert 'vertices' not in pred  # the config's test_cfg


# --- training -------------------------------------------------------------------------------


def test_a_step_updates_generator_and_discriminator(shards):
    cfg = config(shards)
    model = build(cfg)
    before = {name: value.clone() for name, value in model.named_parameters()}
    log = model.train_step(batch(cfg), optimizers(model, cfg))
    moved = {n.split('.')[0] for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {'backbone', 'neck', 'head', 'discriminator'}
    assert {'loss', 'loss_adversarial', 'loss_discriminator', 'loss_keypoints_2d'} <= set(log)


def test_the_generator_loss_gives_no_gradient_to_the_discriminator(shards):
    cfg = config(shards)
    model = build(cfg)
    data = model.data_preprocessor(batch(cfg), True)
    losses, _ = model.loss(**data)
    losses['loss_adversarial'].backward()
    assert all(p.grad is None for p in model.discriminator.parameters())
    assert model.head.pose_out.weight.grad.abs().sum() > 0


def test_the_discriminator_learns(shards):
    cfg = config(shards)
    model = build(cfg)
    wrapper = optimizers(model, cfg)
    wrapper['generator'].optimizer.param_groups[0]['lr'] = 0.0
    wrapper['discriminator'].optimizer.param_groups[0]['lr'] = 0.1
    model.adversarial_weight = 0.05
    data = batch(cfg)
    steps = [model.train_step(copy.deepcopy(data), wrapper) for _ in range(60)]
    assert steps[-1]['loss_discriminator'] < 0.7 * steps[0]['loss_discriminator']


def test_without_a_discriminator_one_optimizer_trains(shards):
    cfg = config(shards, adversarial=False)
    model = build(cfg)
    log = model.train_step(batch(cfg), optimizers(model, cfg))
    assert 'loss_discriminator' not in log


def test_a_guide_of_attention_adds_a_loss_and_nothing_else(shards):
    cfg = config(shards, adversarial=False)
    data, found = batch(cfg), []
    for guide in (None, dict(weight=0.0), dict(weight=2.0)):
        cfg.model.attention_guide = guide
        model = build(cfg)
        losses, pred = model.loss(**model.data_preprocessor(data, True))
        found.append(losses)
        assert 'attention' not in pred
    plain, zero, guided = found
    assert {*guided} - {*plain} == {'loss_attention'} and zero['loss_attention'] == 0
    assert guided['loss_attention'] > 1
    for name, value in plain.items():
        torch.testing.assert_close(guided[name], value)


def test_the_logarithms_of_attention_are_those_that_pool(model):
    """One layer: the maps of each head, with the probabilities given."""
    features = torch.randn(2, model.head.in_channels, 4, 3)
    layer = model.head.layers[0]
    found = model.head(features, with_attention=True)['attention']
    assert found.shape == (2, layer.num_heads, 4, 3)
    torch.testing.assert_close(found.flatten(2).exp().sum(-1), torch.ones(2, layer.num_heads))
    query = layer.norm_cross(model.head.token + layer.self_out(
        layer.norm_self(model.head.token) @ layer.to_qkv.weight.chunk(3)[2].T
    ))  # fmt: skip
    query = layer.to_q(query).unflatten(1, (layer.num_heads, -1))
    keys = layer.to_kv(features.flatten(2).transpose(1, 2)).chunk(2, -1)[0]
    keys = keys.unflatten(2, (layer.num_heads, -1))
    scores = torch.einsum('ohd,bnhd->bhn', query, keys) * query.shape[-1] ** -0.5
    torch.testing.assert_close(found.flatten(2), scores.log_softmax(-1))


def test_bfloat16_trains_and_the_body_stays_exact(shards):
    cfg = config(shards)
    cfg.optim_wrapper.type = 'AutocastOptimWrapper'
    model = build(cfg)
    plain = model.train_step(batch(cfg), optimizers(build(cfg), config(shards)))
    mixed = build(cfg).train_step(batch(cfg), optimizers(model, cfg))
    for name, value in plain.items():
        assert value.dtype == torch.float32
        assert torch.allclose(mixed[name], value, rtol=0.1), name


def test_gradients_accumulate_over_iterations(shards):
    cfg = config(shards)
    cfg.optim_wrapper.accumulative_counts = 2
    model = build(cfg)
    wrapper = optimizers(model, cfg)
    wrapper.initialize_count_status(model, 0, 4)
    start = model.head.betas_out.weight.clone()
    model.train_step(batch(cfg), wrapper)
    assert torch.equal(model.head.betas_out.weight, start)
    model.train_step(batch(cfg), wrapper)
    assert not torch.equal(model.head.betas_out.weight, start)


# --- errors -------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_names_its_sample(shards):
    cfg = config(shards)
    model = build(cfg)
    data = batch(cfg)
    bad = data['data_samples'][2]
    bad.gt_instances.crop_keypoints_2d[:] = np.nan
    with pytest.raises(FloatingPointError, match=f"'noise:{bad.key}'") as error:
        model.train_step(data, optimizers(model, cfg))
    assert str(error.value).count('noise:') == 1


def test_missing_real_poses_are_named(shards):
    cfg = config(shards)
    cfg.train_dataloader.dataset.pipeline.pop(2)
    model = build(cfg)
    with pytest.raises(ValueError, match=r'AddRealPoses\(\) before'):
        model.train_step(batch(cfg), optimizers(model, cfg))


def test_the_optimizers_must_match_the_model(shards):
    cfg = config(shards)
    model = build(cfg)
    single = build_optim_wrapper(model, dict(optimizer=dict(type='SGD', lr=0.1)))
    with pytest.raises(TypeError, match='TwoOptimWrapperConstructor'):
        model.train_step(batch(cfg), single)


# --- loops ---------------------------------------------------------------------------------------


def weights(checkpoint):
    return read_weights(checkpoint)['state_dict']


def test_a_resumed_run_ends_like_an_uninterrupted_one(shards, monkeypatch):
    cfg = config(shards)
    cfg.model.backbone.drop_path_rate = 0.3  # draws random numbers
    cfg.optim_wrapper.optimizer = dict(type='AdamW', lr=1e-3)
    cfg.work_dir = str(shards / 'whole')
    Runner.from_cfg(cfg).train()

    cfg.work_dir = str(shards / 'broken')
    cfg.train_cfg.max_iters = 2
    Runner.from_cfg(cfg).train()
    cfg.train_cfg.max_iters = 4
    cfg.resume = True
    runner = Runner.from_cfg(cfg)
    seen = []
    monkeypatch.setattr(MixedPeople, 'locate', note_positions(MixedPeople.locate, seen))
    runner.train()
    assert sorted(set(seen)) == list(range(8, 16))  # nothing is replayed

    whole, broken = weights(shards / 'whole/iter_4.pth'), weights(shards / 'broken/iter_4.pth')
    assert all(torch.equal(value, broken[name]) for name, value in whole.items())


def note_positions(locate, seen):
    def noting(self, seed, position):
        seen.append(position)
        return locate(self, seed, position)

    return noting


def test_two_processes_equal_one_with_the_joint_batch(shards):
    """Generator and discriminator, through tools/train.py and torchrun on gloo."""
    for name, batch_size in (('one', 4), ('two', 2)):
        cfg = config(shards)
        cfg.train_dataloader.batch_size = batch_size
        cfg.train_cfg.max_iters = 2
        cfg.work_dir = str(shards / name)
        cfg.dump(shards / f'{name}.py')
    for name, count in (('one', 1), ('two', 2)):
        command = [sys.executable, '-m', 'torch.distributed.run', f'--nproc_per_node={count}']
        command += ['--master_port=0', '--rdzv-backend=c10d', '--rdzv-endpoint=localhost:0']
        command += [str(ROOT / 'tools/train.py'), f'{name}.py', '--launcher', 'pytorch']
        done = subprocess.run(command, cwd=shards, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (weights(shards / name / 'iter_2.pth') for name in ('one', 'two'))
    start = build(config(shards)).state_dict()
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert torch.allclose(value, two[name], rtol=1e-5, atol=1e-7), name
    for part in ('backbone.', 'head.pose_out', 'discriminator.'):
        assert any(not torch.equal(one[k], start[k]) for k in start if k.startswith(part))


def test_a_checkpoint_of_another_loop_is_not_resumed(shards):
    cfg = config(shards)
    cfg.work_dir, cfg.experiment_name = str(shards / 'other_loop'), 'first'
    cfg.train_cfg.max_iters = 1
    runner = Runner.from_cfg(cfg)
    runner.train()
    path = shards / 'other_loop/iter_1.pth'
    checkpoint = read_weights(path)
    checkpoint['message_hub']['runtime_info'].pop('stream')
    torch.save(checkpoint, path)
    cfg.train_cfg.max_iters = 2
    # mmengine takes runs of one name, which else is the second they begin in, for one run.
    cfg.resume, cfg.experiment_name = True, 'second'
    with pytest.raises(ValueError, match='iteration 1 was written by another loop'):
        Runner.from_cfg(cfg).train()


def test_the_stream_loop_requires_a_sampler_with_a_position(shards):
    cfg = config(shards)
    cfg.train_dataloader.sampler = dict(type='DefaultSampler', shuffle=False)
    with pytest.raises(TypeError, match='MixSampler; got DefaultSampler'):
        Runner.from_cfg(cfg).train()


def test_the_base_config_is_the_official_recipe():
    cfg = Config.fromfile(ROOT / 'configs/mesh/hmr2_vit-b_8xb48-1000k_mix-256x192.py')
    assert cfg.train_cfg.max_iters * 2 == 1_000_000  # the paper counts both optimizers
    assert cfg.model_wrapper_cfg.type == 'MMSeparateDistributedDataParallel'
    assert cfg.optim_wrapper.optimizer == dict(type='AdamW', lr=1e-5, weight_decay=1e-4)
