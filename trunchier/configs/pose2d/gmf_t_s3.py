"""GMFPose-T-S3, see `trunchier.configs`."""

globals().update(__import__('trunchier.configs', fromlist=['*']).variables('gmf-t-s3', 'pose'))
