"""Download official weights and detectors by name, with their license said.

    trunchier download ViTPose-B yolox-nano

`trunchier models --files` lists the names. Files go to $TRUNCHIER_HOME, or `trunchier` in the
user's cache; a download that broke off continues; hashes are checked where they are known.
"""

import argparse
import sys

from trunchier.files import DownloadError
from trunchier.weights.official import fetch, release


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog='trunchier download',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('names', nargs='+', metavar='NAME')
    args = parser.parse_args(arguments)
    failed = False
    try:
        for name in args.names:  # all of them, before the first download
            release(name)
    except ValueError as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    for name in args.names:
        try:
            path = fetch(name)
        except (DownloadError, OSError) as error:
            print(f'error: {error}', file=sys.stderr)
            failed = True
        else:
            name, row = release(name)
            print(f'{name}: {path} (license: {row.license})')
    return int(failed)


if __name__ == '__main__':
    sys.exit(main())
