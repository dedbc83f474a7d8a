"""Runs every compiled kernel on random shapes within guard zones, and prints what it found as JSON.

    python tests/security/guarded_kernels.py --cases 500 --threads 1 2 3 4

All memory that a kernel is given lies between two guard zones of NaN with a mark in them: a kernel
that writes beyond its arrays changes the mark, one that reads beyond them returns NaN. Results are
compared with torch in float64. NUMBA_CPU_NAME and NUMBA_CPU_FEATURES choose the vectors' width
(LANES), NUMBA_BOUNDSCHECK=1 checks each index of a kernel without explicit vectors.
"""

import argparse
import contextlib
import importlib
import json
import re
import sys
from pathlib import Path

import cv2
import numpy as np
import torch
from numba.core.dispatcher import Dispatcher
from torch import nn

import trunchier
from trunchier.deploy.fuse import deploy
from trunchier.models.backbones.groupmixformer import GroupMixAttention
from trunchier.ops import group_attention, selective_scan_2d, window_attention
from trunchier.ops.cpu import simd, threads
from trunchier.ops.windows import window_layout

GUARD = 2**15  # floats before and after an array
MARK = 0x7FC0BEEF  # a NaN
ALLOWED = 5e-5  # error relative to the largest value


class Guards:
    """Arrays between guard zones; within `active`, those that torch makes too."""

    def __init__(self):
        self.arrays = []

    def around(self, tensor):
        """A copy of a float32 tensor between guard zones; others as they are."""
        if tensor.dtype != torch.float32 or not tensor.numel():
            return tensor
        whole = REAL['empty'](tensor.numel() + 2 * GUARD)
        whole.view(torch.int32).fill_(MARK)
        inside = whole[GUARD:-GUARD].view(tensor.shape)
        inside.copy_(tensor)
        self.arrays.append(whole)
        return inside

    @contextlib.contextmanager
    def active(self):
        for owner, name in MAKERS:
            setattr(owner, name, self._guarded(name))
        try:
            yield
        finally:
            for owner, name in MAKERS:
                setattr(owner, name, REAL[name])

    def _guarded(self, name):
        def make(*args, **kwargs):
            made = REAL[name](*args, **kwargs)
            if 'empty' in name and made.is_floating_point():
                made.fill_(float('nan'))
            return self.around(made)

        return make

    def overrun(self):
        """Number of floats that were written outside of all arrays."""
        zones = (part for whole in self.arrays for part in (whole[:GUARD], whole[-GUARD:]))
        return sum(int((zone.view(torch.int32) != MARK).sum()) for zone in zones)


MAKERS = [
    *((torch, name) for name in ('empty', 'empty_like', 'zeros', 'zeros_like')),
    *((torch.Tensor, name) for name in ('new_empty', 'new_zeros')),
]
REAL = {name: getattr(owner, name) for owner, name in MAKERS}


# --- rows: (rng, guards) -> (shape as text, what the kernel computed, what is expected) -----------


def normal(rng, *shape):
    return torch.from_numpy(rng.standard_normal(shape))


def windows(rng, guards):
    batch, height, width = rng.integers(1, 3), *rng.integers(1, 20, 2)
    heads, size, window = rng.integers(1, 5), rng.integers(16, 70), rng.integers(1, 10)
    layout = window_layout(height, width, window, rng.integers(window), torch.device('cpu'))
    inputs = (
        normal(rng, batch, height * width, 3 * heads * size),
        normal(rng, 3 * heads * size),
        normal(rng, heads, window**2, window**2),
    )
    expected = window_attention(*inputs, layout, 'torch')
    inputs = [guards.around(tensor.float()) for tensor in inputs]
    with guards.active():
        found = window_attention(*inputs, layout, 'numba')
    shape = f'{batch} x {height} x {width}, {heads} heads of {size}, window {window}'
    return shape, [found], [expected]


