"""Tell what a file of weights is, from its keys and shapes: layout, model, task, what was guessed.

    trunchier inspect vitpose-b.pth
    trunchier inspect hmr2.ckpt --keys
    trunchier inspect strange.pth --rename student.backbone.=backbone. teacher.=-

Nothing in the file is run, and its numbers are not read.
"""

import argparse
import sys

from trunchier.weights.experts import DATASETS
from trunchier.weights.inspection import inspect_file
from trunchier.weights.recognize import parse_renames


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog='trunchier inspect',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add('files', nargs='+', metavar='FILE', help='checkpoint of any layout, or an exported model')
    add('--keys', action='store_true', help='also list keys and shapes, under our names')
    add('--rename', nargs='+', default=[], metavar='OLD=NEW', help='change the beginning of keys')
    add('--expert', metavar='NAME', help=f'of ViTPose++: {", ".join(DATASETS)} (default: coco)')
    args = parser.parse_args(arguments)
    failures = []
    for path in args.files:
        try:
            file = inspect_file(path, parse_renames(args.rename), args.expert)
            print(printable(file.report()))
            for key, value in (
                file.recognized.state.items() if args.keys and file.recognized else ()
            ):
                print(f'  {printable(key)} {tuple(value.shape)}')
        except (RuntimeError, OSError, ValueError) as error:
            failures.append(printable(f'error: {error}'))
    if failures:
        sys.exit('\n'.join(failures))


def printable(text: str) -> str:
    """`text` with characters that could command a terminal escaped."""
    return ''.join(
        c if c.isprintable() or c == '\n' else c.encode('unicode_escape').decode() for c in text
    )


if __name__ == '__main__':
    main()
