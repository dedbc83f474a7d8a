"""Print the paper's tables, from its own numbers or yours.

    trunchier report table2                       # truncation: 4, 3 and 2 stages
    trunchier report table3 --from mine.csv       # pose, of your results
    trunchier report table4 --format latex        # mesh

Without --from the results are the paper's as printed (results/paper.csv). The schema of a CSV is
in docs/results.md.
"""

import argparse
import sys
from pathlib import Path

if not __package__:  # started as a folder, which is then on the path instead of its parent
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from report import results, tables  # noqa: E402
from trunchier.files import whole_file  # noqa: E402


def main(arguments: list[str] | None = None) -> None:
    args = parser().parse_args(arguments)
    try:
        args.run(args)
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f'error: {error}')


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar='WHAT')
    for name, what in (
        ('table2', 'scores, parameters and GFLOPs with 4, 3 and 2 stages'),
        ('table3', 'pose models on COCO'),
        ('table4', 'mesh models on five data sets'),
    ):
        command = commands.add_parser(name, help=what, description=what)
        command.add_argument('--from', dest='paths', nargs='+', type=Path, metavar='CSV')
        command.add_argument('--format', choices=tables.FORMATS, default='markdown')
        command.add_argument('--out', type=Path, metavar='FILE', help='write instead of printing')
        command.set_defaults(run=print_table, name=name)
    return parser


def print_table(args: argparse.Namespace) -> None:
    found = read(args.paths)
    made = tables.truncation(found) if args.name == 'table2' else tables.accuracy(args.name, found)
    text = tables.FORMATS[args.format](made)
    if args.out is None:
        sys.stdout.write(text)
        return
    with whole_file(args.out) as part:
        part.write_text(text, encoding='utf-8')


def read(paths: list[Path] | None) -> list[results.Result]:
    """Results of all files; of the paper if none is named."""
    if not paths:
        return results.shipped('paper')
    return [each for path in paths for each in results.read_csv(path)]


if __name__ == '__main__':
    main()
