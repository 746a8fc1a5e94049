"""Where the configurations and models that come with launcher lie."""

from __future__ import annotations

from pathlib import Path

from launcher.core.errors import ConfigError


def shipped_folder() -> Path:
    """The folder that holds launcher's own configs/ and models/: the repository in a checkout, launcher_shipped beside the package in a wheel."""
    package = Path(__file__).resolve().parents[1]
    for candidate in (package.parent / "launcher_shipped", package.parent):
        if (candidate / "configs" / "train.yaml").is_file():
            return candidate
    raise ConfigError(
        "launcher's own configurations are missing",
        where=str(package),
        expected="configs/ beside the package, or in launcher_shipped/ there",
        next="install launcher again",
    )
