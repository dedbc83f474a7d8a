"""HMR2.0-S, see `trunchier.configs`."""

globals().update(__import__('trunchier.configs', fromlist=['*']).variables('vit-s', 'mesh'))
