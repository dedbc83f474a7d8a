"""VMHMR2.0-B-S2, see `trunchier.configs`."""

globals().update(__import__('trunchier.configs', fromlist=['*']).variables('vm-b-s2', 'mesh'))
