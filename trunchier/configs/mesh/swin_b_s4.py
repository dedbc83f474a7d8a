"""SwinHMR2.0-B-S4, see `trunchier.configs`."""

globals().update(__import__('trunchier.configs', fromlist=['*']).variables('swin-b-s4', 'mesh'))
