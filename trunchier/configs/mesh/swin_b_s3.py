"""SwinHMR2.0-B-S3, see `trunchier.configs`."""

globals().update(__import__('trunchier.configs', fromlist=['*']).variables('swin-b-s3', 'mesh'))