def groups(rng, guards):
    segment = 4 * int(rng.choice([4, *range(5, 20), 25, 40, 64]))
    batch = int(rng.integers(1, 3))
    height, width = (int(rng.integers(1, top)) for top in rng.choice([3, 9, 20], 2))
    torch.manual_seed(int(rng.integers(1 << 30)))
    layer = GroupMixAttention(5 * segment).eval()
    for module in layer.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    layer = deploy(layer, inplace=True)
    projected = normal(rng, batch, height, width, 15 * segment)
    weights = layer.weights._replace(**{
        name: guards.around(torch.from_numpy(array)).numpy()
        for name, array in layer.weights._asdict().items() if isinstance(array, np.ndarray)
    })  # fmt: skip
    inputs = guards.around(projected.float())
    with guards.active():
        found = group_attention(inputs, None, weights, 'numba')
    expected = layer.double().mix(projected)
    return f'{batch} x {height} x {width}, segments of {segment}', [found], [expected]


def scan(rng, guards):
    batch, height, width = (int(rng.integers(1, top)) for top in (4, 12, 12))
    channels, states, rank = (int(rng.integers(1, top)) for top in (70, 5, 6))
    inputs = [
        normal(rng, batch, height, width, channels),
        normal(rng, batch, height, width, 4, rank + 2 * states),
        -normal(rng, 4, channels, states).mul(0.5).exp(),
        normal(rng, 4, channels),
        normal(rng, 4, channels, rank),
        normal(rng, 4, channels),
    ]

    def run(inputs, backend):
        inputs = [tensor.requires_grad_() for tensor in inputs]
        y = selective_scan_2d(*inputs, backend)
        grad = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
        return [y.detach(), *torch.autograd.grad(y, inputs, grad)]

    expected = run(inputs, 'torch')
    inputs = [guards.around(tensor.detach().float()) for tensor in inputs]
    with guards.active():
        found = run(inputs, 'numba')
    shape = f'{batch} x {height} x {width} x {channels}, {states} states, rank {rank}'
    return shape, found, expected


def product(rng, guards):
    rows, depth = (int(n) for n in rng.integers(1, 40, 2))
    columns = simd.LANES + int(rng.integers(0, 6 * simd.LANES))
    a, b = normal(rng, rows, depth), normal(rng, depth, columns)
    by_columns = bool(rng.integers(2))
    stored = a.mT.contiguous() if by_columns else a
    strides = (1, rows) if by_columns else (depth, 1)
    arrays = [guards.around(tensor.float().flatten()).numpy() for tensor in (stored, b)]
    with guards.active():
        c = torch.empty(rows * columns)
    simd.multiply(
        rows, columns, depth, arrays[0], 0, *strides, arrays[1], 0, columns, c.numpy(), 0, columns
    )
    return f'({rows}, {depth}) @ ({depth}, {columns})', [c.view(rows, columns)], [a @ b]


