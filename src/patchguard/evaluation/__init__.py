"""Metrics, and the protocol that produces them."""
