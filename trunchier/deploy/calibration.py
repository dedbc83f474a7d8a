"""Crops of people, from which scales of 8-bit numbers are found: of photos, or synthetic."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..datasets.crops import expand_to_aspect
from ..files.images import decode_image

CROPS = 48  # of which every third checks the scales that the others give
SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp')
PERSON = 1  # COCO's category
SEED = 1  # of synthetic people
REMEDY = 'give a folder of photos of people, or leave it out for synthetic people'


def calibration_crops(
    facts: dict[str, Any], folder: str | Path | None = None, num: int = CROPS
) -> np.ndarray:
    """Normalized crops as a model sees them.

    Args:
        facts: metadata of the model, see `graph.describe`.
        folder: images, searched recursively. A .json file of COCO annotations in it gives the boxes
            of people; without one, each image is taken for one person. None: synthetic people.
        num: at most, drawn evenly from the folder.

    Returns:
        (N, 3, H, W), float32.

    Raises:
        FileNotFoundError: no such folder, or no image with a box in it.
        ValueError: an image or a file of annotations that cannot be read.
    """
    found = _synthetic() if folder is None else _photos(Path(folder), num)
    return np.stack([_crop(image, box, facts) for image, box in islice(found, num)])


def _synthetic() -> Iterator:
    from ..synthetic.people import SyntheticPeople

    people = SyntheticPeople(SEED)
    for index in range(1_000_000):
        sample = people[index]
        yield sample['image'][..., ::-1], sample['people'][0]['bbox']


def _photos(folder, num):
    if not folder.is_dir():
        raise FileNotFoundError(f'no folder {folder} to calibrate on; {REMEDY}')
    files = sorted(path for path in folder.rglob('*') if path.suffix.lower() in SUFFIXES)
    boxes = {}
    annotated = [boxes.update(_coco_boxes(path)) for path in sorted(folder.glob('*.json'))]
    found = [
        (path, box) for path in files for box in boxes.get(path.name, () if annotated else [None])
    ]
    if not found:
        boxed = f'; none of {len(files)} has a box in its .json files' if files else ''
        raise FileNotFoundError(f'no image of a person in {folder}{boxed}; {REMEDY}')
    for index in np.linspace(0, len(found) - 1, min(num, len(found))).round().astype(int):
        path, box = found[index]
        try:
            image = decode_image(path.read_bytes())
        except ValueError as error:
            raise ValueError(f'{path}: {error}; remove it from the folder') from error
        yield image, (0, 0, *image.shape[1::-1]) if box is None else box


def _coco_boxes(path):
    """{name of an image: boxes (x, y, w, h) of people}."""
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
        names = {image['id']: Path(image['file_name']).name for image in content['images']}
        boxes: dict[str, list] = {}
        for person in content['annotations']:
            if person.get('category_id', PERSON) != PERSON:
                continue
            box = np.float64(person['bbox'])
            if box.shape != (4,) or not (np.isfinite(box).all() and (box[2:] > 0).all()):
                raise ValueError(f'bbox is {person["bbox"]}; expected x, y, width, height')
            boxes.setdefault(names[person['image_id']], []).append(box)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        reason = f'{type(error).__name__}: {error}'
        raise ValueError(f'{path} holds no COCO annotations ({reason})') from error
    return boxes


def _crop(image, box, facts):
    """The input of a network: a padded box of the crop's aspect ratio; both tasks crop so."""
    width, height = facts['input_size']
    x, y, w, h = box
    size = expand_to_aspect((w, h), (width, height)) * facts['box_padding']
    factor = width / size[0]
    corner = (x + w / 2, y + h / 2) - size / 2
    matrix = np.array([[factor, 0, -factor * corner[0]], [0, factor, -factor * corner[1]]])
    pixels = cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR)
    if facts['channels'] == 'RGB':
        pixels = pixels[..., ::-1]
    normalized = (pixels - np.float32(facts['mean'])) / np.float32(facts['std'])
    return np.ascontiguousarray(normalized.transpose(2, 0, 1), np.float32)
