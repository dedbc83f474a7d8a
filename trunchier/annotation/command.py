"""The commands `annotate` and `merge`: labels for any images by a teacher, on any machines.

`trunchier annotate` and `trunchier merge` run `main` and `main_of_merge`.
"""

import argparse
import errno
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..files import check_writable, file_digest
from ..files.images import MAX_PIXELS
from ..files.processes import clean_end
from ..inference import detection, sources
from ..inference.command import NAMES_OF_MODELS, messages, parse_frames, parse_models
from ..inference.distributed import CHUNK
from ..inference.inferencer import Inferencer
from ..inference.runtimes import add_runtime, runtime_for
from ..inference.screen import printable
from .annotate import PEOPLE_PER_BATCH, annotate
from .check import load_check
from .filters import Thresholds
from .merge import Merged, merge
from .on_ray import annotate_on_ray
from .views import Views
from .work import Shard, Workplace, parse_shard, shard_of_job

HELP = """Annotate images and videos by a teacher: a data set to train on, of what it is sure of.

INPUT is an image, a video, a folder of them, a quoted glob or an http(s) address. Processes that
share OUT share the work: each input is annotated once, done inputs are skipped, and a process that
is started later takes over what a killed one left. One process also merges; after several, run
`trunchier merge OUT`.
"""
EXAMPLES = """examples:
  trunchier annotate photos/ --model ViTPose-H --out labels
  trunchier annotate photos/ clip.mp4 --frames 0::10 --model HMR2.0-H --out bodies
  trunchier annotate photos/ --model ViTPose-H --out labels --shard 3/16
  sbatch --array=0-15 --wrap "trunchier annotate photos/ --model ViTPose-H --out labels"
  trunchier merge labels --agreement 0.7         other thresholds, nothing is computed again

writes OUT/person_keypoints.json (COCO), people.npz (of mesh models), report.html and sheet.jpg

exit codes: 0 done; 1 error; 2 wrong command line; 3 done, but inputs are missing or have errors
"""
EXIT_ERROR, EXIT_INCOMPLETE = 1, 3
LISTED = 5

