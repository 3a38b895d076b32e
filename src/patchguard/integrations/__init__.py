"""Detectors made elsewhere, behind the seam: callables, anomalib's models, a user's own file."""
