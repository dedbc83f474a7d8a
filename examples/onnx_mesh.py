"""Body of a person from an exported mesh model, with numpy and onnxruntime.

    python examples/onnx_mesh.py VMHMR2.0-T-S2.onnx photo.jpg [x1 y1 x2 y2]

Prints where the body stands, and the joints if the model was exported `--with-body`; writes all
outputs and `translation` to body.npz. The image is a .npy file of (H, W, 3) RGB; Pillow reads other
formats. The model is written by `trunchier export VMHMR2.0-T-S2 CHECKPOINT [--with-body]`; its
metadata states crop and normalization.
"""

import json
import sys
from typing import Any

import numpy as np
import onnxruntime

FIELD_OF_VIEW = np.deg2rad(60)  # along the longer side of a photo whose lens is unknown


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
) -> tuple[np.ndarray, np.ndarray, float]:
    """Crop the middle columns of the square around a person.

    Args:
        image: (H, W, 3) uint8, RGB.
        box: (4,), x1, y1, x2, y2 in pixels.
        meta: metadata of the exported model.

    Returns:
        The model's input (1, 3, height, width); center (2,) and side of the square, in pixels of
        the image.
    """
    center = (box[:2] + box[2:]) / 2
    width, height = (box[2:] - box[:2]) * meta['box_padding']
    wide, tall = meta['box_aspect']
    side, size = max(width, height * wide / tall, height, width * tall / wide), meta['crop_size']
    at = (np.arange(size) - size / 2) * side / size
    margin = size // 8  # see `input_size`
    crop = resample(image.astype(float), center[1] + at).swapaxes(0, 1)
    crop = resample(crop, center[0] + at[margin : size - margin]).round()
    crop = (crop - meta['mean']) / meta['std']
    return crop.transpose(2, 1, 0)[None].astype(np.float32), center, side


model, path, *box = sys.argv[1:]
session = onnxruntime.InferenceSession(model, providers=['CPUExecutionProvider'])
meta = {k: json.loads(v) for k, v in session.get_modelmeta().custom_metadata_map.items()}
image = read_image(path)
height, width = image.shape[:2]
box = np.array(box or (0, 0, width, height), float)
crop, center, side = crop_person(image, box, meta)
names = [output.name for output in session.get_outputs()]
arrays = session.run(names, {'images': crop})
person = {name: array[0] for name, array in zip(names, arrays, strict=True)}

# From the camera (s, tx, ty) of the crop to that of the image: x right, y down, z forward, meters.
focal = max(height, width) / 2 / np.tan(FIELD_OF_VIEW / 2)
scale, x, y = person['camera']
shift = 2 * (center - [width / 2, height / 2]) / (side * scale)
translation = np.array([x + shift[0], y + shift[1], 2 * focal / (side * scale)])
print('translation', *translation.round(3), 'm; focal length', round(focal, 1), 'pixels')
for index, name in enumerate(meta['joint_names'] if 'joints' in person else ()):
    pixel = center + side * person['crop_keypoints'][index]
    joint = person['joints'][index] + translation
    print(f'{name:<18}', *(f'{value:9.2f}' for value in (*pixel, *joint)))
np.savez('body.npz', translation=translation, **person)
