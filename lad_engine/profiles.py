"""Named sets of decoding rules, read from `assets/profiles.json`: what each system of the literature does, in our words."""

from __future__ import annotations

import difflib
import json
from importlib import resources
from typing import Any

from .errors import ConfigError


def profile_names() -> tuple[str, ...]:
    """Return the names of all profiles, in the order of the file."""
    return tuple(_read())


def profile_meanings() -> dict[str, str]:
    """Return every profile's name and one paragraph on what it does and where it differs from its source."""
    return {name: profile["meaning"] for name, profile in _read().items()}


def load_profile(name: str) -> dict[str, Any]:
    """Return the SamplingParams fields of a profile.

    Raises:
        ConfigError: there is no such profile.
    """
    profiles = _read()
    if name not in profiles:
        close = difflib.get_close_matches(name, profiles, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise ConfigError(f"profile is {name!r}, expected one of {', '.join(profiles)}.{hint}")
    return dict(profiles[name]["settings"])


def _read() -> dict[str, Any]:
    text = (resources.files(__package__) / "assets" / "profiles.json").read_text(encoding="utf-8")
    return json.loads(text)
