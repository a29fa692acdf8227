"""One module per layout on disk; each offers ``read(root, **options) -> Index``."""
