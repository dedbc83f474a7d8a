"""HMR2.0-L, see `trunchier.configs`."""

globals().update(__import__('trunchier.configs', fromlist=['*']).variables('vit-l', 'mesh'))
