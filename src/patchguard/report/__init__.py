"""One self-contained HTML file about a run: what was trained, how it holds, what it looks like."""
