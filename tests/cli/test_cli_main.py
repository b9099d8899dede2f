from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from cli_process import PROGRAM, Cli, environment, infid_export

from infid_engines import registry
from infid_engines.errors import BuildError, ParityError
from infid_export.cli import flags, main

LIGHT = ("infid_export", "infid_engines", "infid_kernels", "rich")  # rich draws what is printed


@pytest.mark.parametrize(
    "command", [(), *((name,) for name in main.COMMANDS)], ids=lambda words: " ".join(words) or "-"
)
def test_help_imports_nothing_heavy(command: tuple[str, ...]) -> None:
    """Heavy imports make help slow; benchmarks/rebuild_speed.py measures its time."""
    program = (
        "import sys\nbefore = set(sys.modules)\nfrom infid_export.cli.main import run\ncode = run(sys.argv[1:])\n"
        "found = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        f"print(sorted(found - set(sys.stdlib_module_names) - set({LIGHT})), code, file=sys.stderr)"
    )
    found = infid_export(*command, "--help", program=program)
    assert found.stderr.strip() == "[] 0"
    assert found.stdout.startswith("usage: infid-export")


@pytest.mark.parametrize(
    ("words", "problem", "fix"),
    [
        ((), "COMMAND", "infid-export --help"),
        (("biuld",), "no command 'biuld'", "`build`"),
        (("build", "--bakend", "auto"), "no flag --bakend", "`--backend`"),
        (("build", "--model=demo", "--fp17"), "no flag --fp17", "`--fp16`"),
        (("build", "--precis", "fp16"), "no flag --precis", "--precision"),
        (("build", "demo"), "does not take 'demo'", "infid-export build --help"),
        (("build", "--height", "tall"), "--height: invalid int value: 'tall'", "infid-export build --help"),
        (("build", "--height", "100"), "multiple of 32", "96"),
        (("build", "--backend", "openvino"), "invalid choice: 'openvino'", "infid-export build --help"),
        (("generate", "a", "--device", "cuda:x"), "There is no device 'cuda:x'", "Give auto, cpu, cuda, or cuda:1"),
        (("evaluate", "--device=gpu", "--dry-run"), "There is no device 'gpu'", "Give auto, cpu, cuda, or cuda:1"),
        (("build", "--fp16", "--precision", "fp32"), "not allowed with", "infid-export build --help"),
        (("enroll",), "PHOTO", "infid-export enroll --help"),
        (("inspect", "nowhere"), "nothing at nowhere", "engine folder"),
    ],
)
def test_wrong_usage_says_what_to_do(cli: Cli, words: tuple[str, ...], problem: str, fix: str) -> None:
    code, out, err = cli(*words)
    assert (code, out) == (1, "")
    first, second = err.splitlines()
    assert first.startswith("error: ")
    assert problem in first
    assert second.startswith("  fix: ")
    assert fix in second


def test_wrong_usage_as_json(cli: Cli) -> None:
    code, out, _ = cli("inspect", "--json", "--depth", "3")
    assert code == 1
    assert json.loads(out)["error"]["kind"] == "InputError"


@pytest.mark.parametrize("kind", [ParityError, BuildError])
def test_a_known_error_is_one_message(cli: Cli, monkeypatch: pytest.MonkeyPatch, kind: type[BuildError]) -> None:
    fail_with(monkeypatch, kind("It differs.", fix="Use fp32."))
    code, out, err = cli("build", "--json", "--quiet")
    assert code == 1
    assert json.loads(out) == {"error": {"kind": kind.__name__, "problem": "It differs.", "fix": "Use fp32."}}
    assert err == "error: It differs.\n  fix: Use fp32.\n"


def test_a_fault_of_ours_shows_its_traceback(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, ZeroDivisionError("x / 0"))
    code, out, err = cli("build", "--json")
    assert code == 2
    assert "Traceback" in err
    assert "ZeroDivisionError: x / 0" in err
    assert "This is a bug in infid-export" in err
    assert json.loads(out)["error"]["kind"] == "ZeroDivisionError"


def test_a_refusal_of_the_machine_is_not_called_our_fault(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, PermissionError(13, "Permission denied", "/models/unet"))
    code, _, err = cli("build")
    assert code == 1
    assert "/models/unet: Permission denied" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("error", "home"),
    [
        (FileNotFoundError(2, "No such file or directory", "/proc/nowhere"), "/proc/nowhere/me"),
        (NotADirectoryError(20, "Not a directory", "/dev/null/.triton"), "/dev/null"),
        (PermissionError(13, "Permission denied", "/proc/nowhere/.cache/x"), "/proc/nowhere"),
        (RuntimeError("Could not determine home directory."), "/"),
    ],
)
def test_a_home_that_cannot_be_written_is_named(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, error: Exception, home: str
) -> None:
    monkeypatch.setenv("HOME", home)
    fail_with(monkeypatch, error)
    code, _, err = cli("build")
    assert code == 1
    problem, fix = err.splitlines()[-2:]
    assert problem == f"error: A cache cannot be written: {error}."
    assert "HOME" in fix


