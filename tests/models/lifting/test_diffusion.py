"""The diffusion lifter: the authors' numbers, guidance, past poses, chunks of any length."""

import numpy as np
import pytest
import torch
from lifters import GOLDEN, assert_golden, golden_lifter
from mmengine.registry import MODELS

pytest.importorskip('mmpose')
from trunchier.conventions import H36M_17_FLIP
from trunchier.models.lifting.diffusion import (
    HistoryEncoder,
    RollOut,
    cosine_alphas,
    ddim_times,
    sinusoid,
    take_best_projected,
)
from trunchier.models.lifting.guidance import View

RECORD = GOLDEN['d3dp']


def drawn(seed, scale=1.0, shape=(1, 2, 27, 17, 3)):
    """The first hypothesis of the authors' draws."""
    n = np.random.Generator(np.random.PCG64(seed)).standard_normal(shape) * scale
    return torch.from_numpy(n.astype(np.float32)).double()[:, 0]


def diffusion(seq_len=9, width=16, depth=2, kind='MixSTE', **options):
    backbone = dict(type=kind, in_channels=5, width=width, depth=depth, seq_len=seq_len)
    backbone['num_heads'] = 8 if width == 512 else 2
    head = dict(type='LiftingHead', in_channels=width)
    options = dict(dict(hypotheses=2, sampling_steps=2), **options)
    return MODELS.build(
        dict(type='DiffusionLifter', backbone=backbone, head=head, **options)
    ).eval()


def test_the_schedule_is_the_authors():
    for name, timesteps in (('t1000', 1000), ('t50', 50)):
        record = RECORD['alphas'][name]
        found = cosine_alphas(timesteps)[record['at']]
        assert np.allclose(found, record['values'], rtol=1e-9, atol=0)
    for steps, times in RECORD['times'].items():
        assert ddim_times(1000, int(steps)) == times


@torch.no_grad()
def test_times_are_embedded_as_the_authors_do(tmp_path):
    model = golden_lifter(diffusion(27, 512, 1), 'd3dp_keys', tmp_path)
    wave = sinusoid(torch.tensor([999]), 512)
    assert_golden(wave, 'd3dp', 'time_embedding_sinusoid')
    assert_golden(model.time(wave), 'd3dp', 'time_mlp')


@pytest.mark.slow
@torch.no_grad()
def test_denoising_is_the_authors(tmp_path):
    model = diffusion(27, 512, 8, sampling_steps=3)
    model = golden_lifter(model, 'd3dp_keys', tmp_path)
    model.head.fc.weight.mul_(np.float32(0.4).item())
    model.head.fc.bias.mul_(np.float32(0.4).item())
    inputs = RECORD['input']
    keypoints = drawn(inputs['x2_seed'], inputs['x2_scale'], (1, 1, 27, 17, 2))
    noisy = drawn(inputs['x3_seed'], inputs['x3_scale'])
    time = torch.tensor(inputs['t'])
    assert_golden(model.denoise(keypoints, noisy, time), 'd3dp', 'denoiser')
    noise = drawn(inputs['q_noise_seed'])
    assert_golden(model.add_noise(noisy, time, noise), 'd3dp', 'q_sample')
    start, found = model.predict_start(keypoints, 4 * noisy, time)
    assert_golden(start, 'd3dp', 'model_predictions_x_start')
    assert_golden(found, 'd3dp', 'model_predictions_noise')
    noises = [drawn(seed) for seed in inputs['ddim_noise_seeds']]
    assert_golden(model.sample(keypoints, noises), 'd3dp', 'ddim_x_start_2')


def test_each_joint_is_taken_from_the_hypothesis_that_projects_best():
    hypotheses, keypoints = torch.randn(2, 4, 5, 17, 3), torch.randn(2, 5, 17, 2)
    projected = torch.randn(2, 4, 5, 17, 2)
    found = take_best_projected(hypotheses, projected, keypoints)
    for b, t, k in ((0, 0, 0), (1, 4, 16), (0, 3, 7)):
        errors = [float((projected[b, h, t, k] - keypoints[b, t, k]).norm()) for h in range(4)]
        assert torch.equal(found[b, t, k], hypotheses[b, int(np.argmin(errors)), t, k])


