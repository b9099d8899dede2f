"""Fuzzed command lines: the exit code is 0 or 1, and the problem is reported in one message without a traceback."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from random import Random
from typing import Any, NoReturn
from unittest.mock import patch

from fuzz_folders import inside, person, small_folder
from fuzz_harness import AcceptedDamageError, Attempt
from mutations import NUMBERS, TEXTS
from PIL import Image

from infid_engines.errors import InfidError, InputError
from infid_export.cli.main import COMMANDS, run
from infid_export.runtime.pipeline import Pipeline

# Where hours of work would begin; everything before that is real.
_WORK = (
    "infid_export.export.builder.build", "infid_export.export.builder.verify",
    "infid_export.export.build_estimate.estimate",
    "infid_export.export.face_models.open_detector", "infid_export.export.face_models.write_shipped",
    "infid_export.export.bundle_compilation.compile_bundle", "infid_training.run.train_on_shards",
    "infid_training.run_estimate.estimate", "infid_export.evaluation.scorer_choice.open_scorers",
    "infid_export.evaluation.generators.open_reference", "infid_export.cli.doctor.run", "infid_export.cli.tune.run",
    "infid_export.cli.train_demo.run",
)  # fmt: skip
_LINES = (
    "build --model demo --fp16 --height 64 --width 64 --graph vae_decoder --backend onnxruntime -o out --dry-run",
    "build --precision fp32 --height-range 64 128 256 --batch-range 1 2 4 --target sm_89 sm_120 --parity-size 64",
    "build --model random-sdxl --model-seed 3 --self-attention plain --detector insightface --face-models .",
    "build --kernels triton --fp16 --tuning photo.png --optimization-level 3 --refit --strip --parity-image off",
    "generate prompt --person person.safetensors --engines engines -o out.png --steps 1 --seed 4 --guidance 2.5",
    "generate one two --photo photo.png --face-index 0 --engines engines --height 64 --width 64 --json",
    "generate prompt --negative-prompt ugly --style-strength 0 --identity-strength 1 --person person.safetensors",
    "enroll photo.png photo.png -o who.safetensors --mix person.safetensors:0.3 --stack person.safetensors",
    "template make prompt other --engines engines -o new.safetensors --preview out.png --steps 1 --sampler euler",
    "template preview style.safetensors --engines engines -o out.png", "template list . person.safetensors --json",
    "template check style.safetensors --engines engines --json", "template delete style.safetensors",
    "generate --template style.safetensors --person person.safetensors person.safetensors --engines engines -o out.png",
    "evaluate engines --references world:heldout:1 --prompts world:heldout:2 --stylized 1 --seeds 1 --dry-run",
    "evaluate --model demo --identity person.safetensors --set photo.png --against photo.png -o scores",
    "evaluate engines --references . --prompts photo.png --clip ViT-B-32 photo.png --face-detector drawn",
    "prepare people -o shards --recognizer photo.png --detector drawn --photo-size 64 --crop-size 32 --validation 0.1",
    "train shards -o run --train-steps 2 --batch-size 1 --learning-rate 1e-4 --precision bf16 --optimizer adamw",
    "train --dry-run --estimate-size 512 --gpus 2 --gpu-memory 24 --tflops 100 --model demo",
    "verify engines", "inspect engines --hash --json", "inspect engines/onnx/vae_decoder.onnx", "doctor --json",
    "compile-kernels --target sm_90 sm_80 --dtype float16 --head-size 64 -o kernels", "tune -o tuning.json --quick",
    "train-demo", "--version", "--help", "build --help",
)  # fmt: skip
_WORDS = (
    "-", "--", "---", "--=", "-o", "--json", "--quiet", "--help", "--json=1", "nan", "inf", "-inf", "1e999", "1e-400",
    "0x10", "9" * 400, "9" * 5000, "-1", "0.5", "world:heldout:0", "world:heldout:999999999", "world:", "/dev/null",
    "/dev/zero", "/dev/full", "/proc/self/mem", "/", ".", "..", "~", "empty.png", "folder.png", "loop",
    "missing/out.png",
    "\udcff\udcfe", "a:b:0.5", "x:0.99999999999999999999", ":", "@photo.png", "*", "$HOME", "`id`", "a\nb", "\t",
)  # fmt: skip


def command_lines(folder: Path) -> Attempt:
    """Run odd command lines in this process, in a folder with an engine folder, a person and some odd files."""
    _write_files(folder)

    def attempt(random: Random) -> None:
        arguments = odd_line(random)
        with inside(folder), _work_stopped():
            code, out, err = _run(folder, arguments)
        judge(arguments, code, out, err)
        if code:
            raise InputError(" ".join((err or out).split())[:300].strip(), fix="…")

    return attempt


def processes(folder: Path) -> Attempt:
    """Run odd command lines that start no work in separate processes: they must end as in this process."""
    _write_files(folder)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(Path(entry).resolve()) for entry in sys.path)}

    def attempt(random: Random) -> None:
        begins = True
        while begins:
            arguments = odd_line(random)
            with inside(folder), _work_stopped():
                code, _, err = _run(folder, arguments)
            begins = code == 0 or "The work would begin" in err or len(" ".join(arguments)) > 4000
        found = subprocess.run(
            [sys.executable, "-m", "infid_export", *arguments],
            cwd=folder, env=environment, capture_output=True, text=True, errors="replace", check=False,
        )  # fmt: skip
        judge(arguments, found.returncode, found.stdout, found.stderr)
        if found.returncode != code:
            raise AcceptedDamageError(f"{arguments}: exit code {found.returncode} in a process of its own, here {code}")
        raise InputError(" ".join((found.stderr or found.stdout).split())[:300].strip(), fix="…")

    return attempt


def odd_line(random: Random) -> list[str]:
    """Return the words of an odd command line."""
    lines = [line.split() for line in _LINES]
    flags = sorted({word for line in lines for word in line if word.startswith("-")})
    words = list(random.choice(lines))
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        place = random.randrange(len(words) + 1)
        last = min(place, len(words) - 1)
        what = random.randrange(7)
        if what == 0 and words:
            del words[last]
        elif what == 1:
            words.insert(place, random.choice(flags))
        elif what == 2 and words:
            words.insert(place, random.choice(words))
        elif what == 3 and words:
            words[last] = _odd_word(random)
        elif what == 4 and words:
            words[last] = f"{words[last]}={_odd_word(random)}"
        elif what == 5:
            words[place:place] = random.choice(lines)[1:3]
        else:
            words.insert(place, random.choice((_odd_word(random), random.choice(list(COMMANDS)))))
    return words


def _odd_word(random: Random) -> str:
    plain = [
        text for text in TEXTS if "\0" not in text and "\ud800" not in text
    ]  # no system allows them in a command line
    return random.choice(
        (random.choice(_WORDS), random.choice(_WORDS), random.choice(plain), str(random.choice(NUMBERS)))
    )


def judge(arguments: list[str], code: int, out: str, err: str) -> None:
    """Reject tracebacks, unknown exit codes, and anything but exactly one message."""
    if code not in (0, 1) or "Traceback" in err or "Traceback" in out:
        raise AcceptedDamageError(f"{arguments}: exit code {code}\n{err[-1500:]}")
    if (
        code == 1
        and (err.count("error: ") < 1 or err.count("\n  fix: ") != 1)
        and "FAILED" not in out
        and "Problems" not in out
    ):
        document = out.strip().startswith("{")
        if not document:
            raise AcceptedDamageError(f"{arguments}: no single message\n{err[-1500:]}")


def _write_files(folder: Path) -> None:
    with Pipeline.load(small_folder(folder), backend="onnxruntime") as pipe:
        pipe.template("prompt", seed=1, steps=1, path=folder / "style.safetensors")
    person().save(folder / "person.safetensors")
    Image.new("RGB", (64, 64), "gray").save(folder / "photo.png")
    (folder / "empty.png").touch()
    (folder / "folder.png").mkdir()
    (folder / "people" / "ann").mkdir(parents=True)
    (folder / "loop").symlink_to("loop")


def _run(folder: Path, arguments: list[str]) -> tuple[int, str, str]:
    paths = [folder / name for name in ("stdout", "stderr")]
    with ExitStack() as stack:
        out, err = (stack.enter_context(path.open("w+", encoding="utf-8", errors="replace")) for path in paths)
        with redirect_stdout(out), redirect_stderr(err):
            code = run(arguments)
    return code, *(path.read_text(encoding="utf-8") for path in paths)  # type: ignore[return-value]


class _BegunError(InfidError):
    """The command line was fully parsed, and the work would begin."""


def _begun(*_: Any, **__: Any) -> NoReturn:
    raise _BegunError("The work would begin.", fix="None.")


@contextmanager
def _work_stopped() -> Iterator[None]:
    targets = [target.rpartition(".") for target in _WORK]
    # all modules first: one imported under a patch would keep names from the patched module
    modules = [importlib.import_module(module) for module, _, _ in targets]
    with ExitStack() as stack:
        for module, (_, _, name) in zip(modules, targets, strict=True):
            stack.enter_context(patch.object(module, name, _begun))
        yield
