"""The command `predict`: poses or meshes of people in images and videos, from the shell.

`trunchier predict` and `tools/predict.py` both run `main`.
"""

import argparse
import errno
import inspect
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from ..files.images import MAX_PIXELS
from ..files.processes import clean_end
from ..visualization.overlays import STYLES, contact_sheet
from ..weights.find import Found, find
from . import sources
from .inferencer import DEFAULT_SAVE, Inferencer
from .results import FORMATS
from .screen import printable
from .writers import write_image

HELP = """Predict poses or meshes of people in images and videos; draw and save them.

INPUT is an image, a video, a folder of them, a quoted glob, or a camera (camera, camera:1).
"""
EXAMPLES = """examples:
  predict image.jpg                              with the weights that come with the package
  predict image.jpg --model VMPose-T-S2 --weights pose.pth
  predict images/ 'more/*.png' --model VMHMR2.0-T-S2 --weights mesh.pth --save json,npz,glb,images
  predict clip.mp4 --model VMPose-T-S2 --weights pose.pth --detector yolox_nano.onnx --smooth
  predict clip.mp4 ... --resume                  continue an interrupted run
  predict images/ --model SwinPose-T-S3 VMPose-T-S3 --weights a.pth b.pth --sheet sheet.jpg
  predict camera --model mesh --viewer           look at the address that it prints

--boxes FILE: JSON of {"image.jpg": [[x1, y1, x2, y2], ...]}, of COCO annotations or detections, or
written by --save json; or .npy (people, 4 or 5).

exit codes: 0 done; 1 error; 2 wrong command line; 3 done, but some input was skipped and is listed;
130 interrupted, 143 terminated, 129 hung up: continue with --resume
"""
EXIT_ERROR, EXIT_SKIPPED = 1, 3
PAINTING = (
    'kpt_thr', 'skeleton_style', 'radius', 'thickness', 'draw_bbox', 'style', 'alpha', 'side',
    'black_background',
)  # fmt: skip
DISK_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
SHEET_ROWS = 100


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    args = vars(_parser().parse_args(arguments))
    quiet, out_dir = args['quiet'], args['out_dir']
    logging.basicConfig(level=logging.ERROR if quiet else logging.WARNING, format='%(message)s')
    # mmengine and mmpose log each file that they load and where they search for it.
    logging.getLogger('mmengine').setLevel(logging.ERROR)
    warnings.filterwarnings('ignore', message='The metainfo config file')
    warnings.filterwarnings('ignore', module='PIL')  # of damaged EXIF data

    def given(*names):
        return {name: args[name] for name in names}

    try:
        with clean_end():
            found = list(sources.find(args['inputs']))  # fails before any model is loaded
            options = given('flip_test', 'focal', 'fov', 'body_model', 'draw_heatmap')
            common = given('device', 'batch_size', 'precision', 'track', 'smooth')
            common |= given('detector', 'detector_weights', 'score_thr', 'trust', 'max_pixels')
            inferencers = [
                Inferencer(model, **common, **_accepted(model.row.load('predictor'), options))
                for model in _models(args['model'], args['weights'], args['task'])
            ]
            return _predict(
                found,
                inferencers,
                out_dir or (None if args['viewer'] or args['sheet'] or args['show'] else 'outputs'),
                _viewer(args['host'], args['port'], found) if args['viewer'] else None,
                args['sheet'],
                given(*PAINTING),
                quiet,
                **given('bboxes', 'save', 'resume', 'show'),
            )
    except SystemExit as stop:  # by a signal
        where = f' --out-dir {printable(out_dir)}' if out_dir else ''
        print(f'interrupted; continue with the same command and --resume{where}', file=sys.stderr)
        return int(stop.code)
    except (OSError, ValueError, TypeError, RuntimeError, ImportError, MemoryError) as error:
        text = str(error) or type(error).__name__
        if getattr(error, 'errno', None) in DISK_FULL and error.filename is None:
            text += f', writing a temporary file below {tempfile.gettempdir()}'
        print(f'error: {printable(text)}', file=sys.stderr)
        return EXIT_ERROR


