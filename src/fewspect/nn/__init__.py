"""Pure torch building blocks: no Lightning, no Hydra, no files."""
