"""List models with their size, their weights and licenses; and all official files.

    trunchier models
    trunchier models 'VM*'
    trunchier models --files

Weights of a model: "here" (they come with the package, or were downloaded), "download" (`trunchier
download NAME`, or naming the model), "by hand" (--files says where), or none: train it, or give a
checkpoint. GMACs are billions of multiply-accumulates at 256 x 192 (GFLOPs in papers).
"""

import argparse
import sys

from trunchier import zoo
from trunchier.files import shipped
from trunchier.weights.official import installed
from trunchier.zoo.costs import COSTS
from trunchier.zoo.releases import RELEASES, SHIPPED, releases

OURS = 'Apache-2.0, trained on synthetic people'


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog='trunchier models',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('pattern', nargs='?', default='*', metavar='PATTERN', help='as "VM*-S2"')
    parser.add_argument('--files', action='store_true', help='list official files instead')
    args = parser.parse_args(arguments)
    rows = list(files(args.pattern) if args.files else models(args.pattern))
    if len(rows) == 1:
        what, names = ('file', RELEASES) if args.files else ('model', zoo.models())
        print(f'error: no {what} {args.pattern!r} among {", ".join(names)}', file=sys.stderr)
        return 1
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print('  '.join(map(str.ljust, row, widths)).rstrip())
    return 0


def models(pattern):
    """Rows of the models whose names match, after a title."""
    yield 'model', 'task', 'params (M)', 'GMACs', 'weights', 'license of the weights'
    for name in zoo.list_models(pattern):
        params, gmacs = COSTS[name]
        state, license = weights(name)
        yield name, zoo.models()[name][1], f'{params:10.2f}', f'{gmacs:5.1f}', state, license


def weights(name):
    """State and license of the weights that a model finds by its name."""
    if name in SHIPPED and shipped.asset(f'{name}.safetensors').is_file():
        return 'here', OURS
    if name not in RELEASES:
        return 'none', ''
    row = RELEASES[name]
    state = 'here' if installed(name) else 'download' if row.urls else 'by hand'
    return state, row.license


def files(pattern):
    """Rows of the official files whose names match, after a title."""
    yield 'name', 'what', 'layout', 'file here, or where to get it', 'license'
    for name, row in releases(pattern).items():
        place = installed(name) or (row.urls or (row.by_hand,))[0]
        yield name, row.what, row.layout, str(place), row.license


if __name__ == '__main__':
    sys.exit(main())
