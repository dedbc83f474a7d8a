"""Scope `trunchier` of mmengine's registries: `type='trunchier.TruncatedSwin'`.

Our modules are in the root registries, so any package's configs find them without a scope. Configs
of other packages that inherit from ours (`_base_ = 'trunchier::...'`) build in this scope, which
also finds what mmpose has registered, since our configs use it.
"""

import functools
import importlib
from importlib.util import find_spec
from typing import Any

from mmengine.registry import Registry, root


class _Scope(Registry):
    def get(self, key: str) -> Any:
        """The class or function named `key`: ours, else mmengine's, else mmpose's."""
        found = super().get(key)
        if found is None and '.' not in key and _mmpose_is_there():
            found = self.parent.get(f'mmpose.{key}')
        return found


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
