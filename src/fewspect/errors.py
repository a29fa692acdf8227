"""The one exception that users see: what went wrong and what to do, in two lines, exit code 2."""

EXIT_CODE = 2


class UserError(Exception):
    """A mistake that the user can mend.

    Args:
        message: What is wrong and where (one sentence, names the file, option or class).
        hint: What to do about it (one sentence); may be empty.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint)  # both in args, so that the error survives pickling between workers
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        """Return the two lines that are printed."""
        return f"{self.message}\n{self.hint}" if self.hint else self.message
