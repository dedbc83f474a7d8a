"""GMFPose-B-S4, see `trunchier.configs`."""

globals().update(__import__('trunchier.configs', fromlist=['*']).variables('gmf-b-s4', 'pose'))
