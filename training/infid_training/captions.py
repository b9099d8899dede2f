"""Which caption belongs to which photo: the habits of the tools that write captions, without guessing.

A photo `IMG_0.PNG` is described by `IMG_0.txt` or `IMG_0.PNG.txt`; by a name that differs in upper and lower case or
in its Unicode form alone, such as `img_0.txt`; or, as WebDataset names files, by one that goes on after the first dot,
such as `IMG_0.en.txt`. Endings are `.txt`, `.caption`, `.cap`, and `.json` with a "caption" in it (img2dataset's).
"""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from infid_engines.errors import InputError
from infid_engines.text_files import read_json, read_text

TEXT_ENDINGS = (".txt", ".caption", ".cap")
_JSON = ".json"
ENDINGS = (*TEXT_ENDINGS, _JSON)
_KEY = "caption"


class Captions:
    """The captions of one person's photos.

    Args:
        photos: all of one folder.
        files: of the same folder, those whose names end in one of `ENDINGS`.
    """

    def __init__(self, photos: Sequence[Path], files: Sequence[Path]) -> None:
        found = [path for path in files if path.suffix.lower() != _JSON or _json_caption(path) is not None]
        exact = _by(lambda path: path.stem, found)
        self._files = {photo: exact[photo.name] or exact[photo.stem] for photo in photos}
        taken = {path for paths in self._files.values() for path in paths}
        free = [path for path in found if path not in taken]
        alike, begun = _by(lambda path: _folded(path.stem), free), _by(lambda path: _begin(path.name), free)
        sharing = Counter(_begin(photo.name) for photo in photos)
        for photo in photos:
            name, whole, begin = _folded(photo.name), _folded(photo.stem), _begin(photo.name)
            # only one of the two names may go on after the first dot, and no other photo's may begin so
            farther = (begun if whole == begin else alike)[begin] if sharing[begin] == 1 else []
            self._files[photo] = self._files[photo] or alike[name] or alike[whole] or farther
        used = {path for paths in self._files.values() for path in paths}
        self.unused = tuple(path.name for path in found if path not in used)

    def of(self, photo: Path) -> str | None:
        """Return what a photo's caption says, None if there is none or it is empty.

        Raises:
            InputError: it cannot be read, or there are two that differ.
        """
        texts = {text: path.name for path in self._files[photo] if (text := _text(path))}
        if len(texts) > 1:
            raise InputError(f"Captions that differ: {', '.join(texts.values())}.", fix="Keep one of them.")
        return next(iter(texts), None)


def _by(key: Callable[[Path], str], files: Sequence[Path]) -> defaultdict[str, list[Path]]:
    found = defaultdict(list)
    for path in files:
        found[key(path)].append(path)
    return found


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _begin(name: str) -> str:
    """Return what WebDataset takes for the name of a sample."""
    return _folded(name.partition(".")[0])


def _text(path: Path) -> str:
    is_json = path.suffix.lower() == _JSON
    text = _json_caption(path) if is_json else read_text(path, name=f"The caption {path.name}")
    return (text or "").strip()


def _json_caption(path: Path) -> str | None:
    """Return the caption in a JSON file, None if it is about something else."""
    try:
        values = read_json(path)
    except InputError:
        return None  # cameras and albums write files of that ending too
    caption = values.get(_KEY) if isinstance(values, dict) else None
    return caption if isinstance(caption, str) else None
