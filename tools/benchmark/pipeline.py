"""A video to its results with given boxes, beside the network alone at the same batch size."""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch

from benchmark.networks import DTYPES
from benchmark.report import Table
from benchmark.timing import interleaved
from trunchier.inference.inferencer import Inferencer
from trunchier.inference.writers import VideoWriter
from trunchier.models.create import create_model
from trunchier.weights.find import find_config


def add_arguments(add: Callable) -> None:
    add('--model', default='VMPose-T-S2', metavar='NAME', help='default: VMPose-T-S2')
    add('--frames', type=int, default=100, metavar='N', help='of 1280 x 720 (default: 100)')
    add('--people', type=int, default=1, metavar='N', help='boxes per frame (default: 1)')
    add('--batch', type=int, default=8, metavar='N', help='people per batch (default: 8)')
    add('--precision', choices=('fp32', 'bf16', 'fp16'), default='fp32')
    add('--draw', action='store_true', help='draw the results too')


def run(args: argparse.Namespace) -> Table:
    found = find_config(args.model)
    low = DTYPES[args.precision] if args.precision != 'fp32' else None
    with tempfile.TemporaryDirectory() as folder:
        weights, clip = Path(folder, 'random.pth'), Path(folder, 'clip.mp4')
        torch.save(dict(state_dict=create_model(args.model).state_dict()), weights)
        write_clip(clip, args.frames)
        inferencer = Inferencer(
            args.model, str(weights), device=args.device, batch_size=args.batch,
            precision=args.precision, track=False,
        )  # fmt: skip
        boxes = np.array([[100.0 + 40 * i, 60, 500 + 40 * i, 700] for i in range(args.people)])
        images = torch.randn(args.batch, 3, 256, 192, device=args.device)
        compute = inferencer.predictor.compute
        flips = getattr(inferencer.predictor, 'flip_test', False)
        reports = []

        def alone():
            with torch.no_grad(), torch.autocast(args.device, low, enabled=low is not None):
                compute(images)

        def everything():
            for _ in inferencer(str(clip), bboxes=boxes, return_vis=args.draw):
                pass
            reports.append(inferencer.report)

        tasks, rounds = {'alone': alone, 'all': everything}, max(3, args.rounds // 2)
        times = interleaved(tasks, rounds, args.seconds, args.device)
    rate = args.batch / times['alone'].median
    through = args.frames * args.people / times['all'].median
    report = reports[-1]
    rows = [
        dict(what='network alone', rate=rate, spread=100 * times['alone'].spread),
        dict(what='video to results', rate=through, spread=100 * times['all'].spread,
             share=through / rate),
    ]  # fmt: skip
    rows += [
        dict(what=f'stage {stage}', rate=args.frames * args.people / seconds,
             share=seconds / report.elapsed)
        for stage, seconds in report.seconds.most_common() if seconds > 0
    ]  # fmt: skip
    columns = dict(what='', rate='people/s', spread='+- %', share='share')
    notes = [
        'Share: relative to the network alone; of a stage, busy time relative to the elapsed time '
        f'(stages overlap). {"Two passes (flip_test)" if flips else "One pass"} per person'
    ]
    title = f'{found.name}, video of 1280 x 720, batch {args.batch}, {args.precision}'
    return Table(title, columns, rows, notes)


def write_clip(path: Path, frames: int, size: tuple[int, int] = (720, 1280)) -> None:
    """Write a video (H, W) of moving noise, which is hard to compress."""
    (height, width), rng = size, np.random.default_rng(0)
    coarse = rng.integers(0, 255, (height // 8, width // 6, 3), dtype=np.uint8)
    wide = cv2.resize(coarse, (width * 5 // 4, height), interpolation=cv2.INTER_CUBIC)
    video = VideoWriter(path, 30, size)
    for index in range(frames):
        shift = index % (width // 4)
        video.write(wide[:, shift : shift + width])
    video.close()
