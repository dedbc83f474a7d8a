"""A lifter by diffusion: D3DP (Shan et al., ICCV 2023), equal to its authors' code (MIT).

Source: paTRICK-swk/D3DP, `common/diffusionpose.py`. Joints are denoised under the 2D keypoints, by
DDIM; several hypotheses are averaged, or each joint is taken from that which projects best.
`PhysicalGuidance` steers the steps. `HistoryEncoder` adds past poses to the condition; it is our
reading of StarPose's HPIM.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from mmengine.registry import MODELS
from mmpose.models import PoseLifter
from mmpose.structures import PoseDataSample
from torch import Tensor, nn

from ...conventions import H36M_17_PARENTS
from .guidance import View
from .hourglass import steps_of
from .ktpformer import GraphLayer, adjacency
from .mixste import Attention, over_frames, over_joints

LIMIT = 1.1  # of joints, in units of `scale`


class DiffusionLifter(PoseLifter):
    """PoseLifter whose backbone and head denoise joints.

    The backbone takes keypoints and noisy joints together: a MixSTE or KTPFormer with
    `in_channels=5`. Data, codec, head and metrics are those of the other lifters; the codec's
    joints are relative to the root, in meters.

    Args:
        timesteps: of the forward process. sampling_steps: of DDIM.
        hypotheses: drawn for each window, then averaged.
        scale: of the joints, in which they are noise of variance 1 at the end.
        guidance: config of a `PhysicalGuidance`. Tests and `predict` know no camera, so that its
            `reprojection` has no part there; give `lift` a view.
        history: options of a `HistoryEncoder`, see `lift` and `RollOut`.
        options: of PoseLifter: `backbone`, `head`, `test_cfg`... With `flip_test`, every step is a
            mean with that of the mirrored window.
    """

    def __init__(
        self,
        *args: Any,
        timesteps: int = 1000,
        sampling_steps: int = 5,
        hypotheses: int = 5,
        scale: float = 1.0,
        guidance: dict[str, Any] | None = None,
        history: dict[str, Any] | None = None,
        **options: Any,
    ):
        super().__init__(*args, **options)
        self.timesteps, self.sampling_steps = timesteps, sampling_steps
        self.hypotheses, self.scale = hypotheses, scale
        width = steps_of(self.backbone).width
        self.time = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.alphas = cosine_alphas(timesteps)  # no buffer: float64 on the CPU
        self.guidance = guidance and MODELS.build(guidance)
        self.history = history and HistoryEncoder(out_channels=width, **history)

    def denoise(
        self, keypoints: Tensor, noisy: Tensor, time: Tensor, history: Tensor | None = None
    ) -> Tensor:
        """Joints without noise.

        Args:
            keypoints: (B, T, K, 2). noisy: (B, T, K, 3). time: (B,), 0 to timesteps - 1.
            history: (B, width), of `HistoryEncoder`.
        """
        steps = steps_of(self.backbone)
        tokens = steps.embed(torch.cat((keypoints, noisy), -1))
        condition = self.time(sinusoid(time, steps.width).to(tokens))
        if history is not None:
            condition = condition + history
        tokens = tokens + condition[:, None, None]
        for layer in range(steps.depth):
            tokens = steps.run_layer(layer, tokens)
        return self.head.joints(steps.finish(tokens))

    def add_noise(self, joints: Tensor, time: Tensor, noise: Tensor) -> Tensor:
        """The forward process: (B, T, K, 3) at times (B,)."""
        alpha = self.alphas[time.cpu()].to(joints)[:, None, None, None]
        return alpha.sqrt() * joints * self.scale + (1 - alpha).sqrt() * noise

    def predict_start(
        self,
        keypoints: Tensor,
        noisy: Tensor,
        time: Tensor,
        flip: Iterable[int] | None = None,
        history: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Joints without noise, in units of `scale`, and the noise, at times (B,).

        Args:
            flip: with it, both are means with those of the mirrored window.
        """
        alpha = self.alphas[time.cpu()].to(noisy)[:, None, None, None]
        inputs = noisy.clamp(-LIMIT * self.scale, LIMIT * self.scale) / self.scale
        start = self.denoise(keypoints, inputs, time, history)
        if flip is not None:
            flip = list(flip)
            sides = keypoints.new_tensor([-1, 1, 1])
            mirrored = (
                keypoints[:, :, flip] * sides[: keypoints.shape[-1]],
                inputs[:, :, flip] * sides,
            )
            other = self.denoise(*mirrored, time, history)
            start = (start + other[:, :, flip] * sides) / 2
        start = (start * self.scale).clamp(-LIMIT * self.scale, LIMIT * self.scale)
        return start, (noisy - alpha.sqrt() * start) / (1 - alpha).sqrt()

    def sample(
        self,
        keypoints: Tensor,
        noises: Iterable[Tensor],
        flip: Iterable[int] | None = None,
        view: View | None = None,
        history: Tensor | None = None,
    ) -> Tensor:
        """DDIM with eta = 1, one hypothesis a window.

        Args:
            keypoints: (B, T, K, 2).
            noises: (B, T, K, 3) each: the start, then one a step but the last.
            view: of the camera, for guidance.

        Returns:
            (B, T, K, 3), meters.
        """
        noises = iter(noises)
        noisy = next(noises)
        times = ddim_times(self.timesteps, self.sampling_steps)
        for now, after in zip(times, times[1:], strict=False):
            start, noise, push = self._step(keypoints, noisy, now, flip, view, history)
            if after < 0:
                return (start - push) / self.scale
            alpha, before = float(self.alphas[now]), float(self.alphas[after])
            sigma = math.sqrt((1 - alpha / before) * (1 - before) / (1 - alpha))
            kept = math.sqrt(max(1 - before - sigma**2, 0))
            noisy = math.sqrt(before) * start + kept * noise + sigma * next(noises) - push
        raise AssertionError('the last time is negative')

    def _step(self, keypoints, noisy, now, flip, view, history):
        """Joints without noise, the noise, and what guidance subtracts, at a time."""
        time = torch.full((len(keypoints),), now, device=keypoints.device)
        if self.guidance is None:
            with torch.no_grad():
                return *self.predict_start(keypoints, noisy, time, flip, history), 0
        with torch.inference_mode(False), torch.enable_grad():
            keypoints, noisy, time = map(_constant, (keypoints, noisy, time))
            view = view and View(*map(_constant, view))
            history = None if history is None else _constant(history)
            noisy.requires_grad_()
            start, noise = self.predict_start(keypoints, noisy, time, flip, history)
            energy = self.guidance(start / self.scale, view).sum()
            push = self.guidance.step * torch.autograd.grad(energy, noisy)[0]
        return start.detach(), noise.detach(), push

    @torch.no_grad()
    def lift(
        self,
        keypoints: Tensor,
        flip: Iterable[int] | None = None,
        view: View | None = None,
        past: tuple[Tensor, Tensor] | None = None,
        seed: int = 0,
    ) -> Tensor:
        """The mean of the hypotheses of each window; the same for the same seed.

        All windows have the same noise, so that none depends on the others of its batch.

        Args:
            keypoints: (B, T, K, 2), normalized by the image's width.
            past: 2D (B, L, K, 2) and 3D (B, L, K, 3) of the frames before, for `history`.

        Returns:
            (B, T, K, 3), meters.
        """
        history = None
        if self.history is not None and past is not None and past[0].shape[1]:
            history = self.history(*past)
        generator = torch.Generator().manual_seed(seed)
        shape = *keypoints.shape[:3], 3
        total = 0
        for _ in range(self.hypotheses):
            noises = (
                torch.randn(shape[1:], generator=generator).to(keypoints).expand(shape)
                for _ in range(self.sampling_steps)
            )
            total = total + self.sample(keypoints, noises, flip, view, history)
        return total / self.hypotheses

    def _forward(self, inputs: Tensor, data_samples: list | None = None) -> Tensor:
        return self.lift(inputs)

    def loss(self, inputs: Tensor, data_samples: list[PoseDataSample]) -> dict[str, Tensor]:
        """The head's loss of joints that are denoised from a random time; past poses are those of
        the window's own first frames, so that `history` learns, too."""
        labels = [sample.gt_instance_labels.lifting_target_label for sample in data_samples]
        joints = torch.stack(labels).to(inputs)
        time = torch.randint(self.timesteps, (len(inputs),), device=inputs.device)
        noisy = self.add_noise(joints, time, torch.randn_like(joints))
        noisy = noisy.clamp(-LIMIT * self.scale, LIMIT * self.scale) / self.scale
        history = None
        if self.history is not None:
            past = self.history.length
            history = self.history(inputs[:, :past], joints[:, :past])
        denoised = self.denoise(inputs, noisy, time, history)
        return self.head.losses(denoised, data_samples)

    def predict(self, inputs: Tensor, data_samples: list[PoseDataSample]) -> list[PoseDataSample]:
        """As PoseLifter's; the noise is the same for each window."""
        meta = data_samples[0].metainfo
        flip = meta['flip_indices'] if (self.test_cfg or {}).get('flip_test') else None
        instances = self.head.decoded(self.lift(inputs, flip), data_samples)
        return self.add_pred_to_datasample(instances, None, None, None, data_samples)


