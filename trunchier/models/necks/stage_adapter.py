"""The adapter between a truncated backbone and a decoder: paper, section 4 and Figure 3."""

from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn


@MODELS.register_module()
class StageAdapter(BaseModule):
    """Resamples the last kept stage to 1/16 of the input.

    Stage 4 (1/32) passes a 2x2 deconvolution of stride 2, stage 2 (1/8) a 2x2 convolution of stride
    2, stage 3 (1/16) nothing; no norm, no activation. The kernel size is not in
    the text: only 2 reproduces the parameter columns of Tables 3 and 4. A map of odd size is padded
    with a row or column of zeros on the bottom or right before the convolution.

    Args:
        in_channels: channels of the last kept stage.
        out_channels: channels of the decoder: those of stage 3 in the paper.
        num_stages: kept stages, 2, 3 or 4.
        simple: end in a ReLU and bilinear upsampling by 4, for ViTPose's simple decoder.
        init_cfg: of mmengine; the default is PyTorch's initialization (the paper leaves it open).

    Raises:
        ValueError: `num_stages` is not 2, 3 or 4, or stage 3 with different channels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_stages: int,
        init_cfg: dict | None = None,
        simple: bool = False,
    ):
        super().__init__(init_cfg)
        self.num_stages, self.simple = num_stages, simple
        if num_stages == 4:
            self.proj = nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2)
        elif num_stages == 3:
            if in_channels != out_channels:
                raise ValueError(
                    f'stage 3 has no layer: out_channels must be {in_channels}, got {out_channels}'
                )
            self.proj = nn.Identity()
        elif num_stages == 2:
            self.proj = nn.Conv2d(in_channels, out_channels, 2, stride=2)
        else:
            raise ValueError(f'num_stages must be 2, 3 or 4, got {num_stages}')

    def forward(self, feats: tuple[Tensor, ...]) -> tuple[Tensor]:
        """Maps of all stages -> a tuple of one (B, out_channels, H/16, W/16) map; simple: 1/4."""
        x = feats[-1]
        if self.num_stages == 2:
            x = nn.functional.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
        x = self.proj(x)
        if self.simple:
            x = nn.functional.interpolate(x.relu(), scale_factor=4, mode='bilinear')
        return (x,)
