"""What a soak has measured, as lines of its output: docs/explanation/reliability.md quotes them."""


def figure(what: str, value: object) -> None:
    """Say what was measured; `make soak` shows it."""
    print(f"figure: {what}: {value}", flush=True)
