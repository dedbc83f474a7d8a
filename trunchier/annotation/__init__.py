"""Annotation of images and videos by a teacher: workers, filters, one data set of their results."""
