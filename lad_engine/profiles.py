"""Named sets of decoding rules, read from `assets/profiles.json`: what each system of the literature does, in our words."""

from __future__ import annotations

import difflib
import functools
import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from .config import SamplingParams, canonical_names, unread_settings
from .errors import ConfigError

# How the profile of a file beside an adapter is called in results.
TUNED = "tuned"


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

    What the profile says for a rule that the settings replace gives way, as its sharpness where they ask for a linear schedule.
    Raises:
        ConfigError: there is no such profile, a name is unknown, or a setting cannot hold beside the others.
    """
    return laid_over(name, load_profile(name), settings)


def laid_over(name: str, profile: Mapping[str, Any], settings: Mapping[str, Any]) -> SamplingParams:
    """Return the sampling parameters of a profile given by its fields, `settings` laid over them; as `profile_params`."""
    asked = canonical_names(settings)
    unread = unread_settings({**profile, **asked})
    kept = {field: value for field, value in profile.items() if field not in unread}
    return SamplingParams(**{**kept, "profile": name, **asked})


def beside_adapter(adapter_path: str | Path) -> Path:
    """Return where an adapter's tuned profile is kept: profile.json in a folder, <name>.profile.json next to a file."""
    place = Path(adapter_path)
    return place / "profile.json" if place.is_dir() else place.with_suffix(".profile.json")


def profile_beside(adapter_path: str | Path | None) -> dict[str, Any] | None:
    """Return the fields of the profile that a search left beside an adapter, None where there is none.

    Raises:
        ConfigError: the file cannot be read, or its settings hold for no decode.
    """
    place = None if adapter_path is None else beside_adapter(adapter_path)
    if place is None or not place.is_file():
        return None
    try:
        settings = json.loads(place.read_text(encoding="utf-8"))["settings"]
        laid_over(TUNED, settings, {})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{place}: is no decode profile ({error}), expected an object with settings. Remove it or run --tune-profile again."
        ) from error
    return dict(settings)


@functools.cache
def _read() -> dict[str, Any]:
    text = (resources.files(__package__) / "assets" / "profiles.json").read_text(encoding="utf-8")
    return json.loads(text)
