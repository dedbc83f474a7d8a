#!/usr/bin/env python
"""Write a COCO-format data set of synthetic people.

    trunchier make-synthetic --num 2000 --out data/synthetic/train --seed 0

Writes DIR/images, DIR/annotations.json (for stock CocoDataset and CocoMetric) and DIR/bodies.npz
(body parameters and 3D joints for mesh training, one row per annotation). The bytes depend on the
options, but not on the number of workers. An interrupted run leaves no DIR.
"""

import argparse
import os
import re
import sys


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog='trunchier make-synthetic',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add('--num', type=int, required=True, help='number of images')
    add('--out', required=True, metavar='DIR', help='new folder')
    add('--seed', type=int, default=0, help='of the random generator (default: 0)')
    add('--size', type=_size, default=256, metavar='SIDE|WxH', help='pixels (default: 256)')
    add('--max-people', type=int, default=1, metavar='N', help='per image (default: 1)')
    add('--min-people', type=int, default=1, metavar='N', help='per image (default: 1)')
    add('--backgrounds', metavar='DIR', help='images without people (default: procedural)')
    add('--plain', action='store_true', help='whole people at eye level without occluders: easier')
    add('--hard', action='store_true', help='overlapping, cut off, among distractors, near')
    add('--workers', type=int, default=cores(), metavar='N', help='processes (default: all cores)')
    args = parser.parse_args(arguments)

    try:
        from trunchier.files.processes import clean_end
        from trunchier.synthetic.coco import write_coco

        with clean_end():
            made = write_coco(**vars(args))
    except (ImportError, ValueError, RuntimeError, OSError) as error:
        sys.exit(f'{type(error).__name__}: {error}')
    if made['unreadable']:
        names = ', '.join(str(name) for name in made['unreadable'][:5])
        print(f'skipped {len(made["unreadable"])} unreadable background images: {names}')
    done = f'{made["images"]} images, {made["people"]} people'
    if made['seconds']:
        speed = made['images'] / made['seconds']
        print(f'{args.out}: {done} ({made["seconds"]:.0f} s, {speed:.0f} images/s)')
    else:
        print(f'{args.out}: already there, {done}')


def _size(text):
    if not re.fullmatch(r'\d+(x\d+)?', text.lower()):
        raise argparse.ArgumentTypeError(f'{text!r} is not a size; expected 256 or 320x256')
    sides = tuple(map(int, text.lower().split('x')))
    return sides[0] if len(sides) == 1 else sides


def cores() -> int:
    """Number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


if __name__ == '__main__':
    main()
