"""The kinds of input that are fuzzed, and how many cases each has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fuzz_checkpoints import configurations
from fuzz_commands import command_lines, processes
from fuzz_documents import bundles, users_documents
from fuzz_folders import engine_files, forged_manifests, manifests, parity_documents, tokenizers
from fuzz_harness import Attempt
from fuzz_images import photos
from fuzz_shards import indices, run_states, tars
from fuzz_weights import identities, people, templates, unsealed_identities


@dataclass(frozen=True)
class Kind:
    """One kind of input.

    Args:
        prepare: writes the files to be damaged into an empty folder, and returns a function that tries one case.
        always: number of cases in every test run.
        long: number of cases in a long run.
    """

    prepare: Callable[[Path], Attempt]
    always: int
    long: int


KINDS: Mapping[str, Kind] = {
    "photos": Kind(photos, 100, 2500),
    "people": Kind(people, 40, 1000),
    "templates": Kind(templates, 40, 1000),
    "identity weights": Kind(identities, 40, 1000),
    "identity weights of other software": Kind(unsealed_identities, 20, 500),
    "manifests": Kind(manifests, 40, 1000),
    "manifests under a fresh seal": Kind(forged_manifests, 40, 800),
    "files of engine folders": Kind(engine_files, 30, 600),
    "parity documents": Kind(parity_documents, 20, 400),
    "tokenizers": Kind(tokenizers, 40, 1000),
    "checkpoint configurations": Kind(configurations, 30, 800),
    "command lines": Kind(command_lines, 50, 2000),
    "command lines in processes": Kind(processes, 1, 50),
    "documents of users": Kind(users_documents, 30, 800),
    "bundles of kernels": Kind(bundles, 20, 400),
    "indices of shards": Kind(indices, 20, 500),
    "shards": Kind(tars, 40, 1000),
    "states of trainings": Kind(run_states, 20, 400),
}
