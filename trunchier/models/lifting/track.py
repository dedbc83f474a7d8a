"""Bodies of a track: `BodyLifter` on every frame, and attention over the frames of a window.

The layers between frames start as zeros, so that a new `BodyTrackLifter` gives the same body as its
`BodyLifter`. The result of each frame depends on all frames of the window, of which there may be
fewer than `window`: a window that ends with the present needs no future.
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...conventions import COCO_17
from ...files import shipped
from .body import BodyLifter, load_lifter, load_weights, mirror_averaged, normalize

TRACK_LIFTER = 'BodyTrackLifter.safetensors'  # in assets
WINDOW = 27


class BodyTrackLifter(nn.Module):
    """COCO's 17 keypoints of the frames of a window to a body and its camera per frame.

    Args:
        frame: lifter of a frame, of which the layers are used; None: with random weights.
        width: of the layers between frames. depth: number of those. heads: of their attention.
        window: largest number of frames.
    """

    def __init__(
        self,
        frame: BodyLifter | None = None,
        width: int = 144,
        depth: int = 3,
        heads: int = 4,
        window: int = WINDOW,
    ):
        super().__init__()
        self.window = window
        self.frame = frame if frame is not None else BodyLifter()
        channels = self.frame.embed.out_features
        self.enter = nn.Linear(channels + 3, width)
        self.layers = nn.ModuleList(_Layer(width, heads, window) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.leave = nn.Linear(width, channels)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, keypoints: Tensor, scores: Tensor) -> dict[str, Tensor]:
        """Lift windows of frames in a row.

        Args:
            keypoints: (B, T, 17, 2), x before y, in any unit that all frames share; T up to
                `window`.
            scores: (B, T, 17), 0 to 1; 0 for keypoints that are not known.

        Returns:
            as of `BodyLifter`, each (B, T, ...); `betas` are the same in all frames. A frame
            without any keypoint gets its body from the others.
        """
        frames = scores.shape[1]
        inputs, center, spread = normalize(keypoints.flatten(0, 1), scores.flatten(0, 1))
        seen = (scores > 0).any(2)  # (B, T)
        center, spread = (_filled(each.unflatten(0, seen.shape), seen) for each in (center, spread))
        hidden = self.frame.hidden(inputs).unflatten(0, seen.shape)
        count = seen.sum(1)[:, None, None].clamp_min(1)
        size = (spread * seen[..., None]).sum(1, keepdim=True) / count
        middle = (center * seen[..., None]).sum(1, keepdim=True) / count
        size = size.clamp_min(1e-6)
        path = (center - middle) / size, (spread / size).clamp_min(1e-3).log()
        mixed = self.enter(torch.cat((F.layer_norm(hidden, hidden.shape[-1:]), *path), 2))
        # A window without any keypoint attends everywhere: its result means nothing, but is finite.
        hide = ~(seen | ~seen.any(1, keepdim=True))
        mask = torch.zeros_like(hide, dtype=mixed.dtype).masked_fill(hide, -math.inf)
        for layer in self.layers:
            mixed = layer(mixed, mask[:, None, None])
        hidden = hidden + self.leave(self.norm(mixed))
        places = (each.flatten(0, 1) for each in (hidden, center, spread))
        out = self.frame.read_out(*places)
        out = {name: each.unflatten(0, seen.shape) for name, each in out.items()}
        shape = (out['betas'] * seen[..., None]).sum(1, keepdim=True) / count
        return dict(out, betas=shape.expand(-1, frames, -1))

    @torch.no_grad()
    def lift(self, keypoints: Tensor, scores: Tensor) -> dict[str, Tensor]:
        """Bodies of one track, averaged with the mirrored person; called as `BodyLifter.lift`.

        Args:
            keypoints: (T, 17, 2), of frames in a row, T from 1 to `window`, in pixels of the whole
                image or any other unit.
            scores: (T, 17), 0 to 1; 0 for keypoints that are not known. Keypoints and scores that
                are not finite count as not known.

        Returns:
            `global_orient`, `body_pose`, `betas`, `camera` as of `BodyLifter`, each (T, ...).

        Raises:
            ValueError: other shapes, or more frames than `window`.
        """
        expected = (len(scores), len(COCO_17))
        if keypoints.shape != (*expected, 2) or scores.shape != expected:
            raise ValueError(
                f'keypoints of a track are (T, {len(COCO_17)}, 2) and scores (T, {len(COCO_17)}); '
                f'found {tuple(keypoints.shape)} and {tuple(scores.shape)}'
            )
        if not 1 <= len(scores) <= self.window:
            raise ValueError(
                f'a window has 1 to {self.window} frames, found {len(scores)}; '
                'divide the track into windows'
            )
        known = keypoints.isfinite().all(2) & scores.isfinite()
        keypoints = torch.where(known[..., None], keypoints, 0)
        scores = torch.where(known, scores, 0)

        def forward(keypoints, scores):
            return {name: each[0] for name, each in self(keypoints[None], scores[None]).items()}

        return mirror_averaged(forward, keypoints, scores)


class _Layer(nn.Module):
    """Attention between frames with a bias by their distance, and two linear layers."""

    def __init__(self, width: int, heads: int, window: int):
        super().__init__()
        self.heads, self.window = heads, window
        self.norm_in, self.norm_out = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.bias = nn.Parameter(torch.zeros(heads, 2 * window - 1))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, T, width), mask to add (B, 1, 1, T) -> (B, T, width)."""
        time = torch.arange(x.shape[1], device=x.device)
        bias = self.bias[:, time[:, None] - time + self.window - 1]  # (heads, T, T)
        qkv = self.qkv(self.norm_in(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*qkv, attn_mask=bias + mask)
        x = x + self.project(mixed.transpose(1, 2).flatten(2))
        return x + self.narrow(F.gelu(self.wide(self.norm_out(x))))


def _filled(values, seen):
    """Linear between the seen frames, constant before and after: (B, T, C), (B, T) -> (B, T, C)."""
    frames = seen.shape[1]
    time = torch.arange(frames, device=seen.device).expand(seen.shape)
    before = torch.where(seen, time, -1).cummax(1).values
    after = torch.where(seen, time, frames).flip(1).cummin(1).values.flip(1)
    first, last = before.clamp_min(0), after.clamp_max(frames - 1)
    first = torch.where(before < 0, last, first)
    last = torch.where(after >= frames, first, last)
    share = ((time - first) / (last - first).clamp_min(1))[..., None]
    ends = (values.gather(1, each[..., None].expand_as(values)) for each in (first, last))
    one, two = ends
    return one + share * (two - one)


def load_track_lifter(path: str | Path | None = None) -> BodyTrackLifter:
    """A trained lifter of tracks, in eval mode; None: the one that ships with this package.

    Raises:
        FileNotFoundError: no such file. CheckpointError: weights of something else.
    """
    if path is None and not shipped.asset(TRACK_LIFTER).is_file():
        return BodyTrackLifter(load_lifter()).eval()
    path = shipped.asset(TRACK_LIFTER) if path is None else Path(path)
    return load_weights(BodyTrackLifter(), path)
