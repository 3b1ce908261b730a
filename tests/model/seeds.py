"""Seeds that show a planted fault, where the first does not: `python -m model.soak rules` tells."""

SEEDS = {
    "adopted-in-place": 4,
    "bad-samples-count": 17,
    "chain-renamed": 6,
    "checked-by-name": 34,
    "clones-not-seen": 17,
    "dead-and-unseen": 4,
    "fixed-claim-name": 8,
    "flag-before-touch": 30,
    "goes-on-though-buried": 14,
    "made-in-place": 9,
    "names-as-they-were": 11,
    "never-adopted": 6,
    "never-freed": 13,
    "never-mended": 4,
    "no-desk": 3,
    "no-look-after-an-error": 3,
    "no-recheck": 13,
    "not-touched-again": 2,
    "swept-at-once": 21,
    "the-dead-keep": 7,
    "the-lowest-token": 18,
    "unlinked": 16,
    "unsynced": 22,
    "uses-not-looked-at-again": 2,
    "whatever-is-there": 4,
    "workers-wait": 4,
}

RARE = {"chain-unverified"}
"""What a few histories do not show; looked for by name."""