# fmt: off
def _parser():
    parser = argparse.ArgumentParser(
        prog='predict', description=HELP, epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add('inputs', nargs='+', metavar='INPUT', help='image, video, folder, glob or camera')

    add = parser.add_argument_group('model').add_argument
    add('--model', nargs='+', default=['pose'], metavar='NAME',
        help="the paper's name (VMPose-T-S3, SwinHMR2.0-T-S3), an encoder (vm-t-s3) or a config; "
             'pose or mesh: the model that comes with weights; several: one after the other '
             '(default: pose)')
    add('--task', help='pose or mesh: task of a model named by its encoder')
    add('--weights', nargs='+', metavar='FILE',
        help='checkpoint or exported model (.onnx), one per model')
    add('--trust', action='store_true',
        help='load a .pt or .pt2 file, which is a program: only from people whom you trust')
    add('--body-model', metavar='FILE', help='SMPL model written by tools/convert_smpl.py')
    add('--device', default='auto', help='auto, cpu, cuda, cuda:1 (default: auto)')
    add('--batch-size', type=int, default=8, metavar='N', help='people per batch (default: 8)')
    add('--precision', choices=('fp32', 'bf16', 'fp16'), default='fp32', help='default: fp32')
    add('--flip-test', action=argparse.BooleanOptionalAction,
        help='average each pose with that of the mirrored image (default: as in the config)')

    add = parser.add_argument_group('people').add_argument
    add('--detector', default='whole_image', metavar='NAME',
        help='whole_image: one person fills the image; a YOLOX .onnx file; an mmdet config or name '
             '(default: whole_image)')
    add('--detector-weights', metavar='FILE', help='checkpoint of an mmdet config')
    add('--score-thr', type=float, default=0.3, metavar='X',
        help='minimum score of detections (default: 0.3)')
    add('--boxes', dest='bboxes', metavar='FILE',
        help='JSON or .npy file of boxes to use instead of a detector')
    add('--no-track', dest='track', action='store_const', const=False,
        help='do not track people in videos')
    add('--smooth', action='store_true', help='smooth videos over time')
    add('--max-pixels', type=int, default=MAX_PIXELS, metavar='N',
        help=f'skip images and videos of more pixels (default: {MAX_PIXELS})')
    add('--focal', type=_focal, nargs='+', metavar='F',
        help='focal length of the images, pixels: one number, fx fy, or 4D-Humans for its guess '
             "(default: the photo's EXIF data, else --fov)")
    add('--fov', type=float, metavar='DEG',
        help='field of view along the longer side, degrees (default: 60)')

    add = parser.add_argument_group('results').add_argument
    add('--out-dir', metavar='DIR', help='default: outputs (none with --viewer, --sheet or --show)')
    add('--save', type=_formats, metavar='LIST', default=DEFAULT_SAVE,
        help=f'formats among {",".join(FORMATS)} (default: json,images,video)')
    add('--resume', action='store_true', help='continue an interrupted run')
    add('--sheet', metavar='FILE', help='one image with the drawings of all models side by side')
    add('--viewer', action='store_true', help='show the results on a local web page')
    add('--host', default='127.0.0.1', help='viewer host (default: 127.0.0.1, this machine only)')
    add('--port', type=int, default=8080, help='viewer port (default: 8080)')
    add('--show', action='store_true', help='show drawings in a window')
    add('--quiet', action='store_true', help='print errors only')

    add = parser.add_argument_group('drawing').add_argument
    add('--kpt-thr', type=float, default=0.3, metavar='X',
        help='keypoints with a lower score are drawn faintly (default: 0.3)')
    add('--skeleton-style', choices=STYLES, default='person',
        help='person: a color per person or track (default); mmpose, openpose: a color per limb, '
             'nothing below --kpt-thr')
    add('--radius', type=int, metavar='PX', help='of keypoints (default: by image and person)')
    add('--thickness', type=int, metavar='PX', help='of lines (default: by image and person)')
    add('--draw-heatmap', action='store_true', help='draw heatmaps of pose models')
    add('--draw-bbox', action='store_true', help='draw boxes, their scores and track ids')
    add('--style', choices=('solid', 'wireframe', 'both'), default='solid', help='mesh style')
    add('--alpha', type=float, default=0.9, help='opacity of meshes (default: 0.9)')
    add('--side', action='store_true', help='also draw meshes from the side')
    add('--black-background', action='store_true', help='draw on black instead of on the image')
    return parser
# fmt: on


def _formats(text):
    formats = tuple(text.replace(' ', '').split(','))
    if unknown := [name for name in formats if name not in FORMATS]:
        choices = ', '.join(FORMATS)
        raise argparse.ArgumentTypeError(f'unknown {", ".join(unknown)}; choose from {choices}')
    return formats


def _focal(text):
    try:
        return text if text.lower() == '4d-humans' else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f'{text!r} is neither a number nor 4D-Humans') from None


