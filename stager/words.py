"""Sizes and durations in the words of a person."""


def in_bytes(count: float) -> str:
    """Return a number of bytes in three digits: 1.05 GB."""
    unit = "B"
    for larger in ("kB", "MB", "GB", "TB", "PB"):
        if abs(count) < 999.5:
            break
        count, unit = count / 1000, larger
    return f"{count:.0f} {unit}" if unit == "B" or count >= 99.95 else f"{count:.3g} {unit}"


def counted(count: int, what: str) -> str:
    """Return a number of things: 1 build, 2 builds."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def in_seconds(seconds: float | None) -> str:
    """Return a duration in its two largest units: 2 h 5 min; from ten minutes on, no seconds."""
    if seconds is None:
        return "?"
    left = max(0, round(seconds))
    left -= left % 60 if left >= 600 else 0
    parts: list[str] = []
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if left >= length or (unit == "s" and not parts):
            parts.append(f"{left // length} {unit}")
            left %= length
    return " ".join(parts[:2])
