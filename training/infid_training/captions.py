"""Which caption belongs to which photo: the conventions of the tools that write captions, without guessing.

The caption of a photo `IMG_0.PNG` is `IMG_0.txt` or `IMG_0.PNG.txt`; a name that differs only in case or Unicode form,
such as `img_0.txt`; or, as WebDataset names files, a name with more after the first dot, such as `IMG_0.en.txt`. The
suffixes are `.txt`, `.caption`, `.cap`, and `.json` with a "caption" in it (img2dataset's).
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
        photos: all photos of one folder.
        files: the files in that folder whose suffix is in `ENDINGS`.
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
            # only one of the two names may have more after the first dot, and no other photo may share the beginning
            farther = (begun if whole == begin else alike)[begin] if sharing[begin] == 1 else []
            self._files[photo] = self._files[photo] or alike[name] or alike[whole] or farther
        used = {path for paths in self._files.values() for path in paths}
        self.unused = tuple(path.name for path in found if path not in used)

    def of(self, photo: Path) -> str | None:
        """Return a photo's caption; None if there is none or it is empty.

        Raises:
            InputError: it cannot be read, or the photo has two different captions.
        """
        texts = {text: path.name for path in self._files[photo] if (text := _text(path))}
        if len(texts) > 1:
            raise InputError(f"The captions differ: {', '.join(texts.values())}.", fix="Keep one of them.")
        return next(iter(texts), None)


def _by(key: Callable[[Path], str], files: Sequence[Path]) -> defaultdict[str, list[Path]]:
    found = defaultdict(list)
    for path in files:
        found[key(path)].append(path)
    return found


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _begin(name: str) -> str:
    """Return the part of a file name that WebDataset uses as the sample's key."""
    return _folded(name.partition(".")[0])


def _text(path: Path) -> str:
    is_json = path.suffix.lower() == _JSON
    text = _json_caption(path) if is_json else read_text(path, name=f"The caption {path.name}")
    return (text or "").strip()


def _json_caption(path: Path) -> str | None:
    """Return the caption in a JSON file; None if it has none."""
    try:
        values = read_json(path)
    except InputError:
        return None  # cameras and photo albums write .json files too
    caption = values.get(_KEY) if isinstance(values, dict) else None
    return caption if isinstance(caption, str) else None
