"""FeatureTable of distinct images and texts: readers, encoding actors, cache, neighbours."""
