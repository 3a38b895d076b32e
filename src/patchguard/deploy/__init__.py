"""Calibration and prediction."""
