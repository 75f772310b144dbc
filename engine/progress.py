"""What a command shows while it works, as `pipelines.progress` has it."""

from pipelines.progress import Advance, bar, console, say

__all__ = ["Advance", "bar", "console", "say"]
