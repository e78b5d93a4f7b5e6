"""What a failed check raises."""


class CheckFailedError(Exception):
    """Something happened that must not."""

    def __init__(self, check: str, message: str, now_ms: int) -> None:
        super().__init__(f"{check} at {now_ms / 1000:.3f} s: {message}")
        self.check = check
