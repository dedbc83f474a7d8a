#!/usr/bin/env python
"""Write one data set's plain ViTPose out of a ViTPose++ with an expert for each.

    trunchier split vitpose+_base.pth --expert coco
    trunchier split vitpose+_base.pth --expert wholebody --out body.safetensors

The result has the keys of CHECKPOINT, computes exactly what its expert computes, and is as fast as
any ViTPose of its size. Experts and heads of the other data sets are left out.
"""

import argparse
import sys
from pathlib import Path

from trunchier.files.processes import clean_end
from trunchier.weights.experts import DATASETS, expert_numbers, split_expert
from trunchier.weights.load import read_weights, save_weights, unwrap


@clean_end()
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog='trunchier split',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('checkpoint', type=Path, metavar='CHECKPOINT', help='a ViTPose++')
    parser.add_argument(
        '--expert', required=True, help=f'data set: {", ".join(DATASETS)}, or a number from 0'
    )
    parser.add_argument('--out', type=Path, help='.pth or .safetensors file (CHECKPOINT-EXPERT)')
    parser.add_argument('--no-head', action='store_true', help='keep the backbone alone')
    args = parser.parse_args(arguments)
    out = args.out or args.checkpoint.with_name(
        f'{args.checkpoint.stem}-{args.expert}{args.checkpoint.suffix}'
    )
    try:
        state = unwrap(read_weights(args.checkpoint), args.checkpoint)
        plain = split_expert(state, args.expert, head=not args.no_head)
        save_weights(plain, out)
    except (RuntimeError, OSError, ValueError) as error:
        sys.exit(f'{type(error).__name__}: {error}')
    before, after = (sum(v.numel() for v in each.values()) for each in (state, plain))
    print(
        f'{out}: expert {args.expert} of {len(expert_numbers(state))}, {after / 1e6:.2f} M of '
        f'{before / 1e6:.2f} M numbers'
    )


if __name__ == '__main__':
    main()
