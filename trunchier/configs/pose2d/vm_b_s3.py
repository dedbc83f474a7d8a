"""VMPose-B-S3, see `trunchier.configs`."""

globals().update(__import__('trunchier.configs', fromlist=['*']).variables('vm-b-s3', 'pose'))
