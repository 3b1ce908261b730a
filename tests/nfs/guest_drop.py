"""Runs on a machine: drops requests as a careful script does (write, then mv).

usage: guest_drop.py BOX LIST SIDE SECONDS. LIST is JSON, [{name, side, text}]; those of SIDE are
dropped, spread over SECONDS.
"""

import json
import sys
import time
from pathlib import Path


def main() -> None:
    """Drop them all."""
    box, listed, side, seconds = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4]
    mine = [item for item in json.loads(listed.read_text()) if item["side"] == side]
    for item in mine:
        tmp = box / f".{item['name']}.tmp"
        tmp.write_text(item["text"])
        tmp.rename(box / f"{item['name']}.yaml")
        time.sleep(float(seconds) / len(mine))


if __name__ == "__main__":
    main()
