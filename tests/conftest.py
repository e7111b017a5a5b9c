"""What every test finds: a cache of its own, apart from the user's, and one thread for each process."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: threads of several processes starve each other


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep packs and weights of the tests in a folder of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LINNAEUS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
