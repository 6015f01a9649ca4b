"""Encoding of images and texts: image sources, encoding actors, feature cache and nearest neighbours."""
