"""Finds the picture that a row of a table means."""

import os
from pathlib import Path, PurePosixPath

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".jp2", ".ppm", ".pgm")

MISSING, OUTSIDE = "no such picture", "outside the data folder"


class PictureFolders:
    """The pictures below some folders of a data set, each folder listed once.

    Args:
        root: the data set's folder; nothing outside it is ever found, be it by a name or by a link.
        folders: names of folders below root to search, in this order; "." is root itself.
    """

    def __init__(self, root: Path, folders: tuple[str, ...]) -> None:
        self.root = root
        self.real_root = root.resolve()
        self.folders = [folder for folder in folders if (root / folder).is_dir()]
        self._names: dict[str, dict[str, str]] = {}
        self._stems: dict[str, dict[str, str]] = {}

    def find(self, name: str) -> str | None:
        """Path relative to root of the picture with this file name or id; None where there is none inside root."""
        parent = ""
        if "/" in name or "\\" in name:
            path = PurePosixPath(name.replace("\\", "/"))
            if path.is_absolute() or ".." in path.parts:
                return None
            parent, name = str(path.parent), path.name
        for folder in self.folders:
            found = self._look_up(os.path.normpath(os.path.join(folder, parent)) if parent else folder, name)
            if found is not None:
                return found or None
        return None

    def why_not(self, name: str) -> str:
        """The reason why `find` finds nothing."""
        path = PurePosixPath(name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts:
            return OUTSIDE
        for folder in self.folders:
            below = self.root / folder / path.parent
            found = self._look_up(os.path.normpath(os.path.join(folder, path.parent)), path.name)
            if found == "" or (below.is_dir() and not self._inside(below)):
                return OUTSIDE
        return MISSING

    def _look_up(self, folder: str, name: str) -> str | None:
        """Path from root of a folder's file by its name or id; "" where it leads outside."""
        if folder not in self._names:
            self._names[folder] = self._list(folder)
        found = self._names[folder].get(name)
        if found is not None or not name:
            return found
        if folder not in self._stems:
            self._stems[folder] = _stems(self._names[folder])
        return self._stems[folder].get(name)

    def _list(self, folder: str) -> dict[str, str]:
        place = self.root / folder
        if not place.is_dir() or not self._inside(place):
            return {}
        start = "" if folder == "." else f"{folder}/"
        paths = {}
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.is_symlink() and not self._inside(place / entry.name):
                    paths[entry.name] = ""
                elif entry.is_file():  # no pipe, which would keep the reader waiting
                    paths[entry.name] = start + entry.name
        return paths

    def _inside(self, path: Path) -> bool:
        try:
            return path.resolve().is_relative_to(self.real_root)
        except (OSError, RuntimeError):  # links in a circle
            return False


def _stems(paths: dict[str, str]) -> dict[str, str]:
    """Pictures by their names without the ending; of several endings the first in the alphabet counts."""
    pictures = sorted((name for name in paths if name.lower().endswith(SUFFIXES)), reverse=True)
    return {os.path.splitext(name)[0]: paths[name] for name in pictures}
