"""Draw the paper's tables and figures, from its own numbers or yours.

    trunchier report table2                       # truncation: 4, 3 and 2 stages
    trunchier report table3 --from mine.csv       # pose, of your results
    trunchier report table2 --from work_dirs/*    # of your runs
    trunchier report table4 --format latex        # mesh
    trunchier report figure1 --out figure1.svg    # accuracy against costs and speed
    trunchier report figure4 photos/ --from work_dirs/td-hm_*   # poses of your models, side by side
    trunchier report figure5 photos/ --from work_dirs/hmr2_*    # meshes
    trunchier report curve work_dirs/* --out curve.svg          # loss and metrics of trainings

Without --from the results are the paper's as printed (results/paper.csv). The schema of a CSV is
in docs/results.md.
"""

import argparse
import sys
from pathlib import Path

if not __package__:  # started as a folder, which is then on the path instead of its parent
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from report import results, tables, work_dirs  # noqa: E402
from trunchier import zoo  # noqa: E402
from trunchier.files import whole_file  # noqa: E402

SHEETS = {'figure4': 'pose', 'figure5': 'mesh'}


def main(arguments: list[str] | None = None) -> None:
    args = parser().parse_args(arguments)
    try:
        args.run(args)
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f'error: {error}')


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='trunchier report',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar='WHAT')
    for name, what in (
        ('table2', 'scores, parameters and GFLOPs with 4, 3 and 2 stages'),
        ('table3', 'pose models on COCO'),
        ('table4', 'mesh models on five data sets'),
    ):
        command = commands.add_parser(name, help=what, description=what)
        add_source(command)
        command.add_argument('--format', choices=tables.FORMATS, default='markdown')
        command.add_argument('--out', type=Path, metavar='FILE', help='write instead of printing')
        command.set_defaults(run=print_table, name=name)
    what = 'accuracy against GFLOPs and speed; the area of a circle is the parameters'
    command = commands.add_parser('figure1', help=what, description=what)
    add_source(command)
    command.add_argument(
        '--speed', type=Path, metavar='CSV', help='from trunchier benchmark models --csv'
    )
    command.add_argument(
        '--out', nargs='+', type=Path, default=[Path('figure1.svg')], metavar='FILE'
    )
    command.set_defaults(run=draw_figure_1)
    for name, task in SHEETS.items():
        what = f'{task} models side by side on the same images'
        command = commands.add_parser(name, help=what, description=f'{what}.')
        command.add_argument('inputs', nargs='+', metavar='IMAGE', help='images or folders')
        what = 'work_dirs of trainings; their configs are executed, as by test'
        command.add_argument(
            '--from', dest='paths', nargs='+', type=Path, required=True, metavar='DIR', help=what
        )
        command.add_argument('--boxes', metavar='FILE', help='of people, instead of a detector')
        command.add_argument('--out', type=Path, default=Path(f'{name}.jpg'), metavar='FILE')
        command.set_defaults(run=predict_sheet, task=task)
    what = 'loss and metrics by step'
    command = commands.add_parser('curve', help=what, description=what)
    command.add_argument('paths', nargs='+', type=Path, metavar='PATH', help='work_dirs or logs')
    command.add_argument('--out', nargs='+', type=Path, default=[Path('curve.svg')], metavar='FILE')
    command.set_defaults(run=draw_curves)
    return parser


def add_source(command: argparse.ArgumentParser) -> None:
    what = "CSV files, and work_dirs of trunchier train or test (default: the paper's)"
    command.add_argument('--from', dest='paths', nargs='+', type=Path, metavar='PATH', help=what)


def print_table(args: argparse.Namespace) -> None:
    found = read(args.paths)
    made = tables.truncation(found) if args.name == 'table2' else tables.accuracy(args.name, found)
    text = tables.FORMATS[args.format](made)
    if args.out is None:
        sys.stdout.write(text)
        return
    with whole_file(args.out) as part:
        part.write_text(text, encoding='utf-8')


def draw_figure_1(args: argparse.Namespace) -> None:
    from report import figures

    figures.check_formats(args.out)
    speed = results.read_csv(args.speed) if args.speed else results.shipped('cpu')
    others = [] if args.paths else results.shipped('others', known=False)
    rows = figures.panels(read(args.paths), speed, others, everything=bool(args.paths))
    figures.save(figures.figure_1(rows), args.out)
    print(f'written: {", ".join(map(str, args.out))}')


def predict_sheet(args: argparse.Namespace) -> None:
    """Figure 4 or 5: a column for each model, a row for each image."""
    from trunchier.inference import command

    for path in args.paths:
        if (model := work_dirs.model_of(path)) and zoo.models()[model][1] != args.task:
            raise ValueError(f'{path}: {model} is no {args.task} model')
    configs, weights = zip(*map(work_dirs.checkpoint_of, args.paths), strict=True)
    boxes = ['--boxes', args.boxes] if args.boxes else []
    words = ['--model', *configs, '--weights', *weights, '--sheet', args.out, *boxes]
    sys.exit(command.main([*args.inputs, *map(str, words)]))


def draw_curves(args: argparse.Namespace) -> None:
    from report import curves, figures

    figures.check_formats(args.out)
    named = {name: curves.read(path) for name, path in curves.names(args.paths).items()}
    figures.save(curves.draw(named), args.out)
    print(f'written: {", ".join(map(str, args.out))}')


def read(paths: list[Path] | None) -> list[results.Result]:
    """Results of all CSV files and work_dirs; of the paper if none is named."""
    if not paths:
        return results.shipped('paper')
    return [
        each
        for path in paths
        for each in ([work_dirs.read_result(path)] if path.is_dir() else results.read_csv(path))
    ]


if __name__ == '__main__':
    main()