log = logging.getLogger('trunchier')


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `trunchier annotate`; returns its exit code."""
    args = _parser().parse_args(arguments)
    return _reported(args.quiet, lambda: _annotate(args))


def main_of_merge(arguments: Sequence[str] | None = None) -> int:
    """Run `trunchier merge`; returns its exit code."""
    args = _parser_of_merge().parse_args(arguments)

    def work():
        return _tell(merge(Workplace(args.out), _thresholds(args), args.own_keypoints))

    return _reported(args.quiet, work)


def _reported(quiet: bool, work: Callable[[], int]) -> int:
    try:
        with messages(quiet, False), clean_end():
            return work()
    except SystemExit as stop:  # by a signal
        print('interrupted; the same command continues', file=sys.stderr)
        return int(stop.code or 0)
    except (OSError, ValueError, TypeError, RuntimeError, ImportError, MemoryError) as error:
        text = str(error) or type(error).__name__
        if getattr(error, 'errno', None) == errno.ENOSPC:
            text += '; free some space, the same command continues'
        print(f'error: {printable(text)}', file=sys.stderr)
        return EXIT_ERROR


def _annotate(args):
    shard = args.shard or shard_of_job()
    check_writable(args.out)
    named = [[name] if name else [] for name in (args.model, args.weights)]
    (found,) = parse_models(*named, args.task, [])
    options: dict[str, Any] = dict(body_model=args.body_model) if args.body_model else {}
    common = dict(device=args.device, precision=args.precision, trust=args.trust)
    common['runtime'] = args.runtime
    if args.runtime is None and args.engine != 'ray':  # whose inputs may be tars
        common['runtime'] = runtime_for(sources.find(args.inputs), args.frames)
    infer = Inferencer(
        found,
        detector=args.detector,
        detector_weights=args.detector_weights,
        score_thr=args.score_thr,
        **common,
        **options,
    )
    detector = detection.GivenBoxes.of(args.boxes) if args.boxes else infer.detector
    check = load_check(args.check_pose, args.check_weights, **common)
    teacher = Views(infer.predictor, args.mirrored, args.scaled, check.predictor if check else None)
    work = Workplace(args.out, _settings(args, infer, detector, check))
    if args.engine == 'ray':
        return _annotate_on_ray(args, infer, work)
    progress = annotate(
        args.inputs, work, teacher, detector, shard, args.take_over, args.batch_size, args.frames,
        args.max_pixels,
    )  # fmt: skip
    log.info(
        '%d inputs annotated, %d people found; %d were done before, %d could not be read',
        progress.done, progress.people, progress.before, progress.unreadable,
    )  # fmt: skip
    for name, holder in list(progress.held.items())[:LISTED]:
        log.warning('%s is held by %s', printable(name), printable(holder))
    if shard.count > 1:
        log.info('shard %d of %d; when all are done: trunchier merge %s',
                 shard.index, shard.count, printable(args.out))  # fmt: skip
        return EXIT_INCOMPLETE if progress.held or progress.unreadable else 0
    return _tell(merge(work, _thresholds(args), args.own_keypoints))


def _annotate_on_ray(args, infer, work):
    paths = [name and os.path.abspath(name) if name and Path(name).is_file() else name
             for name in (args.model, args.weights, args.detector, args.body_model,
                          args.check_pose, args.check_weights)]  # fmt: skip
    model, weights, detector, body_model, *check = paths
    options: dict[str, Any] = dict(given=(model, weights, args.task), device=args.device)
    options |= dict(precision=args.precision, detector=detector, score_thr=args.score_thr)
    options |= dict(batch_size=args.batch_size, max_pixels=args.max_pixels, trust=args.trust)
    options |= dict(mirrored=args.mirrored, scaled=args.scaled, runtime=args.runtime)
    options |= dict(detector_weights=args.detector_weights, check=check)
    options |= dict(boxes=os.path.abspath(args.boxes)) if args.boxes else {}
    options |= dict(body_model=body_model) if body_model else {}
    before = annotate_on_ray(
        args.inputs, work, options, address=args.address, concurrency=args.workers,
        num_gpus=args.gpus, frames=args.frames, chunk=args.chunk,
    )  # fmt: skip
    log.info('%d images and parts of videos were done before', before)
    return _tell(merge(work, _thresholds(args), args.own_keypoints))


def _settings(args, infer, detector, check):
    """What parts depend on."""
    settings = dict(infer.settings, digest=file_digest(infer.weights)[:16])
    settings.pop('runtime', None)  # each machine may take its own: the numbers are the same
    settings |= dict(detector=detection.name_of(detector))
    if args.boxes:
        settings |= dict(detector=f'{Path(args.boxes).name} {file_digest(args.boxes)[:16]}')
    settings |= dict(mirrored=args.mirrored, scaled=args.scaled, max_pixels=args.max_pixels)
    if check:
        settings |= dict(check_pose=check.name, check_digest=file_digest(check.weights)[:16])
    frames = args.frames
    settings['frames'] = [frames.start, frames.stop, frames.step]
    return settings | dict(keypoints=list(infer.predictor.keypoint_names))


def _tell(merged: Merged) -> int:
    log.info('%s', printable(merged))
    for name, why in (merged.missing + merged.unreadable)[:LISTED]:
        log.warning('%s: %s', printable(name), printable(why))
    log.info('written: %s', printable(', '.join(map(str, merged.files))))
    return EXIT_INCOMPLETE if merged.missing or merged.unreadable else 0


# fmt: off
def _parser():
    parser = argparse.ArgumentParser(
        prog='trunchier annotate', description=HELP, epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add('inputs', nargs='+', metavar='INPUT', help='image, video, folder, glob or http(s) address')
    add('--out', required=True, metavar='OUT', help='folder of the data set, shared by all workers')
    add('--frames', type=parse_frames, default=sources.EVERY_FRAME, metavar='A:B:N',
        help='of videos: every Nth frame from A on, before B (default: all)')
    add('--quiet', action='store_true', help='print errors only')

    add = parser.add_argument_group('teacher').add_argument
    add('--model', metavar='NAME',
        help=f'{NAMES_OF_MODELS} (default: what --weights is recognized as, else pose)')
    add('--weights', metavar='FILE', help='checkpoint or exported model; official ones are found')
    add('--task', help='pose or mesh: task of a model named by its encoder')
    add('--body-model', metavar='FILE', help='SMPL model written by trunchier convert-smpl')
    add('--device', default='auto', help='auto, cpu, cuda, cuda:1 (default: auto)')
    add('--precision', choices=('fp32', 'bf16', 'fp16'), default='fp32', help='default: fp32')
    add_runtime(add)
    add('--batch-size', type=int, default=PEOPLE_PER_BATCH, metavar='N',
        help=f'people per batch, each in all views (default: {PEOPLE_PER_BATCH})')
    add('--trust', action='store_true', help='load a .pt or .pt2 file, which is a program')
    add('--no-mirrored', dest='mirrored', action='store_false',
        help='do not compare with the mirrored image')
    add('--no-scaled', dest='scaled', action='store_false', help='do not compare scales')

    add = parser.add_argument_group('check by an independent pose model').add_argument
    add('--check-pose', metavar='NAME',
        help='2D model, a name or a config: the teacher must be near its keypoints (--deviation)')
    add('--check-weights', metavar='FILE', help='its weights, if it has none of its own')

    add = parser.add_argument_group('people').add_argument
    add('--detector', default='auto', metavar='NAME', help='as of `trunchier predict`')
    add('--detector-weights', metavar='FILE', help='checkpoint of an mmdet config')
    add('--score-thr', type=float, default=detection.SCORE_THRESHOLD, metavar='X',
        help=f'minimum score of detections (default: {detection.SCORE_THRESHOLD})')
    add('--boxes', metavar='FILE', help='JSON or .npy file of boxes instead of a detector')
    add('--max-pixels', type=int, default=MAX_PIXELS, metavar='N',
        help=f'skip images and videos of more pixels (default: {MAX_PIXELS})')

    add = parser.add_argument_group('workers').add_argument
    add('--shard', type=_shard, metavar='I/N',
        help='share I of N of the inputs (default: SLURM_ARRAY_TASK_ID and _COUNT, '
             'JOB_COMPLETION_INDEX and JOB_COMPLETIONS, RANK and WORLD_SIZE, if set)')
    add('--take-over', action='store_true',
        help='afterwards go on with inputs of other shards that nobody is at')
    add = parser.add_argument_group('Ray (docs/ray.md)').add_argument
    add('--engine', choices=('processes', 'ray'), default='processes',
        help='ray: on a Ray cluster, also of tars and parts of videos (default: processes)')
    add('--address', metavar='HOST:PORT', help='of the cluster (default: one of this machine)')
    add('--workers', type=int, default=1, metavar='N', help='actors (default: 1)')
    add('--gpus', type=float, default=0, metavar='X', help='GPUs of each (default: 0)')
    add('--chunk', type=int, default=CHUNK, metavar='N',
        help=f'frames in a part of a video (default: {CHUNK})')
    _add_thresholds(parser)
    return parser


def _parser_of_merge():
    parser = argparse.ArgumentParser(
        prog='trunchier merge',
        description='Make one data set of what the workers of `trunchier annotate` have done, and '
                    'name what is missing. Thresholds may change: nothing is computed again.',
    )
    parser.add_argument('out', metavar='OUT', help='--out of `trunchier annotate`')
    parser.add_argument('--quiet', action='store_true', help='print errors only')
    _add_thresholds(parser)
    return parser


KEPT_IF = {
    'box_score':      'minimum score of the detection',
    'keypoint_score': 'minimum score of a keypoint that is labeled',
    'agreement':      'minimum similarity (of OKS, 0 to 1) of views, of a keypoint and on average',
    'keypoints':      'minimum number of labeled keypoints',
    'overlap':        'of bodies: minimum IoU of the box and the projected body',
    'excess':         'of bodies: degrees that joints may exceed their limits',
    'deviation':      'with --check-pose: mean distance to its keypoints, weighted by scores, in '
                      "square roots of the box's area",
    'duplicate':      'bits of 64 that the hashes of equal pictures may differ in; -1 keeps all',
}
# fmt: on


def _add_thresholds(parser):
    add = parser.add_argument_group('people are kept by').add_argument
    for each in fields(Thresholds):
        name = f'--{each.name.replace("_", "-")}'
        text = f'{KEPT_IF[each.name]} (default: {each.default})'
        add(name, type=type(each.default), default=each.default, metavar='X', help=text)
    add(
        '--own-keypoints',
        action='store_true',
        help="write the teacher's keypoints (default: COCO's 17, taken from it by name)",
    )


def _thresholds(args):
    return Thresholds(**{each.name: getattr(args, each.name) for each in fields(Thresholds)})


def _shard(text) -> Shard:
    try:
        return parse_shard(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