def test_equal_seeds_give_equal_joints():
    model, windows = diffusion(), torch.randn(2, 9, 17, 2)
    one, same, other = (model.lift(windows, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert one.shape == (2, 9, 17, 3) and torch.isfinite(one).all()


def test_a_mirrored_window_gives_the_mirrored_joints_of_a_step():
    model, flip = diffusion(), list(H36M_17_FLIP)
    keypoints, noisy = torch.randn(1, 9, 17, 2), torch.randn(1, 9, 17, 3)
    mirror, time = torch.tensor([-1.0, 1, 1]), torch.tensor([500])
    start, _ = model.predict_start(keypoints, noisy, time, flip)
    inputs = keypoints[:, :, flip] * mirror[:2], noisy[:, :, flip] * mirror
    mirrored, _ = model.predict_start(*inputs, time, flip)
    assert torch.allclose(mirrored[:, :, flip] * mirror, start, atol=1e-5)


def test_guidance_lowers_the_energy_of_what_is_sampled():
    torch.manual_seed(0)
    guided = diffusion(guidance=dict(type='PhysicalGuidance', step=0.02), hypotheses=1)
    plain = diffusion(hypotheses=1)
    plain.load_state_dict(guided.state_dict())
    windows = torch.randn(3, 9, 17, 2)
    with_, without = guided.lift(windows), plain.lift(windows)
    assert (guided.guidance(with_) < guided.guidance(without)).all()


def test_a_window_does_not_depend_on_the_others_of_its_batch():
    model, windows = diffusion(), torch.randn(3, 9, 17, 2)
    alone = torch.cat([model.lift(window[None]) for window in windows])
    torch.testing.assert_close(model.lift(windows), alone)


@pytest.mark.parametrize('guidance', [None, dict(type='PhysicalGuidance')])
def test_inference_mode_gives_the_same_joints(guidance):
    model = diffusion(guidance=guidance, history=dict(length=5, width=8))

    def lifted():
        windows, roots, ones = torch.ones(2, 9, 17, 2), torch.ones(2, 9, 3), torch.ones(2, 2)
        past = torch.ones(2, 3, 17, 2), torch.ones(2, 3, 17, 3)
        return model.lift(windows, H36M_17_FLIP, View(windows, ones, ones, roots), past)

    expected = lifted()
    with torch.inference_mode():
        torch.testing.assert_close(lifted(), expected)


@pytest.mark.parametrize('kind', ['MixSTE', 'KTPFormer'])
def test_every_parameter_learns(kind):
    model = diffusion(kind=kind, depth=1, history=dict(length=4, width=8)).train()
    keypoints, noisy = torch.randn(3, 9, 17, 2), torch.randn(3, 9, 17, 3)
    history = model.history(keypoints[:, :4], noisy[:, :4])
    joints = model.denoise(keypoints, noisy, torch.tensor([0, 500, 999]), history)
    joints.square().mean().backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


def test_a_video_is_lifted_equally_in_chunks_of_any_length():
    model, video = diffusion(history=dict(length=5, width=8)), torch.randn(32, 17, 2)
    wanted = RollOut(model, 9).push(video, last=True)
    assert wanted.shape == (32, 17, 3)
    for length in (1, 7, 20):
        roll_out = RollOut(model, 9)
        chunks = video.split(length)
        found = [roll_out.push(chunk, chunk is chunks[-1]) for chunk in chunks]
        assert torch.equal(torch.cat(found), wanted)


def test_past_poses_change_what_follows():
    model, window = diffusion(history=dict(length=5, width=8)), torch.randn(1, 9, 17, 2)
    past = torch.randn(1, 3, 17, 2), torch.randn(1, 3, 17, 3)
    assert not torch.equal(model.lift(window, past=past), model.lift(window))
    encoder = HistoryEncoder(16, length=5, width=8).eval()
    assert encoder(*past).shape == (1, 16)
