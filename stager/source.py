"""Which source of archives the configuration names; Google's client is loaded only where wanted."""

import os
from pathlib import Path

from stager.archive import DirectorySource, Source
from stager.config import Config


def open_source(config: Config) -> Source:
    """Return where archives come from."""
    archive = config.archive
    if archive.source == "directory":
        return DirectorySource(Path(archive.directory))
    from stager.gcs import GcsSource  # noqa: PLC0415 (0.4 s that a directory need not pay)

    endpoint = os.environ.get("STORAGE_EMULATOR_HOST")
    return GcsSource(archive.credentials, endpoint, archive.connections)
