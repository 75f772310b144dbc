"""Finds the picture that a row of a table means."""

import os
from pathlib import Path, PurePosixPath

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".jp2", ".ppm", ".pgm")


class PictureFolders:
    """The pictures below some folders of a data set, each folder listed once.

    Args:
        root: the data set's folder; nothing outside it is ever found.
        folders: names of folders below root to search, in this order; "." is root itself.
    """

    def __init__(self, root: Path, folders: tuple[str, ...]) -> None:
        self.root = root
        self.real_root = root.resolve()
        self.folders = [folder for folder in folders if (root / folder).is_dir()]
        self._names: dict[str, dict[str, str]] = {}

    def _listing(self, folder: str) -> dict[str, str]:
        """File names of a folder, and names without their ending, to file names."""
        if folder not in self._names:
            files = sorted(entry.name for entry in os.scandir(self.root / folder) if not entry.is_dir())
            pictures = [name for name in files if name.lower().endswith(SUFFIXES)]
            stems = {os.path.splitext(name)[0]: name for name in reversed(pictures)}
            self._names[folder] = {**stems, **{name: name for name in files}}
        return self._names[folder]

    def find(self, name: str) -> str | None:
        """Path relative to root of the picture with this file name or id; None where there is none inside root."""
        path = PurePosixPath(name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or not path.name:
            return None
        for folder in self.folders:
            below = os.path.normpath(os.path.join(folder, path.parent))
            if below != "." and not (self.root / below).is_dir():
                continue
            found = self._listing(below).get(path.name)
            if found is not None:
                return self._inside(os.path.normpath(os.path.join(below, found)))
        return None

    def _inside(self, relative: str) -> str | None:
        file = self.root / relative
        if file.is_symlink() and not file.resolve().is_relative_to(self.real_root):
            return None
        return relative
