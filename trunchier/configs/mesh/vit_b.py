"""HMR2.0-B, see `trunchier.configs`."""

globals().update(__import__('trunchier.configs', fromlist=['*']).variables('vit-b', 'mesh'))
