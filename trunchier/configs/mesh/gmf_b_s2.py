"""GMFHMR2.0-B-S2, see `trunchier.configs`."""

globals().update(__import__('trunchier.configs', fromlist=['*']).variables('gmf-b-s2', 'mesh'))
