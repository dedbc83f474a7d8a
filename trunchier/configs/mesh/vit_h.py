"""HMR2.0-H, see `trunchier.configs`."""

globals().update(__import__('trunchier.configs', fromlist=['*']).variables('vit-h', 'mesh'))
