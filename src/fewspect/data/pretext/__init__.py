"""Endless few-shot classes that no data set knows: random surfaces with random defect styles.

The embedded backbone (``backbones/tiny.py``) is trained on these and on nothing else, so every class of every
data set, the toy factory's included, is unseen for it. ``python -m fewspect.engine.pretrain`` is the command.
"""

from fewspect.data.pretext.episodes import Pretext, episode

__all__ = ["Pretext", "episode"]
