"""Data: readers, episodes, crops, the data module and the toy factory."""
