"""What tests do to a machine, told step by step: `pytest -s` shows it."""

MOST_LINES = 40


def tell(what: str, said: str = "") -> None:
    """Print a step for the transcript; what is very long, without its middle."""
    lines = said.splitlines()
    if len(lines) > MOST_LINES:
        half = MOST_LINES // 2
        lines = [*lines[:half], f"... {len(lines) - MOST_LINES} lines ...", *lines[-half:]]
    print(what, *(f"  {line}" for line in lines), sep="\n", flush=True)
