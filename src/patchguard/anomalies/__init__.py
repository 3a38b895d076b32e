"""Pseudo-anomalies: a normal image and its foreground to an anomalous image and its mask."""