def _constant(tensor):
    """A copy that autograd can save: no part of a graph, and no inference tensor."""
    return tensor.detach().clone()


def cosine_alphas(timesteps: int, offset: float = 0.008) -> Tensor:
    """Products of 1 - beta of the cosine schedule (Nichol and Dhariwal, 2021), float64."""
    x = torch.linspace(0, 1, timesteps + 1, dtype=torch.float64)
    curve = ((x + offset) / (1 + offset) * math.pi / 2).cos() ** 2
    betas = (1 - curve[1:] / curve[:-1]).clamp(0, 0.999)
    return (1 - betas).cumprod(0)


def ddim_times(timesteps: int, steps: int) -> list[int]:
    """Falling times; the last is -1: no noise."""
    return torch.linspace(-1, timesteps - 1, steps + 1, dtype=torch.float64).int().tolist()[::-1]


def sinusoid(time: Tensor, width: int) -> Tensor:
    """Sines, then cosines, of times (B,): (B, width)."""
    half = width // 2
    rates = torch.arange(half, dtype=torch.float64, device=time.device)
    rates = (rates * -(math.log(10000) / (half - 1))).exp()
    angles = time[:, None] * rates
    return torch.cat((angles.sin(), angles.cos()), -1)


def take_best_projected(hypotheses: Tensor, projected: Tensor, keypoints: Tensor) -> Tensor:
    """D3DP's JPMA: each joint of each frame from the hypothesis that projects nearest.

    Args:
        hypotheses: (B, H, T, K, 3). projected: (B, H, T, K, 2). keypoints: (B, T, K, 2).

    Returns:
        (B, T, K, 3).
    """
    chosen = (projected - keypoints[:, None]).norm(dim=-1).argmin(1, keepdim=True)
    return hypotheses.gather(1, chosen[..., None].expand(*chosen.shape, 3))[:, 0]


