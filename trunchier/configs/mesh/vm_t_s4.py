"""VMHMR2.0-T-S4, see `trunchier.configs`."""

globals().update(__import__('trunchier.configs', fromlist=['*']).variables('vm-t-s4', 'mesh'))
