"""Fewer frames in the middle of a lifter: HoT (Li et al., CVPR 2024) and H2OT (its extension).

TPC, TRA and the order of steps are those of the authors' code (NationalGAILab/HoT,
`model/*/hot_*.py`, `tpc_mixste.py`). H2OT's parts are not in that repository: TPA, TPMo, TPS and
TRI are written from descriptions of the paper, and TPA's source of attention is our reading.
Differences from the authors: no random noise decides between frames of equal density, the earlier
one wins; frames are selected in float64; and a mirrored window chooses its own frames, which in
their tests without TRA are those of the window.
"""

from contextlib import nullcontext
from types import TracebackType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from .mixste import check_window, split_heads

PRUNERS = 'TPC', 'TPA', 'TPMo', 'TPS'
RECOVERIES = 'TRA', 'TRI', None


class KeptFrames(NamedTuple):
    """Features of some frames of a window.

    Attributes:
        features: (B, f, K, C).
        frames: (B, f), ascending numbers of the frames, from 0.
        length: of the window.
        interpolate: whether the head interpolates its joints over the other frames.
    """

    features: Tensor
    frames: Tensor
    length: int
    interpolate: bool


@MODELS.register_module()
class HourglassTokenizer(BaseModule):
    """A lifter's backbone that runs its later layers on fewer frames.

    Args:
        backbone: config of a `MixSTE` (or a class with its `embed`, `run_layer`, `finish`,
            `temporal_qkv`, such as `MotionAGFormer`), or of mmpose's DSTFormer.
        schedule: {layer: frames}: before layer n, counted from 0, that many frames are kept. The
            layers are 1 or more, since position is added in layer 0; frames fall.
        pruner: how frames are chosen: 'TPC' by density peaks of the tokens, 'TPA' by the attention
            that they get in the layer before, 'TPMo' by the motion of the keypoints, 'TPS' evenly.
        recovery: 'TRA' attends to the kept frames with a query a frame; 'TRI' interpolates the
            joints, in `LiftingHead`; None gives the kept frames alone, with the center frame among
            them, for models of the center frame.
        num_heads: of attention, in the backbone and in TRA.

    Raises:
        ValueError: a schedule that does not fall, or other layers, pruners or recoveries.
    """

    causal = False

    def __init__(
        self,
        backbone: dict[str, Any],
        schedule: dict[int, int],
        pruner: str = 'TPC',
        recovery: str | None = 'TRA',
        num_heads: int = 8,
        init_cfg: dict | None = None,
    ):
        super().__init__(init_cfg)
        self.backbone = MODELS.build(backbone)
        steps = steps_of(self.backbone)
        self.schedule = check_schedule(schedule, steps.depth, steps.seq_len)
        if hasattr(steps, 'shorten'):
            steps.shorten(self.schedule)
        if pruner not in PRUNERS or recovery not in RECOVERIES:
            raise ValueError(
                f'pruner={pruner!r}, recovery={recovery!r}; pruners are {", ".join(PRUNERS)}, '
                "recoveries 'TRA', 'TRI' and None"
            )
        self.pruner, self.num_heads = pruner, num_heads
        self.interpolate = recovery == 'TRI'
        self.recovery = None
        self.positions = nn.ParameterList()
        if recovery == 'TRA':
            bias = getattr(steps, 'qkv_bias', True)
            self.recovery = CrossAttention(steps.seq_len, steps.width, num_heads, bias)
            for kept in self.schedule.values():
                position = nn.Parameter(torch.zeros(1, kept, steps.width))
                self.positions.append(nn.init.trunc_normal_(position, std=0.02))

    def forward(
        self, keypoints: Tensor, frames: dict[int, Tensor] | None = None
    ) -> Tensor | KeptFrames:
        """Features of windows.

        Args:
            keypoints: (B, T, K, 2 or 3). A window that is shorter than the schedule asks for keeps
                what it has.
            frames: {layer: (B, f)} frames to keep, ascending numbers within those of the layer
                before, instead of choosing them.

        Returns:
            (B, T, K, C) after TRA, else `KeptFrames`.
        """
        steps = steps_of(self.backbone)
        tokens = steps.embed(keypoints)
        numbers = torch.arange(keypoints.shape[1], device=keypoints.device)
        numbers = numbers.expand(len(keypoints), -1)
        points, attention = list(self.schedule), None
        for layer in range(steps.depth):
            if layer in self.schedule:
                chosen = (frames or {}).get(layer)
                if chosen is None:
                    kept = min(self.schedule[layer], tokens.shape[1])
                    chosen = self.choose(kept, tokens, numbers, keypoints, attention)
                tokens, numbers = take(tokens, chosen), numbers.gather(1, chosen)
                if self.recovery is not None:
                    position = self.positions[points.index(layer)]
                    tokens = tokens + position[:, : tokens.shape[1], None]
            is_read = self.pruner == 'TPA' and layer + 1 in self.schedule
            received = AttentionReceived(steps, layer, self.num_heads) if is_read else nullcontext()
            with received as attention:
                tokens = steps.run_layer(layer, tokens)
        tokens = steps.finish(tokens)
        if self.recovery is not None:
            return self.recovery(tokens, keypoints.shape[1])
        return KeptFrames(tokens, numbers, keypoints.shape[1], self.interpolate)

    def choose(
        self,
        kept: int,
        tokens: Tensor,
        numbers: Tensor,
        keypoints: Tensor,
        attention: 'AttentionReceived | None' = None,
    ) -> Tensor:
        """Frames to keep, (B, kept), ascending numbers within the frames of `tokens`.

        Args:
            tokens: (B, f, K, C). numbers: (B, f), of their frames in the window.
            keypoints: (B, T, K, 2 or 3), of the window.
            attention: in the layer before, for 'TPA'.
        """
        count = tokens.shape[1]
        if self.pruner == 'TPS':
            scores = even_scores(count, kept, tokens.device).expand(len(tokens), -1)
        elif self.pruner == 'TPMo':
            scores = take(motion(keypoints), numbers)
        elif self.pruner == 'TPA':
            scores = attention.scores(len(tokens))
        else:
            scores = density_peaks(tokens.mean(2))
        if self.recovery is None and not self.interpolate:
            center = numbers == (keypoints.shape[1] - 1) // 2
            scores = scores.masked_fill(center, torch.inf)
        return best(scores, kept)


