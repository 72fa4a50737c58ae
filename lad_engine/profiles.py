"""Named sets of decoding rules, read from `assets/profiles.json`: what each system of the literature does, in our words."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from importlib import resources
from typing import Any

from .config import SamplingParams, canonical_names, unread_settings
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


def profile_params(name: str, settings: Mapping[str, Any]) -> SamplingParams:
    """Return a profile's sampling parameters with `settings` (names or aliases) laid over them.

    What the profile says for a rule that the settings replace gives way (its sharpness where they ask for a linear schedule).
    Raises:
        ConfigError: there is no such profile, a name is unknown, or a setting cannot hold beside the others.
    """
    profile, asked = load_profile(name), canonical_names(settings)
    unread = unread_settings({**profile, **asked})
    kept = {field: value for field, value in profile.items() if field not in unread}
    return SamplingParams(**{**kept, "profile": name, **asked})


def _read() -> dict[str, Any]:
    text = (resources.files(__package__) / "assets" / "profiles.json").read_text(encoding="utf-8")
    return json.loads(text)
