"""Hourglass tokenizers: the authors' selections, outputs and counts; any pruner and recovery."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from lifters import (
    GOLDEN,
    assert_golden,
    golden_lifter,
    golden_window,
    lifter,
    linear_macs,
    parameters,
    records,
)
from mmengine.config import Config
from mmengine.registry import MODELS

from trunchier.models.lifting import hourglass as hourglass_module
from trunchier.models.lifting.hourglass import (
    PRUNERS,
    KeptFrames,
    best,
    density_peaks,
    even_frames,
    interpolate_frames,
)

pytest.importorskip('mmpose')

ROOT = Path(__file__).resolve().parents[3]
SMALL = dict(type='MixSTE', width=16, depth=4, num_heads=2, seq_len=9)
MOTIONBERT = dict(
    type='mmpose.DSTFormer', in_channels=3, feat_size=256, depth=5, num_heads=8, mlp_ratio=4
)
BERT_HEAD = dict(type='LiftingHead', in_channels=256, embedding_size=512)


def hourglass(backbone, schedule, pruner='TPC', recovery='TRA', head=None):
    """PoseLifter with a tokenizer."""
    tokenizer = dict(type='HourglassTokenizer', backbone=backbone, schedule=schedule)
    heads = backbone.get('num_heads', 8)
    return lifter(dict(tokenizer, pruner=pruner, recovery=recovery, num_heads=heads), head)


def small(schedule, pruner='TPC', recovery='TRA', backbone=SMALL):
    return MODELS.build(
        dict(
            type='HourglassTokenizer',
            backbone=backbone,
            schedule=schedule,
            pruner=pruner,
            recovery=recovery,
            num_heads=2,
        )
    ).eval()


def noise_of(record, shape):
    return torch.from_numpy(np.random.Generator(np.random.PCG64(record)).random(shape)) * 1e-6


@pytest.mark.parametrize('name', GOLDEN['dpc'])
def test_density_peaks_are_the_authors(name):
    record = GOLDEN['dpc'][name]
    batch, count, _ = record['shape']
    rng = np.random.Generator(np.random.PCG64(record['seed']))
    tokens = rng.standard_normal(record['shape']) * np.exp(rng.uniform(-1, 1, (batch, count, 1)))
    noise = noise_of(record['seed'] + 500, (batch, count)) if record['noise'] else None
    scores = density_peaks(torch.from_numpy(tokens.astype(np.float32)), record['k'], noise)
    assert best(scores, record['kept']).flatten().tolist() == record['frames']
    scores[:, (count - 1) // 2] = torch.inf
    assert best(scores, record['kept']).flatten().tolist() == record['with_center']


def check_golden(name, model, keys, folder, layer, outputs):
    """Selection with the authors' noise, then outputs for theirs and for given frames."""
    model = golden_lifter(model, keys, folder)
    record, window = GOLDEN[name], golden_window(name)
    tokenizer, head = model.backbone, model.head
    pooled = []
    tokenizer.choose = lambda kept, tokens, *_: pooled.append(tokens.mean(2)) or first[:, :kept]
    first = torch.arange(window.shape[1])[None]
    tokenizer(window)
    noise = noise_of(record['noise_seed'], (record['shape'][0], window.shape[1]))[:1]
    scores = density_peaks(pooled[0], noise=noise)
    if tokenizer.recovery is None:
        scores[:, (window.shape[1] - 1) // 2] = torch.inf
    own = record['outputs']['own_index']
    assert best(scores, len(own)).tolist() == [own]
    if 'pooled_before_selection' in record['outputs']:
        assert_golden(pooled[0], name, 'pooled_before_selection')
    for kind in ('own', 'given'):
        frames = {layer: torch.tensor([record['outputs'][f'{kind}_index']])}
        found = records(model, *outputs) if kind == 'given' else []
        assert_golden(head.joints(tokenizer(window, frames)), name, f'{kind}_output')
        for (output, arrange), results in zip(outputs.values(), found, strict=False):
            assert_golden(arrange(results[-1]), name, output)


@pytest.mark.slow
@pytest.mark.parametrize(('frames', 'kept'), [(27, 9), (243, 81)])
@torch.no_grad()
def test_hot_on_mixste_is_the_authors(frames, kept, tmp_path):
    model = hourglass(dict(type='MixSTE', seq_len=frames), {3: kept})
    outputs = {
        'backbone.backbone.spatial_norm': ('given_spatial_norm_last', lambda x: x[0]),
        'backbone.backbone.temporal_norm': (
            'given_temporal_norm_last', lambda x: x[0].transpose(0, 1)
        ),
        'backbone.recovery.proj': ('given_cross_attention', lambda x: x),
    }  # fmt: skip
    name = f'hot_mixste_t{frames}_n3_f{kept}'
    check_golden(name, model, 'hot_mixste_keys', tmp_path, 3, outputs if frames == 27 else {})


@torch.no_grad()
def test_hot_on_motionbert_is_the_authors(tmp_path):
    backbone = dict(MOTIONBERT, seq_len=27)
    model = hourglass(backbone, {1: 9}, head=BERT_HEAD)
    outputs = {
        'backbone.backbone.norm': ('given_norm', lambda x: x[0]),
        'backbone.recovery.proj': ('given_cross_attention', lambda x: x),
    }
    name = 'hot_motionbert256_t27_n1_f9'
    check_golden(name, model, 'hot_motionbert_keys', tmp_path, 1, outputs)


@pytest.mark.slow
@torch.no_grad()
def test_hot_on_long_windows_of_motionbert_is_the_authors(tmp_path):
    model = hourglass(MOTIONBERT, {1: 81}, head=BERT_HEAD)
    name = 'hot_motionbert256_t243_n1_f81'
    check_golden(name, model, 'hot_motionbert_keys', tmp_path, 1, {})


@pytest.mark.slow
@pytest.mark.parametrize(('frames', 'kept'), [(27, 7), (243, 61)])
@torch.no_grad()
def test_tpc_on_mixste_is_the_authors(frames, kept, tmp_path):
    model = hourglass(dict(type='MixSTE', seq_len=frames), {7: kept}, recovery=None)
    name = f'tpc_mixste_t{frames}_n7_f{kept}'
    check_golden(name, model, 'mixste_keys', tmp_path, 7, {})


@pytest.mark.parametrize('pruner', PRUNERS)
@torch.no_grad()
def test_attention_is_kept_only_in_the_layers_whose_attention_is_read(pruner, monkeypatch):
    kept = []

    class Listed(hourglass_module.AttentionReceived):
        def _keep(self, module, args, out):
            kept.append(out.shape[1])
            super()._keep(module, args, out)

    monkeypatch.setattr(hourglass_module, 'AttentionReceived', Listed)
    small({1: 6, 3: 4}, pruner)(torch.randn(1, 9, 17, 2))
    assert kept == ([9, 6] if pruner == 'TPA' else [])


# Parameters, and 10^9 multiplications of linear layers, twice.
COUNTS = {
    'HoT-MixSTE': (35_000_323, 167.512, 'MixSTE', {3: 81}, 'TPC', 'TRA'),
    'TPC-MixSTE': (33_783_811, 251.284, 'MixSTE', {7: 61}, 'TPC', None),
    'HoT-MotionBERT': (16_347_661, 63.209, 'MotionBERT', {1: 81}, 'TPC', 'TRA'),
    'MotionBERT': (16_001_549, 131.094, 'MotionBERT', None, None, None),
}


@pytest.mark.parametrize('name', COUNTS)
def test_counts_are_the_papers(name):
    count, giga, kind, schedule, pruner, recovery = COUNTS[name]
    is_bert = kind == 'MotionBERT'
    backbone, head = (MOTIONBERT, BERT_HEAD) if is_bert else (dict(type='MixSTE'), None)
    # DSTFormer cannot be made on the meta device.
    with torch.device('cpu' if is_bert else 'meta'):
        if schedule is None:
            model = lifter(backbone, head)
        else:
            model = hourglass(backbone, schedule, pruner, recovery, head)
    model = model.to('meta')
    window = torch.zeros(1, 243, 17, 3 if is_bert else 2, device='meta')
    if schedule is not None:
        frames = {layer: torch.arange(kept)[None] for layer, kept in schedule.items()}
        model.backbone.choose = lambda kept, *_: frames[next(iter(schedule))].to('meta')
    macs = linear_macs(model, window, None, 'tensor')
    assert parameters(model) == count
    assert round(2 * macs / 1e9, 3) == giga


@pytest.mark.parametrize('schedule', [{1: 8, 2: 5, 3: 3}, {2: 4}])
def test_even_frames_with_interpolation_add_no_parameters_and_cost_what_the_formula_says(schedule):
    model = hourglass(SMALL, schedule, 'TPS', 'TRI').eval()
    assert parameters(model) == parameters(lifter(SMALL))
    frames = [schedule.get(layer, 0) for layer in range(4)]
    frames = list(itertools.accumulate(frames, lambda before, now: now or before, initial=9))[1:]
    width, length, last = 16, 9, frames[-1]
    linear = 17 * (16 * width**2 * sum(frames) + 2 * width * length + 3 * width * last)
    assert linear_macs(model, torch.zeros(1, 9, 17, 2), None, 'tensor') == linear


def test_our_schedule_of_h2ot_saves_57_percent():
    config = Config.fromfile(ROOT / 'configs/pose3d/mixste_h2ot-tps-tri_243frm_h36m.py')
    schedule = config.model.backbone.schedule
    frames = [243] * 8
    for layer, kept in schedule.items():
        frames[int(layer) :] = [kept] * (8 - int(layer))
    giga = 34e-9 * (16 * 512**2 * sum(frames) + 2 * 512 * 243 + 3 * 512 * frames[-1])
    assert round(100 * (1 - giga / 277.248)) == 57


@pytest.mark.parametrize('recovery', ['TRA', 'TRI', None])
@pytest.mark.parametrize('pruner', PRUNERS)
@pytest.mark.parametrize('kind', ['MixSTE', 'DSTFormer'])
def test_any_pruner_goes_with_any_recovery(kind, pruner, recovery):
    bert = dict(type='mmpose.DSTFormer', in_channels=2, feat_size=16, depth=4, num_heads=2)
    backbone = SMALL if kind == 'MixSTE' else dict(bert, seq_len=9)
    head = dict(type='LiftingHead', in_channels=16, embedding_size=None)
    model = hourglass(backbone, {1: 7, 3: 4}, pruner, recovery, head).eval()
    windows = torch.randn(3, 9, 17, 2)
    with torch.no_grad():
        joints = model(windows, None, mode='tensor')
        again = model(windows[1:2], None, mode='tensor')
    assert joints.shape == (3, 1 if recovery is None else 9, 17, 3)
    assert torch.allclose(joints[1:2], again, atol=1e-5)  # alone or in a batch: the same frames
    kept = model.backbone(windows)
    if isinstance(kept, KeptFrames):
        assert kept.frames.shape == (3, 4) and (kept.frames.diff(dim=1) > 0).all()
        assert recovery == 'TRI' or (kept.frames == 4).any(1).all(), 'the center frame is kept'


def test_keeping_all_frames_changes_nothing():
    model = small({1: 9}, 'TPS', 'TRI')
    plain = MODELS.build(SMALL).eval()
    plain.load_state_dict(model.backbone.state_dict())
    window = torch.randn(2, 9, 17, 2)
    kept = model(window)
    assert torch.equal(kept.features, plain(window))
    assert torch.equal(interpolate_frames(kept.features, kept.frames, 9), kept.features)


def test_interpolation_is_numpys():
    frames = torch.tensor([[2, 3, 7], [0, 4, 8]])
    values = torch.randn(2, 3, 2, dtype=torch.float64)
    found = interpolate_frames(values, frames, 9)
    for sample, channel in itertools.product(range(2), range(2)):
        wanted = np.interp(range(9), frames[sample].numpy(), values[sample, :, channel].numpy())
        assert np.abs(found[sample, :, channel].numpy() - wanted).max() < 1e-12
    single = interpolate_frames(values[:, :1], frames[:, :1], 4)
    assert torch.equal(single, values[:, :1].expand(-1, 4, -1))


def test_even_frames_are_linspace_rounded_down():
    for count, kept in [(243, 81), (243, 61), (27, 9), (9, 4), (81, 81), (5, 1)]:
        exact = [i * (count - 1) // max(kept - 1, 1) for i in range(kept)]
        assert even_frames(count, kept).tolist() == exact
        assert np.abs(np.linspace(0, count - 1, kept) - exact).max() < 1
        assert len(set(exact)) == kept


def test_the_frames_that_move_most_are_kept():
    window = torch.zeros(1, 9, 17, 2)
    window[:, 3:], window[:, 6:], window[0, 8, 2, 1] = 5.0, 4.0, 4.5
    assert small({1: 3}, 'TPMo', 'TRI')(window).frames.tolist() == [[3, 6, 8]]


def test_frames_that_get_attention_are_kept():
    model = small({1: 2}, 'TPA', 'TRI')
    found = records(model, 'backbone.temporal_blocks.0.attn.qkv')[0]
    window = torch.randn(1, 9, 17, 2)
    kept = model(window).frames[0].tolist()
    q, k, _ = found[0].reshape(17, 9, 3, 2, 8).unbind(2)  # (joint, frame, head, channel)
    received = np.zeros(9)
    for joint, head in itertools.product(range(17), range(2)):
        logits = (q[joint, :, head] @ k[joint, :, head].T).detach().numpy() / 8**0.5
        weights = np.exp(logits)
        received += (weights / weights.sum(1, keepdims=True)).sum(0)
    assert kept == sorted(np.argsort(-received)[:2])


def test_among_equal_frames_the_first_are_kept():
    still = torch.randn(1, 1, 17, 2).expand(1, 9, -1, -1)
    for pruner in ('TPC', 'TPMo'):
        model = small({1: 4}, pruner, 'TRI')
        torch.nn.init.zeros_(model.backbone.temporal_position)
        assert model(still).frames.tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize('schedule', [{2: 5, 3: 6}, {1: 10}, {0: 3}, {4: 3}, {1: 0}, {}])
def test_a_schedule_that_does_not_fall_is_refused(schedule):
    with pytest.raises(ValueError, match='layers of 1 to 3 and frames that fall from at most 9'):
        small(schedule)


def test_unknown_parts_are_refused():
    with pytest.raises(ValueError, match='pruners are TPC, TPA, TPMo, TPS'):
        small({1: 3}, 'TPX')
    with pytest.raises(TypeError, match='TCN does not show its layers'):
        small({1: 3}, backbone=dict(type='mmpose.TCN', in_channels=34))


def test_a_window_that_is_shorter_than_the_schedule_keeps_its_frames():
    model = small({1: 7, 2: 5}, 'TPC', 'TRI')
    assert model(torch.randn(1, 3, 17, 2)).frames.tolist() == [[0, 1, 2]]
    assert small({1: 7}, recovery='TRA')(torch.randn(1, 3, 17, 2)).shape == (1, 3, 17, 16)


@pytest.mark.parametrize('recovery', ['TRA', 'TRI', None])
def test_every_parameter_learns(recovery):
    model = hourglass(SMALL, {1: 5, 3: 3}, 'TPC', recovery).train()
    model.backbone.backbone.spatial_blocks[0].rate = 0.0
    joints = model.head.joints(model.backbone(torch.randn(4, 9, 17, 2)))
    joints.square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize('name', ['small', 'large'])
def test_the_loss_is_the_authors(name):
    record = GOLDEN['losses'][name]
    draws = (np.random.PCG64(record[f'{which}_seed']) for which in ('pred', 'target'))
    draws = (np.random.Generator(draw).standard_normal(record['shape']) * 0.3 for draw in draws)
    output, target = (torch.from_numpy(draw.astype(np.float32)).double() for draw in draws)
    target[:, :, 0] = 0
    output.requires_grad_()
    parts = {
        (0, 0): record['w_mpjpe'],
        (0.5, 0): record['w_mpjpe'] + 0.5 * record['temporal_consistency'],
        (0.5, 2.0): record['total'],
    }
    for (smoothness, velocity), wanted in parts.items():
        options = dict(smoothness=smoothness, velocity=velocity)
        loss = MODELS.build(dict(type='LiftingLoss', **options))(output, target)
        assert float(loss) == pytest.approx(wanted, rel=1e-6)
    loss.backward()
    if name == 'small':
        gradient = record['gradient']
        found = output.grad.flatten()[gradient['places']]
        assert np.abs(found.numpy() - gradient['samples']).max() < 1e-6 * gradient['std']