def check_schedule(schedule: dict[int, int], depth: int, seq_len: int) -> dict[int, int]:
    """The schedule in the order of its layers; ValueError unless frames fall at layers 1 to depth.

    Keys may be strings, as `--cfg-options` and JSON have them.
    """
    ordered = {int(layer): int(schedule[layer]) for layer in sorted(schedule, key=int)}
    counts = [seq_len, *ordered.values()]
    falls = all(0 < after <= before for before, after in zip(counts, counts[1:], strict=False))
    if not ordered or not falls or not all(0 < layer < depth for layer in ordered):
        raise ValueError(
            f'schedule={schedule}; give {{layer: frames}} with layers of 1 to {depth - 1} and '
            f'frames that fall from at most {seq_len}'
        )
    return ordered


def density_peaks(tokens: Tensor, k: int = 2, noise: Tensor | None = None) -> Tensor:
    """Scores of tokens as centers of clusters (Rodriguez and Laio, 2014), as HoT has them.

    Density times the distance to the nearest token of higher density; the densest token has the
    largest distance instead. With k = 2, a token is its own first neighbor, so that two mutual
    nearest neighbors have equal densities.

    Args:
        tokens: (B, N, C). noise: (B, N), added to densities; the authors draw up to 1e-6.

    Returns:
        (B, N), float64.
    """
    tokens = tokens.detach().double()
    # Exact differences: equal tokens have the distance 0, and distances are symmetric.
    apart = torch.cdist(tokens, tokens, compute_mode='donot_use_mm_for_euclid_dist')
    apart = apart / tokens.shape[2] ** 0.5
    nearest = apart.topk(min(k, apart.shape[1]), largest=False).values
    density = (-nearest.square().mean(-1)).exp()
    if noise is not None:
        density = density + noise
    higher = density[:, None, :] > density[:, :, None]  # (B, of whom, who)
    largest = apart.flatten(1).amax(1)[:, None, None]
    return torch.where(higher, apart, largest).amin(-1) * density


def motion(keypoints: Tensor) -> Tensor:
    """How far keypoints moved since the frame before, (B, T, K, 2 or 3) -> (B, T)."""
    steps = keypoints[..., :2].detach().double().diff(dim=1).abs().sum((2, 3))
    return F.pad(steps, (1, 0))


def even_frames(count: int, kept: int, device: torch.device | None = None) -> Tensor:
    """Numbers of `kept` frames spread over 0 to count - 1: floor(i (count - 1) / (kept - 1))."""
    steps = torch.arange(kept, device=device)
    return steps * (count - 1) // max(kept - 1, 1)


def even_scores(count: int, kept: int, device: torch.device | None = None) -> Tensor:
    """Scores (1, count) whose best are `even_frames`; that nearest to the middle is the least."""
    scores = torch.zeros(1, count, dtype=torch.float64, device=device)
    chosen = even_frames(count, kept, device)
    scores[0, chosen] = 1 + (chosen - (count - 1) / 2).abs().to(scores)
    return scores


def best(scores: Tensor, kept: int) -> Tensor:
    """Ascending places of the highest scores, (B, N) -> (B, kept); among equals, the first."""
    order = scores.sort(dim=1, descending=True, stable=True).indices
    return order[:, :kept].sort(1).values


def take(values: Tensor, frames: Tensor) -> Tensor:
    """values[b, frames[b]]: (B, N, ...) and (B, f) -> (B, f, ...)."""
    return values[torch.arange(len(values), device=values.device)[:, None], frames]


