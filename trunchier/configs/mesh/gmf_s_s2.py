"""GMFHMR2.0-S-S2, see `trunchier.configs`."""

globals().update(__import__('trunchier.configs', fromlist=['*']).variables('gmf-s-s2', 'mesh'))
