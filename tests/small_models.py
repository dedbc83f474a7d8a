"""Models small enough to run in milliseconds, with random weights, and clips to run them on."""

from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

from trunchier.files.whole import whole_file
from trunchier.inference import writers
from trunchier.models.mesh.body import EMBEDDED_BODY
from trunchier.weights.find import build_model

ROOT = Path(__file__).resolve().parents[1]
SWIN = dict(channels=(16, 32, 64, 64), depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 2))
ROWS = dict(channels=(20, 40, 60, 80), depths=(2, 1, 1, 1))
BACKBONES = {
    'swin': dict(type='TruncatedSwin', arch=dict(SWIN, depths=(2, 1, 1, 1))),
    'gmf': dict(type='TruncatedGMF', arch=dict(ROWS, mlp_ratios=(2, 2, 2, 2))),
    'vmamba': dict(type='TruncatedVMamba', arch=ROWS),
}


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


CONFIGS = {'pose': pose_config, 'mesh': mesh_config}


def _shrink(cfg):
    cfg.model.backbone.update(arch=SWIN, init_cfg=None)
    cfg.model.neck.update(in_channels=32, out_channels=64)
    cfg.model.head.in_channels = 64


def config(task, family='swin'):
    """Config of a small model of a task, on two stages of a family's backbone."""
    cfg = CONFIGS[task]()
    cfg.model.backbone = dict(BACKBONES[family], num_stages=2)
    cfg.model.neck.in_channels = BACKBONES[family]['arch']['channels'][1]
    return cfg


def backbone(family, **options):
    """Small backbone of a family, see `lively`."""
    return lively(MODELS.build(dict(BACKBONES[family], **options)))


def estimator(task, family='swin'):
    """Small model of a task, see `lively`; its outputs vary from crop to crop."""
    model = lively(build_model(config(task, family)))
    if task == 'pose':
        model.head.final_layer.weight.data.normal_(0, 0.1)
    return model


@torch.no_grad()
def lively(model):
    """In eval mode, with norms, biases and statistics unlike those of initialization."""
    torch.manual_seed(0)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and ('norm' in name or name.endswith(('bias', 'bias_table'))):
            tensor.copy_(torch.rand_like(tensor) + 0.5)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    nn.Module.eval(model)  # mmpretrain's ViT returns None
    return model


def write_weights(cfg, path):
    """A checkpoint of random weights, as mmengine's runner writes it."""
    import mmpose.models  # noqa: F401  registers what the configs name
    from mmengine.registry import init_default_scope

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


def keypoints(infer, given, **options):
    """Those of each result."""
    return [result.pred_instances.keypoints for result in infer(given, **options)]


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
