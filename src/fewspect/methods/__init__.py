"""The methods: each a folder with ``method.py``, ``net.py``, (``loss.py``) and its method card."""