def convolution(rng, guards):
    size, height, width = int(rng.choice([3, 5, 7])), *(int(n) for n in rng.integers(1, 25, 2))
    lanes = simd.LANES
    x, weight = normal(rng, height, width, lanes), normal(rng, lanes, 1, size, size)
    taps = weight.flatten(1).t()
    arrays = [guards.around(t.float().flatten()).numpy() for t in (x, taps)]
    with guards.active():
        padded, y = torch.empty((height + 6) * (width + 6) * lanes), torch.empty(x.shape)
    simd.convolve(
        size, height, width, arrays[0], 0, lanes, padded.numpy(), arrays[1], 0, lanes,
        y.view(-1).numpy(), 0, lanes,
    )  # fmt: skip
    expected = nn.functional.conv2d(x.permute(2, 0, 1), weight, padding=size // 2, groups=lanes)
    return f'{size} x {size}, map {height} x {width}', [y], [expected.permute(1, 2, 0)]


def meshes(rng, guards):
    """Only the indices are checked, which is why nothing is compared."""
    from trunchier.models.mesh.body import EMBEDDED_BODY, read_body
    from trunchier.visualization.overlays import draw_bodies, side_view

    height, width, people = (int(n) for n in (*rng.integers(8, 200, 2), rng.integers(1, 3)))
    body, style = read_body(EMBEDDED_BODY), rng.choice(['solid', 'wireframe', 'both'])
    place = np.concatenate(
        [rng.normal(0, 1, (people, 1, 2)), rng.uniform(-1, 6, (people, 1, 1))], 2
    )
    vertices = np.float32(body['v_template'] * [1, -1, -1] + place)
    image, colors = np.zeros((height, width, 3), np.uint8), rng.uniform(0, 255, (people, 3))
    center = width / 2, height / 2
    draw_bodies(image, vertices, body['f'], (width, width), center, colors, style=style)
    side_view(vertices, body['f'], (height, width), colors, style)
    return f'{people} people in {height} x {width}, {style}', [], []


def people(rng, guards):
    """The kernels of `synthetic`; only the indices are checked."""
    from trunchier.synthetic.people import MIN_SIDE, SyntheticPeople

    size, seed = tuple(map(int, rng.integers(MIN_SIDE, 200, 2))), int(rng.integers(1000))
    SyntheticPeople(seed, size, max_people=3, plain=bool(rng.integers(2)))[seed]
    return f'{size} pixels', [], []


AGAINST_TORCH = (windows, groups, scan, product, convolution)
ROWS = (*AGAINST_TORCH, meshes, people)


# --- run ------------------------------------------------------------------------------------------


def kernels():
    """{name: dispatcher} of all compiled functions of the package that are not inlined."""
    root, found = Path(trunchier.__file__).parent, {}
    for path in sorted(root.rglob('*.py')):
        if not re.search(r'\bnumba\b|\bcompiled\b', path.read_text(encoding='utf-8')):
            continue
        parts = path.relative_to(root.parent).with_suffix('').parts
        try:
            module = importlib.import_module('.'.join(parts).removesuffix('.__init__'))
        except ImportError as error:
            if error.name != 'triton' and 'triton' not in str(error):
                raise
            continue
        for name, value in vars(module).items():
            own = isinstance(value, Dispatcher) and value.py_func.__module__ == module.__name__
            if own and value.targetoptions.get('inline') != 'always':
                found[f'{module.__name__}.{name}'] = value
    return found


def unreached(kernels):
    """Names of the kernels that neither ran nor are called by one that did."""
    reached = {name for name, kernel in kernels.items() if kernel.overloads}
    names, left = {kernel: name for name, kernel in kernels.items()}, list(reached)
    while left:
        function = kernels[left.pop()].py_func
        called = (function.__globals__.get(name) for name in function.__code__.co_names)
        new = {names[each] for each in called if isinstance(each, Dispatcher) and each in names}
        left.extend(new - reached)
        reached |= new
    return sorted(set(kernels) - reached)


def run(row, seed):
    """(shape, relative error, floats outside) of one case."""
    guards = Guards()
    with contextlib.ExitStack() as stack:
        if row is not scan:
            stack.enter_context(torch.no_grad())
        shape, found, expected = row(np.random.default_rng(seed), guards)
    errors = [
        float((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max())
        for ours, theirs in zip(found, expected, strict=True)
        if theirs.numel() and theirs.abs().max()
    ]
    worst = float('nan') if any(error != error for error in errors) else max(errors, default=0.0)
    return shape, worst, guards.overrun()


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--cases', type=int, default=10, help='of each row and number of threads')
    parser.add_argument('--threads', type=int, nargs='+', default=[1, 3])
    parser.add_argument('--rows', nargs='+', default=[row.__name__ for row in ROWS])
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args(arguments)
    threads.MIN_PARALLEL_CYCLES = 0  # small maps too
    cv2.setNumThreads(1)
    table, failures = [], []
    for row in (row for row in ROWS if row.__name__ in args.rows):
        for count in args.threads if row in AGAINST_TORCH else args.threads[:1]:
            torch.set_num_threads(count)
            cases = args.cases if row in AGAINST_TORCH else max(1, args.cases // 10)
            worst, outside = 0.0, 0
            for index in range(cases):
                seed = [args.seed, count, index]
                shape, error, overrun = run(row, seed)
                worst, outside = max(worst, error), outside + overrun
                if overrun or not error <= ALLOWED:
                    failures.append(
                        f'{row.__name__}, seed {seed}, {shape}: error {error:.1e}, '
                        f'{overrun} floats outside'
                    )
            table.append(dict(
                row=row.__name__, lanes=simd.LANES, threads=count, cases=cases, error=worst,
                outside=outside,
            ))  # fmt: skip
    found = dict(table=table, failures=failures, unreached=unreached(kernels()))
    json.dump(found, sys.stdout, indent=1)


if __name__ == '__main__':
    main()
