"""Reads finished runs from their folders and sets them side by side; nothing in here imports torch."""
