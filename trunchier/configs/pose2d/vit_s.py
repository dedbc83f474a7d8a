"""ViTPose-S, see `trunchier.configs`."""

globals().update(__import__('trunchier.configs', fromlist=['*']).variables('vit-s', 'pose'))
