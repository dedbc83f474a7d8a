"""The command `predict`: pictures and videos to poses or bodies, from the shell.

`python -m trunchier predict` and `tools/predict.py` both come here.
"""

import argparse
import logging
import sys
import warnings
from pathlib import Path

HELP = """Poses or bodies of the people in pictures and videos, drawn and saved.

INPUT is a picture, a video, a folder of them, a glob in quotes, or a camera (camera, camera:1).
"""
EXAMPLES = """examples:
  predict photo.jpg                              with the weights that come along
  predict photo.jpg --model VMPose-T-S2 --weights pose.pth
  predict photos/ 'more/*.png' --model VMHMR2.0-T-S2 --weights mesh.pth --save json,npz,glb,images
  predict clip.mp4 --model vm-t-s2 --weights pose.pth --boxes yolox_nano.onnx --smooth
  predict clip.mp4 ... --resume                  go on where an interrupted run stopped
  predict photos/ --model SwinPose-T-S3 VMPose-T-S3 --weights a.pth b.pth --sheet sheet.jpg
  predict camera --model mesh --viewer           look at http://127.0.0.1:8080

--boxes FILE: JSON of {"photo.jpg": [[x1, y1, x2, y2], ...]}, of COCO annotations or detections, or
what --save json wrote; or .npy (people, 4 or 5).

exit codes: 0 all done; 1 an error; 2 a wrong command line; 3 done, but some input was skipped (it
is listed); 130 interrupted (--resume goes on)
"""
EXIT_ERROR, EXIT_SKIPPED, EXIT_INTERRUPTED = 1, 3, 130
SHEET_ROWS = 100


def main(arguments=None):
    """Run the command; returns its exit code."""
    args = _parser().parse_args(arguments)
    logging.basicConfig(
        level=logging.ERROR if args.quiet else logging.WARNING, format='%(message)s'
    )
    # mmengine and mmpose announce each file that they load, and where they look for it.
    logging.getLogger('mmengine').setLevel(logging.ERROR)
    warnings.filterwarnings('ignore', message='The metainfo config file')
    try:
        return _predict(args)
    except KeyboardInterrupt:
        where = f' --out-dir {args.out_dir}' if args.out_dir else ''
        print(f'interrupted; the same command with --resume{where} goes on', file=sys.stderr)
        return EXIT_INTERRUPTED
    except (OSError, ValueError, TypeError, RuntimeError, ImportError) as error:
        print(f'error: {error}', file=sys.stderr)
        return EXIT_ERROR


