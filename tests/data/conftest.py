import os
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with the real test images; tests that need it skip without it."""
    folder = Path(os.environ.get("FEWSPECT_SHARED", REPO.parent / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set FEWSPECT_SHARED to the folder that holds data/")
    return folder
