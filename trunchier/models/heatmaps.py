"""A top-down pose model without mmpose, for prediction: backbone, neck, deconvolutions, heatmaps.

The modules and their names are those of mmpose's TopdownPoseEstimator and HeatmapHead, so they load
the same checkpoints and give the same heatmaps. Training, losses and decoding need mmpose's.
"""

from typing import Any

from mmengine.registry import MODELS
from torch import Tensor, nn

from .necks.stage_adapter import StageAdapter

PADDINGS = {4: (1, 0), 3: (1, 1), 2: (0, 0)}  # kernel: padding, output padding
UNUSED = {'type', 'loss', 'decoder', 'init_cfg'}  # options that change nothing in prediction
KNOWN = {'in_channels', 'out_channels', 'deconv_out_channels', 'deconv_kernel_sizes', 'final_layer'}


class HeatmapHead(nn.Module):
    """Deconvolutions with stride 2, then a convolution to heatmaps.

    Raises:
        ValueError: a deconvolution of another kernel than 4, 3 or 2.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        deconv_out_channels: tuple[int, ...] | None = (256, 256, 256),
        deconv_kernel_sizes: tuple[int, ...] | None = (4, 4, 4),
        final_layer: dict[str, Any] | None = None,
    ):
        super().__init__()
        layers: list[nn.Module] = []
        for width, kernel in zip(deconv_out_channels or (), deconv_kernel_sizes or (), strict=True):
            if kernel not in PADDINGS:
                raise ValueError(f'deconv_kernel_sizes has {kernel}; give 4, 3 or 2')
            padding = PADDINGS[kernel]
            layers += [
                nn.ConvTranspose2d(in_channels, width, kernel, 2, *padding, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
            in_channels = width
        self.deconv_layers = nn.Sequential(*layers) if layers else nn.Identity()
        options = dict(kernel_size=1) | (final_layer or {})
        self.final_layer = nn.Conv2d(in_channels, out_channels, **options)

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        """(B, C, h, w) of the last stage -> heatmaps (B, K, H, W)."""
        return self.final_layer(self.deconv_layers(features[-1]))


class TopdownPoseEstimator(nn.Module):
    """Images (B, 3, H, W), normalized, to heatmaps by `head(extract_feat(images))`."""

    def __init__(self, backbone: dict, head: dict, neck: dict | None = None):
        super().__init__()
        self.backbone = MODELS.build(backbone)
        if neck:
            self.neck = MODELS.build(neck)
        self.head = HeatmapHead(**{name: head[name] for name in head.keys() & KNOWN})

    @property
    def with_neck(self) -> bool:
        """Whether there is an adapter between backbone and head."""
        return hasattr(self, 'neck')

    def extract_feat(self, images: Tensor) -> tuple[Tensor, ...]:
        """Features of the stages, the last of which the head takes."""
        features = self.backbone(images)
        return self.neck(features) if self.with_neck else features


def is_plain(model: dict[str, Any]) -> bool:
    """Whether the model of a config can be built here: mmpose's classes, with known options."""
    head, neck = model.get('head') or {}, model.get('neck') or dict(type=StageAdapter.__name__)
    return (
        (model['type'], head.get('type'), neck['type'])
        == (TopdownPoseEstimator.__name__, HeatmapHead.__name__, StageAdapter.__name__)
        and not head.keys() - KNOWN - UNUSED
        and head.get('final_layer', {}) is not None
    )


def plain_pose_model(model: dict[str, Any]) -> TopdownPoseEstimator:
    """The model of a config that `is_plain`, on the CPU, in eval mode, with random weights."""
    backbone = dict(model['backbone'], init_cfg=None)
    return TopdownPoseEstimator(backbone, model['head'], model.get('neck')).eval()