def test_a_missing_file_in_a_good_home_is_our_fault(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    fail_with(monkeypatch, FileNotFoundError(2, "No such file or directory", str(tmp_path / "x")))
    assert cli("build")[0] == 2


def test_kernels_compile_into_no_cache_without_a_traceback(tmp_path: Path) -> None:
    words = ("compile-kernels", "--target", "sm_90", "-o", str(tmp_path / "kernels"))
    found = infid_export(*words, HOME="/dev/null", TRITON_INTERPRET="0")
    assert found.returncode == 1
    assert "A cache cannot be written: " in found.stderr
    assert "Traceback" not in found.stderr


WITHOUT = """
from importlib.machinery import PathFinder
found = PathFinder.find_spec
PathFinder.find_spec = lambda name, *rest: None if name.split(".")[0] in {names} else found(name, *rest)
"""


@pytest.mark.parametrize("arguments", [("build", "--backend", "onnxruntime"), ("build", "--dry-run")])
def test_a_missing_extra_is_named_and_is_not_our_fault(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    program = f"import os; os.chdir({str(tmp_path)!r})\n" + WITHOUT.format(names=("torch",)) + PROGRAM
    found = infid_export(*arguments, program=program)
    assert found.returncode == 1, found.stderr
    assert "needs torch, which is not installed" in found.stderr
    assert 'pip install "infid-export[export]"' in found.stderr
    assert "Traceback" not in found.stderr


def test_a_server_without_the_exporter_can_inspect(small_folder: Path) -> None:
    program = WITHOUT.format(names=("torch", "onnx", "onnxscript", "diffusers")) + PROGRAM
    found = infid_export("inspect", str(small_folder), program=program)
    assert found.returncode == 0, found.stderr
    assert "vae_decoder" in found.stdout


def test_a_common_flag_before_the_command_is_explained(cli: Cli) -> None:
    code, _, err = cli("--json", "inspect")
    assert code == 1
    assert "Write `infid-export inspect --json`" in err + _


def test_interrupt_says_that_a_rerun_resumes() -> None:
    program = (
        "import os, signal\nimport infid_export.export.builder as module\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored in background processes of a script
        "module.build = lambda options, reporter: os.kill(os.getpid(), signal.SIGINT) or __import__('time').sleep(9)\n"
    )
    found = infid_export("build", program=program + PROGRAM)
    assert found.returncode == 130
    assert "resumes" in found.stderr
    assert "Traceback" not in found.stderr


def test_a_closed_pipe_is_silent(small_folder: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, "inspect", str(small_folder), "--quiet"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()) as process:
        assert process.stdout is not None
        process.stdout.close()
        _, err = process.communicate()
    assert process.returncode == 1
    assert err == b""


def test_a_full_disk_behind_stdout_is_named(small_folder: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    for unbuffered in ("", "1"):
        command = [sys.executable, "-c", PROGRAM, "inspect", str(small_folder), "--quiet"]
        with Path("/dev/full").open("w") as full:
            found = subprocess.run(
                command, stdout=full, stderr=subprocess.PIPE, env=environment(PYTHONUNBUFFERED=unbuffered), check=False
            )
        assert found.returncode == 1
        assert b"No space left on device" in found.stderr
        assert b"Traceback" not in found.stderr
        assert b"ignored" not in found.stderr


def test_a_terminal_without_utf8(small_folder: Path) -> None:
    found = infid_export("inspect", str(small_folder), PYTHONIOENCODING="ascii")
    assert found.returncode == 0
    assert "64 ? 64" in found.stdout


def test_what_libraries_print_stays_off_stdout(cli: Cli, monkeypatch: pytest.MonkeyPatch, small_folder: Path) -> None:
    from infid_engines.manifest import Manifest

    load = Manifest.load
    monkeypatch.setattr(Manifest, "load", lambda folder: (print("chatter"), load(folder))[1])  # noqa: T201
    code, out, err = cli("inspect", small_folder, "--json")
    assert code == 0
    json.loads(out)
    assert "chatter" in err


def test_version(cli: Cli) -> None:
    assert cli("--version")[:2] == (0, "infid-export 0.1.0\n")


def test_a_flag_means_one_thing_in_all_commands() -> None:
    meanings: dict[str, set[tuple[object, ...]]] = {}
    for command in main.COMMANDS:
        parser = main.make_parser(command)
        (commands,) = (action for action in parser._actions if action.dest == "command")
        for action in commands.choices[command]._actions:  # type: ignore[index]
            for flag in action.option_strings:
                meanings.setdefault(flag, set()).add((action.help, action.type, action.metavar))
    # -o is each command's own output, build takes several backends where the others take one, and evaluate compares
    # with another evaluation where bench compares with other software; --people is a number of slots or a folder
    differing = {flag for flag, seen in meanings.items() if len(seen) > 1}
    assert differing == {"-o", "--output", "--backend", "--against", "--people"}


@pytest.mark.parametrize("command", main.COMMANDS)
def test_no_default_path_is_source_code_in_a_clone(command: str) -> None:
    parser = main.make_parser(command)
    (commands,) = (action for action in parser._actions if action.dest == "command")
    defaults = [action.default for action in commands.choices[command]._actions]  # type: ignore[index]
    root = Path(__file__).parents[2]
    taken = [str(path) for path in defaults if isinstance(path, Path) and any((root / path).rglob("*.py"))]
    assert taken == []


def test_the_backends_are_those_of_the_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.BACKENDS, "toy", registry.BACKENDS[registry.PARITY_BACKEND])
    assert flags.backend_choices() == ("auto", *registry.BACKENDS)
    assert main.make_parser("build").parse_args(["build", "--backend", "toy"]).backends == ["toy"]


def fail_with(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    import infid_export.export.builder as module

    def build(options: object, reporter: object) -> None:
        raise error

    monkeypatch.setattr(module, "build", build)
