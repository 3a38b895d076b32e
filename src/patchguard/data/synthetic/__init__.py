"""A built-in benchmark: three procedural categories with defects and exact masks."""

from patchguard.data.synthetic.benchmark import CATEGORIES, defects, render, write_benchmark

__all__ = ["CATEGORIES", "defects", "render", "write_benchmark"]
