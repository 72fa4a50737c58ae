"""What `--autoregressive` takes from the command line, and what it refuses."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from ..config import AUTOREGRESSIVE_DEFAULTS, READ_AUTOREGRESSIVELY, SamplingParams
from ..errors import ConfigError

# Flags that say something about diffusion decoding or an adapter, by their name in the namespace, with the value that says nothing.
NOT_READ = {
    "profile": None,
    "draft": None,
    "infill": None,
    "trace": None,
    "show_steps": False,
    "drift_report": False,
    "agreement_report": False,
    "mask_token": "MASK",
    "merge": True,
    "any_base": False,
}
FLAGS = {"merge": "--no-merge"}


def autoregressive_params(arguments: argparse.Namespace, settings: Mapping[str, Any]) -> SamplingParams:
    """Return how tokens are chosen: greedily where nothing else is asked for.

    Raises:
        ConfigError: a flag is given that only diffusion decoding or an adapter reads, or an adapter by name.
    """
    given = [name for name, value in NOT_READ.items() if getattr(arguments, name, value) != value]
    given += [name for name in settings if name not in READ_AUTOREGRESSIVELY]
    if given:
        flag = FLAGS.get(given[0], f"--{given[0].replace('_', '-')}")
        raise ConfigError(f"{flag} is given with --autoregressive, expected it only with diffusion decoding. Leave one of them out.")
    if arguments.adapter not in ("default", "none"):
        raise ConfigError(
            f"--adapter is {arguments.adapter} with --autoregressive, expected none: adapters here make diffusion models. Leave it out."
        )
    return SamplingParams(**{**AUTOREGRESSIVE_DEFAULTS, **settings})
