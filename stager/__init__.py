"""Stages build images from Google Cloud Storage for watcherd and its clients."""

__version__ = "0.1.0"