def _parser():
    from .results import FORMATS

    parser = argparse.ArgumentParser(
        prog='predict',
        description=HELP,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add('inputs', nargs='+', metavar='INPUT', help='picture, video, folder, glob or camera')

    group = parser.add_argument_group('model')
    add = group.add_argument
    add(
        '--model',
        nargs='+',
        default=['pose'],
        metavar='NAME',
        help=(
            "the paper's name (VMPose-T-S3, SwinHMR2.0-T-S3), an encoder (vm-t-s3) or a config; "
            'pose or mesh: the one that comes with weights. Several: one after the other '
            '(default: pose)'
        ),
    )
    add('--task', choices=('pose', 'mesh'), help='of a model given by its encoder (default: pose)')
    add(
        '--weights',
        nargs='+',
        metavar='FILE',
        help='checkpoint, or exported model (.onnx), one for each model',
    )
    add('--body-model', metavar='FILE', help='your SMPL, as tools/convert_smpl.py writes it')
    add('--device', default='auto', help='auto, cpu, cuda, cuda:1 (default: auto)')
    add('--batch-size', type=int, default=8, metavar='N', help='people a batch (default: 8)')
    add('--precision', choices=('fp32', 'bf16', 'fp16'), default='fp32', help='default: fp32')
    add(
        '--flip-test',
        action=argparse.BooleanOptionalAction,
        help='average a pose with that of the mirrored picture (default: as the config says)',
    )

    group = parser.add_argument_group('people')
    add = group.add_argument
    add(
        '--boxes',
        metavar='FILE',
        help=(
            'whole: one person fills the picture; a JSON or .npy file of boxes; a YOLOX .onnx '
            'file; an mmdet config or name (default: whole)'
        ),
    )
    add('--det-weights', metavar='FILE', help='checkpoint of an mmdet config')
    add('--score-thr', type=float, default=0.3, metavar='X', help='of detections (default: 0.3)')
    add('--no-track', action='store_true', help='give people in videos no ids')
    add('--smooth', action='store_true', help='smooth videos over time')
    add(
        '--focal',
        type=float,
        nargs='+',
        metavar='F',
        help="focal length of the pictures, pixels, one or fx fy (default: 4D-Humans' guess)",
    )

    group = parser.add_argument_group('results')
    add = group.add_argument
    add('--out-dir', metavar='DIR', help='default: outputs (with --viewer or --sheet: nowhere)')
    add(
        '--save',
        type=_formats,
        metavar='LIST',
        default=('json', 'images', 'video'),
        help=f'of {",".join(FORMATS)} (default: json,images,video)',
    )
    add('--resume', action='store_true', help='go on where an interrupted run stopped')
    add('--sheet', metavar='FILE', help='pictures of all models side by side, in one picture')
    add('--viewer', action='store_true', help='show the results on a local web page')
    add('--host', default='127.0.0.1', help='of the page (default: 127.0.0.1, this machine only)')
    add('--port', type=int, default=8080, help='of the page (default: 8080)')
    add('--show', action='store_true', help='show pictures in a window')
    add('--quiet', action='store_true', help='only errors')

    group = parser.add_argument_group('pictures')
    add = group.add_argument
    add(
        '--kpt-thr',
        type=float,
        default=0.3,
        metavar='X',
        help='keypoints with a lower score are not drawn (default: 0.3)',
    )
    add('--draw-bbox', action='store_true', help='draw boxes and track ids')
    add('--style', choices=('solid', 'wireframe', 'both'), default='solid', help='of meshes')
    add('--alpha', type=float, default=0.9, help='opacity of meshes (default: 0.9)')
    add('--side', action='store_true', help='draw meshes from the side too')
    add('--black-background', action='store_true', help='draw on black, not on the picture')
    return parser  # fmt: skip


def _formats(text):
    from .results import FORMATS

    formats = tuple(text.replace(' ', '').split(','))
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise argparse.ArgumentTypeError(
            f'unknown {", ".join(unknown)}; choose from {", ".join(FORMATS)}'
        )
    return formats


def _predict(args):
    from . import sources as inputs

    sources = list(inputs.find(args.inputs))  # says what is wrong before anything is loaded
    inferencers = _inferencers(args)
    out_dir = args.out_dir
    if out_dir is None and not (args.viewer or args.sheet or args.show):
        out_dir = 'outputs'
    viewer = None
    if args.viewer:
        from ..visualization.viewer import Viewer

        live = any(source.kind == 'camera' for source in sources)
        viewer = Viewer(args.host, args.port, follow=live)
        print(f'the viewer is at {viewer.address}; Ctrl-C ends it', file=sys.stderr)
    sheet = _Sheet() if args.sheet else None
    frames = skipped = 0
    for inferencer in inferencers:
        painter = inferencer.painter(**_painting(args, inferencer))
        folder = out_dir and Path(out_dir, *([inferencer.name] if len(inferencers) > 1 else []))
        results = inferencer(
            args.inputs,
            out_dir=folder,
            save=_savable(args.save, inferencer),
            resume=args.resume,
            return_vis=sheet is not None,
            return_image=sheet is not None or viewer is not None,
            show=args.show,
            show_progress=not args.quiet,
            **_painting(args, inferencer),
        )
        for result in results:
            if sheet is not None:
                sheet.add(inferencer.name, result)
            if viewer is not None:
                viewer.add(inferencer.name, painter, result)
        report = inferencer.report
        frames += report.frames + report.done_before
        skipped += len(report.skipped)
        if not args.quiet:
            print(f'{inferencer.name}: {report}', file=sys.stderr)
            if folder is not None:
                print(f'written to {folder}', file=sys.stderr)
    if sheet is not None and frames:
        sheet.write(args.sheet, [inferencer.name for inferencer in inferencers])
    if not frames:
        print(f'error: nothing could be predicted of {len(sources)} inputs', file=sys.stderr)
        return EXIT_ERROR
    if viewer is not None:
        viewer.wait()
    return EXIT_SKIPPED if skipped else 0


def _inferencers(args):
    from ..weights.find import find
    from .inferencer import MeshInferencer, PoseInferencer

    weights = args.weights or [None] * len(args.model)
    if len(weights) != len(args.model):
        raise ValueError(
            f'{len(args.model)} models and {len(weights)} weights; give one file for each model'
        )
    focal = args.focal
    if focal is not None and len(focal) > 2:
        raise ValueError(f'--focal takes one number or two, got {len(focal)}')
    made = []
    for model, file in zip(args.model, weights, strict=True):
        task = find(model, task=args.task).task
        common = dict(
            weights=file,
            device=args.device,
            det_model=args.boxes or 'whole',
            det_weights=args.det_weights,
            bbox_thr=args.score_thr,
            batch_size=args.batch_size,
            precision=args.precision,
            track=False if args.no_track else None,
            smooth=args.smooth,
        )
        if task == 'pose':
            made.append(PoseInferencer(model, flip_test=args.flip_test, **common))
        else:
            made.append(MeshInferencer(model, focal=focal, body_model=args.body_model, **common))
    return made


def _savable(save, inferencer):
    """The formats that fit a model: a pose has no mesh."""
    if inferencer.faces is None and {'obj', 'glb'} & set(save):
        raise ValueError(f'{inferencer.name} predicts poses; obj and glb are of meshes')
    return save


def _painting(args, inferencer):
    common = dict(draw_bbox=args.draw_bbox, black_background=args.black_background)
    if inferencer.task == 'pose':
        return dict(common, kpt_thr=args.kpt_thr)
    return dict(common, style=args.style, alpha=args.alpha, side=args.side)


class _Sheet:
    """Pictures of each source, by model: of a video its first frame that comes."""

    def __init__(self):
        self.rows = {}

    def add(self, model, result):
        if result.source not in self.rows and len(self.rows) == SHEET_ROWS:
            return
        row = self.rows.setdefault(result.source, {'input': result.image})
        row.setdefault(model, result.visualization)

    def write(self, path, models):
        from ..visualization.overlays import contact_sheet
        from .writers import write_image

        titles = ['input', *models]
        rows = [[row.get(title) for title in titles] for row in self.rows.values()]
        write_image(contact_sheet(rows, titles), path)
