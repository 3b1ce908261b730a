"""google-cloud-storage as its documentation shows it, and the standard library's zipfile.

    python client.py whole|reader ENDPOINT BUCKET OBJECT DIRECTORY MEMBER...

whole: the object into a file, then zipfile. reader: zipfile over the client's BlobReader.
"""

import os
import sys
import zipfile
from pathlib import Path
from typing import IO, Any

from google.auth.credentials import AnonymousCredentials
from google.cloud import storage


def extract(file: Any, target: Path, members: list[str]) -> None:
    """Extract members."""
    with zipfile.ZipFile(file) as archive:
        for member in members:
            archive.extract(member, target)


def main() -> None:
    """Fetch the members."""
    how, endpoint, bucket, name, directory, *members = sys.argv[1:]
    os.environ.setdefault("DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA", "true")
    client = storage.Client(
        project="none",
        credentials=AnonymousCredentials(),  # type: ignore[no-untyped-call]
        client_options={"api_endpoint": endpoint},
    )
    blob, target = client.bucket(bucket).blob(name), Path(directory)
    if how == "whole":
        whole = target / "image.zip"
        blob.download_to_filename(str(whole))
        extract(whole, target, members)
        whole.unlink()
    else:
        file: IO[bytes] = blob.open("rb")
        with file:
            extract(file, target, members)


if __name__ == "__main__":
    main()
