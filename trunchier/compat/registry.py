"""Scope `trunchier` of mmengine's registries: `type='trunchier.TruncatedSwin'`.

Our modules are in the root registries, so any package's configs find them without a scope. Configs
of other packages that inherit from ours (`_base_ = 'trunchier::...'`) build in this scope, which
looks in mmpose for what is not ours, then in the root, as the scope of mmpose does.
"""

import functools
import importlib
from importlib.util import find_spec
from typing import Any

from mmengine.registry import Registry, root


class _Scope(Registry):
    def get(self, key: str) -> Any:
        """The class or function named `key`: ours, else mmpose's, else mmengine's or mmcv's."""
        found = super().get(key)
        is_ours = getattr(found, '__module__', '').startswith('trunchier.')
        if '.' in key or is_ours or not _mmpose_is_there() or 'mmpose' not in self.parent.children:
            return found
        return self.parent.get(f'mmpose.{key}') or found


@functools.cache
def _mmpose_is_there():
    if find_spec('mmpose') is None:
        return False
    _add_scope(importlib.import_module('mmpose.registry'))  # its codecs have a root of their own
    return True


def _add_scope(module):
    for registry in vars(module).values():
        is_root = isinstance(registry, Registry) and registry.parent is None
        if is_root and 'trunchier' not in registry.children:
            _Scope(registry.name, parent=registry, scope='trunchier', locations=['trunchier'])


_add_scope(root)