def interpolate_frames(values: Tensor, frames: Tensor, length: int) -> Tensor:
    """Fill a window linearly between given frames; before the first and after the last, repeat it.

    Args:
        values: (B, f, ...), of the frames. frames: (B, f), ascending, each once.

    Returns:
        (B, length, ...).
    """
    wanted = torch.arange(length, device=values.device).expand(len(values), -1).contiguous()
    right = torch.searchsorted(frames.contiguous(), wanted).clamp(max=frames.shape[1] - 1)
    left = (right - 1).clamp(min=0)
    start, end = frames.gather(1, left), frames.gather(1, right)
    share = ((wanted - start) / (end - start).clamp(min=1)).clamp(0, 1).to(values.dtype)
    share = share.reshape(*share.shape, *[1] * (values.dim() - 2))
    return torch.lerp(take(values, left), take(values, right), share)


class CrossAttention(nn.Module):
    """TRA: a learned query for each frame of the window attends to the kept frames of its joint."""

    def __init__(self, length: int, width: int, num_heads: int, qkv_bias: bool = True):
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.init.trunc_normal_(nn.Parameter(torch.zeros(1, length, width)), std=0.02)
        self.q, self.k, self.v = (nn.Linear(width, width, qkv_bias) for _ in range(3))
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor, length: int) -> Tensor:
        """(B, f, K, C) -> (B, length, K, C)."""
        kept = tokens.transpose(1, 2).flatten(0, 1)  # (B*K, f, C)
        query = self.query[:, :length].expand(len(kept), -1, -1)
        q, k, v = (
            split_heads(layer(x), 1, self.num_heads)[0]
            for layer, x in ((self.q, query), (self.k, kept), (self.v, kept))
        )
        mixed = F.scaled_dot_product_attention(q, k, v)
        found = query + self.proj(mixed.transpose(1, 2).flatten(2))
        return found.unflatten(0, (len(tokens), -1)).transpose(1, 2)


class AttentionReceived:
    """Keeps what temporal attention computes while a layer runs; nothing is computed twice."""

    def __init__(self, steps: Any, layer: int, num_heads: int):
        self.modules, self.frames_inside = steps.temporal_qkv(layer)
        self.num_heads, self.qkv = num_heads, []

    def __enter__(self) -> 'AttentionReceived':
        self.hooks = [module.register_forward_hook(self._keep) for module in self.modules]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for hook in self.hooks:
            hook.remove()

    def _keep(self, module, args, out):
        self.qkv.append(out.detach())

    def scores(self, batch: int) -> Tensor:
        """Attention that each frame gets, a mean over joints, heads and frames, (B, f)."""
        return sum(self._received(qkv, batch) for qkv in self.qkv)

    def _received(self, qkv, batch):
        if not self.frames_inside:  # (B*f, K, 3C)
            qkv = qkv.unflatten(0, (batch, -1)).transpose(1, 2).flatten(0, 1)
        q, k, _ = split_heads(qkv, 3, self.num_heads)  # (B*K, heads, f, C / heads)
        weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)
        return weights.mean((1, 2)).unflatten(0, (batch, -1)).mean(1)


def steps_of(backbone: nn.Module) -> Any:
    """The backbone, or mmpose's DSTFormer, as the steps that `HourglassTokenizer` runs.

    Raises:
        TypeError: a class without these steps.
    """
    if hasattr(backbone, 'run_layer'):
        return backbone
    if type(backbone).__name__ == 'DSTFormer':
        return DSTFormerSteps(backbone)
    raise TypeError(
        f'{type(backbone).__name__} does not show its layers; it needs the attributes depth, width '
        'and seq_len, and the methods embed, run_layer, finish and temporal_qkv, as MixSTE has them'
    )


class DSTFormerSteps:
    """The forward pass of mmpose's DSTFormer in steps, see `MixSTE`."""

    def __init__(self, network: nn.Module):
        self.network = network
        self.depth, self.width = len(network.blocks_st), network.feat_size
        self.seq_len = network.temp_embed.shape[1]
        self.keypoints_shape = network.spat_embed.shape[1], network.in_channels

    def embed(self, keypoints: Tensor) -> Tensor:
        """(B, T, K, in_channels) -> tokens (B, T, K, width)."""
        check_window(keypoints, self.keypoints_shape, self.seq_len)
        tokens = self.network.joints_embed(keypoints) + self.network.spat_embed
        return self.network.pos_drop(tokens + self.network.temp_embed[:, : tokens.shape[1]])

    def run_layer(self, index: int, tokens: Tensor) -> Tensor:
        """Both streams of a layer and their mean by learned weights."""
        batch, length = tokens.shape[:2]
        flat = tokens.flatten(0, 1)
        first = self.network.blocks_st[index](flat, length)
        second = self.network.blocks_ts[index](flat, length)
        if self.network.att_fuse:
            weights = self.network.attn_regress[index](torch.cat((first, second), -1)).softmax(-1)
            mixed = first * weights[..., :1] + second * weights[..., 1:]
        else:
            mixed = (first + second) / 2
        return mixed.unflatten(0, (batch, length))

    def finish(self, tokens: Tensor) -> Tensor:
        """Tokens after the last layer -> features."""
        return self.network.norm(tokens)

    def temporal_qkv(self, index: int) -> tuple[list[nn.Module], bool]:
        """See `MixSTE.temporal_qkv`."""
        streams = self.network.blocks_st, self.network.blocks_ts
        return [blocks[index].attn_t.qkv for blocks in streams], False
