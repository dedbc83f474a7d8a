"""Count parameters and FLOPs of models.

    trunchier flops VMPose-T-S2 vit-b configs/embedded/hmr2_vm-t-s2_synthetic-128.py

A model is a name (an encoder's name: its backbone alone) or a config. GMACs are the billions of
multiply-accumulates (GFLOPs in papers) of the matrix products and convolutions that our code
executes; norms, activations and the scan's recurrence count in the paper's GFLOPs only (see
paper_costs.py). Neither includes the body model.
"""

import argparse
import sys

from benchmark.networks import SIZE, build, macs
from benchmark.report import markdown
from paper_costs import model_costs, parameters


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog='trunchier flops',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('models', nargs='+', metavar='MODEL', help='name or config file')
    parser.add_argument('--size', nargs=2, type=int, default=SIZE, metavar=('H', 'W'))
    args = parser.parse_args(arguments)
    try:
        rows = [row(name, args.size) for name in args.models]
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f'error: {error}')
    columns = dict(name='model', params='parameters (M)', executed='GMACs', paper="paper's GFLOPs")
    print(markdown(columns, rows), end='')


def row(name: str, size: tuple[int, int]) -> dict:
    """Name, parameters (M), executed GMACs, and the paper's (None: no formula for the model)."""
    module = build(name, 'meta')
    result = dict(name=name, params=parameters(module) / 1e6, executed=macs(module, size) / 1e9)
    try:
        costs = model_costs(getattr(module, 'model', module), size)
    except TypeError:
        return result
    return result | dict(paper=sum(part for _, part in costs.values()) / 1e9)


if __name__ == '__main__':
    main()
