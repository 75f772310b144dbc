"""Names whose accents may be written as one character with their letter, or apart."""

import unicodedata


def composed(name: str) -> str:
    """The name in the one form (NFC), whichever it came in."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)
