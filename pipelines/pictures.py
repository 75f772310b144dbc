"""Finds the picture that a row of a table means."""

import os
from pathlib import Path, PurePosixPath

from pipelines.accents import composed
from pipelines.errors import reading

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".jp2", ".ppm", ".pgm")

MISSING, OUTSIDE, NO_FILE = "no such picture", "outside the data folder", "not a file"


class PictureFolders:
    """The pictures below some folders of a data set, each folder listed once.

    Args:
        root: the data set's folder; nothing outside it is ever found, be it by a name or by a link.
        folders: names of folders below root to search, in this order; "." is root itself.
    """

    def __init__(self, root: Path, folders: tuple[str, ...]) -> None:
        self.root = root
        self.real_root = os.path.realpath(root)
        self.folders = [folder for folder in folders if os.path.isdir(root / folder)]
        self._names: dict[str, dict[str, str]] = {}
        self._stems: dict[str, dict[str, str]] = {}
        self._composed: dict[str, dict[str, str]] = {}
        self._others: dict[str, dict[str, str]] = {}
        self._refused: dict[str, str] = {}

    def find(self, name: str) -> str | None:
        """Path relative to root of the picture with this file name or id; None where there is none inside root."""
        parent, name = self._parted(name)
        if parent is None:
            return None
        for folder in self.folders if not os.path.isabs(parent) else ["."]:
            found = self._look_up(self._place(folder, parent), name)
            if found is not None:
                return None if found in self._refused else found
        return None

    def has(self, name: str) -> bool:
        """Whether `find` finds it."""
        return bool(name) and self.find(name) is not None

    def why_not(self, name: str) -> str:
        """The reason why `find` finds nothing."""
        parent, name = self._parted(name)
        if parent is None:
            return OUTSIDE
        for folder in self.folders:
            place = self._place(folder, parent)
            found = self._look_up(place, name)
            if found is not None:
                return self._refused.get(found, MISSING)
            if os.path.isdir(self.root / place) and not self._inside(self.root / place):
                return OUTSIDE
        other = self._of_another_kind(parent, name)
        return MISSING if other is None else f"{other} is no picture by its name"

    def _of_another_kind(self, parent: str, name: str) -> str | None:
        """The file of this id, where there is one that is not looked for, as a GIF or HEIC."""
        for folder in self.folders:
            place = self._place(folder, parent)
            if place not in self._others:
                self._others[place] = {os.path.splitext(entry)[0]: entry for entry in self._names.get(place, {})}
            if name in self._others[place]:
                return self._others[place][name]
        return None

    def _parted(self, name: str) -> tuple[str | None, str]:
        """Folder and name; the folder "" where there is none, absolute below root, None where it leads outside."""
        if "/" not in name and "\\" not in name:
            return "", name
        path = PurePosixPath(name.replace("\\", "/"))
        if ".." in path.parts:
            return None, path.name
        if path.is_absolute():
            roots = [base for base in (self.root.absolute(), self.real_root) if path.is_relative_to(base)]
            return (f"/{path.relative_to(roots[0]).parent}" if roots else None), path.name
        return str(path.parent), path.name

    @staticmethod
    def _place(folder: str, parent: str) -> str:
        if not parent:
            return folder
        return os.path.normpath(parent[1:] if os.path.isabs(parent) else os.path.join(folder, parent))

    def _look_up(self, folder: str, name: str) -> str | None:
        """Path from root of a folder's entry by its name or id; `_refused` has it where it is not to be opened."""
        if folder not in self._names:
            self._names[folder] = self._list(folder)
        found = self._names[folder].get(name)
        if found is not None or not name:
            return found
        if folder not in self._stems:
            self._stems[folder] = _stems(self._names[folder])
        found = self._stems[folder].get(name)
        return found if found is not None or name.isascii() else self._look_up_composed(folder, name)

    def _look_up_composed(self, folder: str, name: str) -> str | None:
        """The same where one side has accents as characters of their own, as the files of a Mac have."""
        if folder not in self._composed:
            entries = self._names[folder].items()
            names = {composed(entry): path for entry, path in entries if not entry.isascii()}
            self._composed[folder] = _stems(names) | names
        return self._composed[folder].get(composed(name))

    def _list(self, folder: str) -> dict[str, str]:
        place = self.root / folder
        if not os.path.isdir(place) or not self._inside(place):
            return {}
        start = "" if folder == "." else f"{folder}/"
        paths = {}
        with reading(place), os.scandir(place) as entries:
            for entry in entries:
                path = start + entry.name
                if entry.is_symlink():  # is_file() raises where links go in a circle
                    if not self._inside(place / entry.name):
                        self._refused[path] = OUTSIDE
                    elif os.path.isdir(place / entry.name):
                        continue
                    elif not os.path.isfile(place / entry.name):
                        self._refused[path] = MISSING
                elif entry.is_dir():
                    continue
                elif not entry.is_file():  # a pipe would be waited for without end
                    self._refused[path] = NO_FILE
                paths[entry.name] = path
        return paths

    def _inside(self, path: Path) -> bool:
        return Path(os.path.realpath(path)).is_relative_to(self.real_root)


def _stems(paths: dict[str, str]) -> dict[str, str]:
    """Pictures by their names without the ending; of several endings the first in the alphabet counts."""
    pictures = sorted((name for name in paths if name.lower().endswith(SUFFIXES)), reverse=True)
    return {os.path.splitext(name)[0]: paths[name] for name in pictures}
