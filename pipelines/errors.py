"""The one exception for input that a user can put right."""


class InputError(ValueError):
    """Bad input, told in one line that names it; a command prints it and exits with status 2."""
