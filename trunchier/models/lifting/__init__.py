"""Lifters: from 2D keypoints of a video, or of a frame, to 3D joints and bodies."""
