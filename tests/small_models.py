"""Models small enough to run in milliseconds, with random weights, and clips to run them on."""

from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.config import Config

from trunchier.files.whole import whole_file
from trunchier.inference import writers
from trunchier.models.mesh.body import EMBEDDED_BODY

ROOT = Path(__file__).resolve().parents[1]
SWIN = dict(channels=(16, 32, 64, 64), depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 2))


def pose_config():
    """Config of a pose model of 0.1 M parameters, with everything else of the recipe."""
    cfg = Config.fromfile(ROOT / 'configs/pose2d/td-hm_swin-t-s2_8xb64-210e_coco-256x192.py')
    _shrink(cfg)
    cfg.model.head.deconv_out_channels = (16, 16)
    return cfg


def mesh_config():
    cfg = Config.fromfile(ROOT / 'configs/mesh/hmr2_swin-t-s2_8xb48-1000k_mix-256x192.py')
    _shrink(cfg)
    cfg.model.head.update(depth=1, num_heads=2, head_dim=8, mlp_dim=32)
    cfg.model.discriminator = None
    return cfg


def _shrink(cfg):
    cfg.model.backbone.update(arch=SWIN, init_cfg=None)
    cfg.model.neck.update(in_channels=32, out_channels=64)
    cfg.model.head.in_channels = 64


def write_weights(cfg, path):
    """A checkpoint of random weights, as mmengine's runner writes it."""
    import mmpose.models  # noqa: F401  registers what the configs name
    from mmengine.registry import MODELS, init_default_scope

    init_default_scope('mmpose')
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    if cfg.model.type == 'TopdownPoseEstimator':
        model.head.final_layer.weight.data.normal_(0, 0.1)  # maxima that differ, scores to draw
    else:
        model.head.camera_out.bias.data += torch.tensor([0.0, 0.0, 0.5])
    torch.save(dict(state_dict=model.state_dict(), meta={}), path)


def noise(height, width, seed=0):
    """A picture with something to see at every scale: (height, width, 3) uint8."""
    rng = np.random.default_rng(seed)
    picture = np.zeros((height, width, 3), np.float32)
    for size, contrast in ((3, 120), (8, 90), (24, 30)):
        coarse = rng.uniform(0, contrast, (size, size, 3)).astype(np.float32)
        picture += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.uint8(picture)


def write_clip(path, frames=12, height=96, width=128, fps=10):
    """An MP4 of a picture that slides."""
    picture = noise(height, width + 8 * frames)
    with whole_file(path) as part:
        writer = writers.VideoWriter(part, fps, (height, width))
        for i in range(frames):
            writer.write(np.ascontiguousarray(picture[:, 8 * i : 8 * i + width]))
        writer.close()
    return path


def body():
    """Vertices (V, 3) of the embedded body as a camera sees it (y down, facing it), and faces."""
    with np.load(EMBEDDED_BODY) as arrays:
        return arrays['v_template'] * np.float32([1, -1, -1]), arrays['f']
