"""remotezip: zipfile over ranged requests.    python remote.py URL DIRECTORY MEMBER..."""

import sys

from remotezip import RemoteZip


def main() -> None:
    """Fetch the members."""
    url, target, *members = sys.argv[1:]
    with RemoteZip(url) as archive:
        for member in members:
            archive.extract(member, target)


if __name__ == "__main__":
    main()
