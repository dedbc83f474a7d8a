"""`python -m trunchier predict ...`: what a user does with the package, without its checkout."""

import sys

COMMANDS = ('predict',)


def main():
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        print(f'usage: python -m trunchier {{{",".join(COMMANDS)}}} ... (see predict --help)')
        return 0 if sys.argv[1:] in (['-h'], ['--help']) else 2
    from .inference.command import main as predict

    return predict(sys.argv[2:])


if __name__ == '__main__':
    sys.exit(main())
