"""What tests of compilers share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from codegen.emit import monocypher
from codegen.host_toolchain import cache_folder


@pytest.fixture(scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Objects are cached apart from the user's; zig's own runtime isn't built again, nor is
    anything fetched."""
    patch = pytest.MonkeyPatch()
    patch.setenv(monocypher.ENVIRONMENT, str(monocypher.fetch_monocypher()))
    zig = str(cache_folder() / "zig")
    patch.setenv("ZIG_GLOBAL_CACHE_DIR", zig)
    patch.setenv("ZIG_LOCAL_CACHE_DIR", zig)
    patch.setenv("TINYFLEET_CACHE", str(tmp_path_factory.mktemp("cache")))
    patch.delenv("TINYFLEET_COMPILER", raising=False)
    yield
    patch.undo()
