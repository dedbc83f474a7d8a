#!/usr/bin/env python
"""Write an official checkpoint as a clean file of this package's weights.

    trunchier convert-weights swin_tiny_patch4_window7_224.pth swin_tiny.safetensors
    trunchier convert-weights vitpose-b.pth vitpose-b_mmpose1.pth
    trunchier convert-weights best.pth vmpose-t-s2.safetensors --half

SRC is a file or http(s) address: Swin, VMamba or GroupMixFormer classifiers, ViTPose, HMR2.0, or a
checkpoint of `trunchier train`. DST is a .safetensors or .pth file of weights alone, without
optimizer and pickled objects; what SRC says of its model and crops is kept. It keeps all four
stages; a truncated model loads those that it has
(`init_cfg=dict(type='OfficialPretrained', checkpoint=DST)`).
"""

import argparse
import sys

from trunchier import zoo
from trunchier.files.processes import clean_end
from trunchier.weights.inspection import stated_facts
from trunchier.weights.load import announced_file, read_official, save_weights


@clean_end()
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog='trunchier convert-weights',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('src', metavar='SRC', help='official checkpoint, or its address')
    parser.add_argument('dst', metavar='DST', help='.safetensors or .pth file to write')
    parser.add_argument('--half', action='store_true', help='store float32 weights as float16')
    parser.add_argument('--note', help='note about the weights, stored in a .safetensors file')
    parser.add_argument('--drop', metavar='PREFIX', help='skip keys with this prefix')
    parser.add_argument(
        '--shipped', choices=zoo.SHIPPED, help='state in DST that it is this file of the package'
    )
    args = parser.parse_args(arguments)
    try:
        state = read_official(args.src)
        if args.drop:
            state = {k: v for k, v in state.items() if not k.startswith(args.drop)}
        if args.half:
            state = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
        facts = stated_facts(announced_file(args.src))
        if args.shipped:
            facts = dict(model=args.shipped, config=zoo.SHIPPED[args.shipped]) | facts
        save_weights(state, args.dst, args.note, facts or None)
    except (RuntimeError, OSError, ValueError) as error:
        sys.exit(f'{type(error).__name__}: {error}')
    numbers = sum(value.numel() for value in state.values())
    print(f'{args.dst}: {len(state)} tensors, {numbers / 1e6:.2f} M numbers')


if __name__ == '__main__':
    main()
