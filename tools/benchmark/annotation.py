"""Overhead of `trunchier annotate`: tiny images, a detector and a teacher that cost nothing."""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import torch

from benchmark.report import Table, progress
from trunchier.annotation.annotate import annotate
from trunchier.annotation.filters import Thresholds
from trunchier.annotation.merge import merge
from trunchier.annotation.views import Views
from trunchier.annotation.work import Workplace
from trunchier.conventions import COCO_17, COCO_17_FLIP
from trunchier.inference.detection import whole_image
from trunchier.inference.predictor import Crop, Output

SIDE = 32  # pixels of an image


class TrivialTeacher:
    """All keypoints of a person are at the box's middle: a predictor that costs nothing."""

    keypoint_names = COCO_17
    dataset_meta = dict(flip_indices=list(COCO_17_FLIP))
    fields = dict(keypoints=(17, 2), keypoint_scores=(17,))
    finds_people = has_meshes = False
    faces, smoothed, precision, painter_type = None, (), 'fp32', SimpleNamespace

    def crop(self, image: np.ndarray, box: np.ndarray, focal: float | None = None) -> Crop:
        center, size = (box[:2] + box[2:4]) / 2, box[2:4] - box[:2]
        pixels = torch.from_numpy(image[:SIDE, :SIDE].transpose(2, 0, 1))
        return Crop(pixels, center, size, image.shape[:2])

    def forward(self, crops: list[Crop]) -> Output:
        return Output({}, lambda: None)

    def decode(self, output: Output, crops: list[Crop]) -> list[dict[str, np.ndarray]]:
        scores = np.ones(17, np.float32)
        return [
            dict(keypoints=np.float32(np.tile(crop.center, (17, 1))), keypoint_scores=scores)
            for crop in crops
        ]

    def metainfo(self, shape: tuple[int, int], focal: float | None = None) -> dict:
        return {}


def write_images(folder: Path, count: int) -> None:
    """Images of noise, SIDE pixels wide."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for index in range(count):
        noise = generator.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        cv2.imwrite(str(folder / f'{index:06d}.jpg'), noise)


def add_arguments(add: Callable) -> None:
    add('--num', type=int, default=10_000, metavar='N', help='images (default: 10000)')


def run(args: argparse.Namespace) -> Table:
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder / 'photos', args.num)
        work = Workplace(folder / 'out', dict(model='trivial', digest='', keypoints=COCO_17))
        trivial: Any = TrivialTeacher()
        given, teacher = [str(folder / 'photos')], Views(trivial)
        steps = {
            'annotate': lambda: annotate(given, work, teacher, whole_image),
            'skip what is done': lambda: annotate(given, work, teacher, whole_image),
            'merge': lambda: merge(work, Thresholds()),
        }
        for step, task in steps.items():
            begin, computed = time.perf_counter(), time.process_time()
            task()
            each = (time.perf_counter() - begin) / args.num
            computed = (time.process_time() - computed) / args.num
            rows.append(dict(step=step, ms=1e3 * each, cpu=1e3 * computed))
            progress(step)
    notes = [f'{args.num} images of {SIDE} x {SIDE}, one person each, on a local disk, one process']
    return Table('Annotation', dict(step='step', ms='ms per input', cpu='of a core'), rows, notes)