def _models(names, weights, task) -> Iterator[Found]:
    weights = weights or [None] * len(names)
    if len(weights) != len(names):
        raise ValueError(f'{len(names)} models and {len(weights)} weights; give one file per model')
    return map(find, names, weights, [task] * len(names))


def _accepted(function: Callable, options: dict[str, Any]) -> dict[str, Any]:
    """Those of `options` that `function` takes: poses and meshes have different ones."""
    names = inspect.signature(function).parameters
    return {name: value for name, value in options.items() if name in names}


def _viewer(host, port, found):
    from ..visualization.viewer import Viewer

    viewer = Viewer(host, port, follow=any(source.kind == 'camera' for source in found))
    print(f'the viewer is at {viewer.address}; Ctrl-C ends it', file=sys.stderr)
    return viewer


def _predict(found, inferencers, out_dir, viewer, sheet, painting, quiet, **call):
    """Run one inferencer after the other; returns the exit code."""
    rows = {}  # of the sheet: drawings by source and model; of a video, its first frame
    frames = skipped = 0
    for inferencer in inferencers:
        painter = inferencer.painter(**_accepted(inferencer.predictor.painter_type, painting))
        folder = out_dir and Path(out_dir, *([inferencer.name] if len(inferencers) > 1 else []))
        results = inferencer(
            found,
            out_dir=folder,
            return_vis=bool(sheet),
            return_image=bool(sheet or viewer),
            show_progress=not quiet,
            painter=painter,
            **call,
        )
        with closing(results):
            for result in results:
                if sheet and (result.source in rows or len(rows) < SHEET_ROWS):
                    row = rows.setdefault(result.source, {'input': result.image})
                    row.setdefault(inferencer.name, result.visualization)
                if viewer is not None:
                    viewer.add(inferencer.name, painter, result)
        report = inferencer.report
        frames += report.frames + report.done_before
        skipped += len(report.skipped)
        if not quiet:
            print(f'{printable(inferencer.name)}: {report}', file=sys.stderr)
            if folder is not None:
                print(f'written to {printable(folder)}', file=sys.stderr)
    if sheet and frames:
        titles = ['input', *(inferencer.name for inferencer in inferencers)]
        cells = [[row.get(title) for title in titles] for row in rows.values()]
        write_image(contact_sheet(cells, titles), sheet)
    if not frames:
        print(f'error: nothing could be predicted of {len(found)} inputs', file=sys.stderr)
        return EXIT_ERROR
    if viewer is not None:
        with suppress(SystemExit):  # Ctrl-C
            viewer.wait()
    return EXIT_SKIPPED if skipped else 0
