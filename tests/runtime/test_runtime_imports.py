from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HEAVY = ("torch", "diffusers", "transformers", "onnx", "insightface", "tensorrt", "tensorrt_rtx", "triton")

RUN = f"""
import sys
import numpy as np
from infid_export import Person, Pipeline
photo = np.zeros((64, 64, 3), np.uint8)
photo[32:36, 32:36] = 255
with Pipeline.load(sys.argv[1]) as pipe:
    person = pipe.enroll(photo)
    person.save(sys.argv[2])
    (image,) = pipe.generate("a", Person.load(sys.argv[2]), seed=1)
assert image.size == (64, 64)
print(*[name for name in {HEAVY!r} if name in sys.modules])
"""

IMPORT = """
import sys
import infid_export
assert infid_export.__version__
print(*[name for name in sys.argv[1:] if name in sys.modules])
try:
    infid_export.Nothing
except AttributeError as error:
    assert "no attribute 'Nothing'" in str(error)
else:
    raise SystemExit("an unknown attribute was found")
"""


def output(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_enrolling_and_generating_import_nothing_of_the_export(tiny_folder: Path, tmp_path: Path) -> None:
    assert output(RUN, str(tiny_folder), str(tmp_path / "person.safetensors")) == ""


def test_importing_the_package_is_free() -> None:
    assert output(IMPORT, *HEAVY, "numpy", "PIL", "onnxruntime", "tokenizers") == ""
