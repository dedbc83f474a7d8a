"""Keypoints of a person from an exported pose model, with numpy and onnxruntime.

    python examples/onnx_pose.py VMPose-T-S2.onnx photo.jpg [x1 y1 x2 y2]

The image is a .npy file of (H, W, 3) RGB; Pillow reads other formats. Without a box the whole image
is taken for one person. The model is written by `trunchier export VMPose-T-S2 CHECKPOINT`; its
metadata states crop and normalization.
"""

import json
import sys
from typing import Any

import numpy as np
import onnxruntime


def read_image(path: str) -> np.ndarray:
    """(H, W, 3) uint8, RGB."""
    if path.endswith('.npy'):
        return np.load(path)
    from PIL import Image, ImageOps

    return np.array(ImageOps.exif_transpose(Image.open(path)).convert('RGB'))


def resample(image: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Rows of `image` at fractional positions, by linear interpolation; black outside."""
    low = np.floor(at).astype(int)
    padded = np.pad(image, ((1, 1), (0, 0), (0, 0)))
    lower, upper = (padded[np.clip(low + step, -1, len(image)) + 1] for step in (0, 1))
    return lower + (at - low)[:, None, None] * (upper - lower)


def crop_person(
    image: np.ndarray, box: np.ndarray, meta: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Crop the box of a person, as UDP does.

    Args:
        image: (H, W, 3) uint8, RGB.
        box: (4,), x1, y1, x2, y2 in pixels.
        meta: metadata of the exported model.

    Returns:
        The model's input (1, 3, height, width); the position (2,) of its first pixel and the step
        (2,) between its pixels, x before y, in pixels of the image.
    """
    width, height = meta['input_size']
    size = (box[2:] - box[:2]) * meta['box_padding']
    size = np.maximum(size, size[::-1] * [width / height, height / width])
    corner, step = (box[:2] + box[2:] - size) / 2, size / [width - 1, height - 1]
    crop = resample(image.astype(float), corner[1] + step[1] * np.arange(height)).swapaxes(0, 1)
    crop = resample(crop, corner[0] + step[0] * np.arange(width)).round()
    crop = (crop - meta['mean']) / meta['std']
    return crop.transpose(2, 1, 0)[None].astype(np.float32), corner, step


def locate(heatmap: np.ndarray) -> np.ndarray:
    """Subpixel position (x, y) of a heatmap's maximum by UDP's decoding (DARK)."""
    kernel = np.exp(-(np.arange(-5, 6) ** 2) / 8)
    smooth = np.apply_along_axis(np.convolve, 0, heatmap, kernel, 'same')
    smooth = np.apply_along_axis(np.convolve, 1, smooth, kernel, 'same')
    smooth = np.log((smooth * heatmap.max() / smooth.max()).clip(1e-3, 50))
    y, x = np.unravel_index(heatmap.argmax(), heatmap.shape)
    (a, b, _), (c, d, e), (_, f, g) = np.pad(smooth, 1, mode='edge')[y : y + 3, x : x + 3]
    mixed = (a - b - c + 2 * d - e - f + g) / 2
    hessian = np.array([[c - 2 * d + e, mixed], [mixed, b - 2 * d + f]]) + 1.2e-7 * np.eye(2)
    return np.array([x, y]) - np.linalg.solve(hessian, [(e - c) / 2, (f - b) / 2])


model, path, *box = sys.argv[1:]
session = onnxruntime.InferenceSession(model, providers=['CPUExecutionProvider'])
meta = {k: json.loads(v) for k, v in session.get_modelmeta().custom_metadata_map.items()}
image = read_image(path)
box = np.array(box or (0, 0, image.shape[1], image.shape[0]), float)
crop, corner, step = crop_person(image, box, meta)
heatmaps = session.run(['heatmaps'], {'images': crop})[0][0]
shrink = (np.array(crop.shape[:1:-1]) - 1) / (np.array(heatmaps.shape[:0:-1]) - 1)
for name, heatmap in zip(meta['keypoint_names'], heatmaps, strict=True):
    x, y = corner + step * shrink * locate(heatmap)
    print(f'{name:<16}{x:9.2f}{y:9.2f}{heatmap.max():8.3f}')
