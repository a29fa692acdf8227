"""Exported models: ``making`` writes them, ``parity`` compares them with the run, ``reader`` uses them."""
