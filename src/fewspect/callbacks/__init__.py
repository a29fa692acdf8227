"""What is kept of a run: its record, its pictures and its predictions."""
