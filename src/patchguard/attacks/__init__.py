"""Attacks on anomaly scores and maps."""
