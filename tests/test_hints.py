"""Public functions carry type hints: every argument and every return.

python tests/test_hints.py [FILE ...]     lists what is missing
"""

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / 'trunchier'
FILES = sorted(p for p in PACKAGE.rglob('*.py') if 'stand_ins' not in p.parts)


def public_functions(tree):
    """(name, node, is method) of functions and methods whose names do not begin with `_`."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith('_'):
            yield node.name, node, False
        if isinstance(node, ast.ClassDef) and not node.name.startswith('_'):
            for each in node.body:
                if isinstance(each, ast.FunctionDef):
                    special = each.name in ('__init__', '__call__')
                    if special or not each.name.startswith('_'):
                        yield f'{node.name}.{each.name}', each, True


def missing_hints(path):
    """Names of arguments and `return`s without a hint."""
    for name, node, is_method in public_functions(ast.parse(path.read_text())):
        spec = node.args
        arguments = [*spec.posonlyargs, *spec.args]
        static = any(getattr(d, 'id', '') == 'staticmethod' for d in node.decorator_list)
        arguments = arguments[1:] if is_method and not static else arguments
        arguments += [*spec.kwonlyargs, *filter(None, (spec.vararg, spec.kwarg))]
        for argument in arguments:
            if argument.annotation is None:
                yield f'{name}({argument.arg})'
        if node.returns is None and node.name != '__init__':
            yield f'{name} -> ?'


@pytest.mark.parametrize('path', FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_public_functions_have_type_hints(path):
    assert list(missing_hints(path)) == []


if __name__ == '__main__':
    for file in map(Path, sys.argv[1:] or FILES):
        for each in missing_hints(file):
            print(f'{file}: {each}')