class HistoryEncoder(nn.Module):
    """Past 2D poses and 3D predictions as one vector, added where a denoiser's time is.

    OUR READING of StarPose's HPIM, whose code and sizes were not published: 2D and 3D embeddings;
    graph convolutions over 2 K nodes (bones, and a joint's 2D with its 3D) and over frames, beside
    self-attention over frames, summed and repeated; a linear layer. No number of the paper is
    claimed for it.

    Args:
        length: frames of the past. width: channels of a node.
    """

    def __init__(
        self,
        out_channels: int,
        length: int = 27,
        width: int = 32,
        depth: int = 2,
        num_heads: int = 4,
        parents: tuple[int, ...] = H36M_17_PARENTS,
    ):
        super().__init__()
        self.length, joints = length, len(parents)
        bones = [(joint, parent) for joint, parent in enumerate(parents) if parent >= 0]
        links = [(a + joints, b + joints) for a, b in bones] + [
            (j, j + joints) for j in range(joints)
        ]
        nodes = adjacency(bones + links, 2 * joints)
        chain = adjacency([(t, t + 1) for t in range(length - 1)], length)
        self.embed_2d, self.embed_3d = nn.Linear(2, width), nn.Linear(3, width)
        self.position = nn.Parameter(torch.zeros(1, length, 1, width))
        self.over_nodes = nn.ModuleList(GraphLayer(width, width, nodes) for _ in range(depth))
        self.over_time = nn.ModuleList(GraphLayer(width, width, chain) for _ in range(depth))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
        self.attention = nn.ModuleList(Attention(width, num_heads) for _ in range(depth))
        self.out = nn.Linear(2 * joints * width, out_channels)

    def forward(self, keypoints: Tensor, joints: Tensor) -> Tensor:
        """(B, L, K, 2) and (B, L, K, 3), L of 1 to `length` -> (B, out_channels)."""
        x = torch.cat((self.embed_2d(keypoints[..., :2]), self.embed_3d(joints)), 2)
        x = x + self.position[:, : x.shape[1]]
        layers = zip(self.over_nodes, self.over_time, self.norms, self.attention, strict=True)
        for nodes, time, norm, attention in layers:
            graph = over_joints(nodes, x) + over_frames(time, x)
            x = x + graph + over_frames(attention, norm(x))
        return self.out(x.mean(1).flatten(1))


class RollOut:
    """Lift a video of any length, window by window, each under the last frames of the one before.

    Joints do not depend on how many frames are given at a time.

    Args:
        lifter: with or without `history`. window: frames of a window. seed: of the first window.
    """

    def __init__(self, lifter: DiffusionLifter, window: int, seed: int = 0):
        self.lifter, self.window, self.seed = lifter, window, seed
        self.waiting: Tensor | None = None
        self.past: tuple[Tensor, Tensor] | None = None

    def push(self, keypoints: Tensor, last: bool = False) -> Tensor:
        """(n, K, 2) further frames -> (m, K, 3), of the windows that are full now.

        Args:
            last: lift what remains, too.
        """
        if self.waiting is not None:
            keypoints = torch.cat((self.waiting, keypoints))
        done = [keypoints.new_empty(0, keypoints.shape[1], 3)]
        while len(keypoints) >= self.window or (last and len(keypoints)):
            done.append(self._lift(keypoints[: self.window]))
            keypoints = keypoints[self.window :]
        self.waiting = keypoints
        return torch.cat(done)

    def _lift(self, keypoints):
        found = self.lifter.lift(keypoints[None], past=self.past, seed=self.seed)
        self.seed += 1
        if self.lifter.history is not None:
            new = keypoints[None], found
            old = self.past or tuple(each[:, :0] for each in new)
            length = self.lifter.history.length
            joined = (torch.cat(pair, 1) for pair in zip(old, new, strict=True))
            self.past = tuple(each[:, -length:] for each in joined)
        return found[0]
