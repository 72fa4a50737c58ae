"""What the operator of a server chose: where it listens, who may call it, and how much it takes."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError

LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")
KIB = 1024


@dataclass(frozen=True)
class ServerSettings:
    """The server's own settings; the engine's and the backend's are EngineConfig and Limits.

    host, port: where it listens; anything but loopback needs api_keys or is_open. api_keys: bearer tokens, one of which every request
    must bring (none: no key is asked for). allowed_hosts: names accepted in the Host header beside the loopback ones, "*" for any.
    cors_origins: web pages of other origins that may call it, none by default. max_body_kib: largest request. max_steps: largest
    `steps` of a request. adapter_folder: adapters may be loaded by path below it, None: not at all. has_demo: serve the demo pages.
    served_name: the model's name, None takes the adapter's or the base's own. stream_buffer_s: how long one write may wait for a client.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    is_open: bool = False
    allowed_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    max_body_kib: int = 1024
    max_steps: int = 1024
    adapter_folder: Path | None = None
    has_demo: bool = False
    served_name: str | None = None
    stream_buffer_s: float = 30.0

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65536:
            raise ConfigError(f"port is {self.port}, expected 0 to 65535.")
        for name in ("max_body_kib", "max_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected at least 1.")
        if self.stream_buffer_s <= 0:
            raise ConfigError(f"stream_buffer_s is {self.stream_buffer_s}, expected more than 0.")
        if not is_loopback(self.host):
            if not self.api_keys and not self.is_open:
                raise ConfigError(
                    f"host is {self.host}, which other machines reach, and there is no API key, expected one. "
                    "Give --api-keys FILE, or --without-keys to let anyone in."
                )
            if not self.allowed_hosts:
                raise ConfigError(
                    f"host is {self.host} and no name is allowed, expected those that clients use. "
                    "Give --allowed-host NAME for each, or --allowed-host '*'."
                )
        if self.adapter_folder is not None and not self.adapter_folder.is_dir():
            raise ConfigError(f"adapter_folder is {self.adapter_folder}, expected a folder. Create it or correct the path.")

    def allows_host(self, header: str) -> bool:
        """Say whether a Host header names this server; a page of another name that resolves here does not get in."""
        if "*" in self.allowed_hosts:
            return True
        name = header.rsplit(":", 1)[0] if header.rfind(":") > header.rfind("]") else header
        return name.lower() in {*LOCAL_NAMES, *(host.lower() for host in self.allowed_hosts)}


def is_loopback(host: str) -> bool:
    """Say whether only this machine reaches `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_keys(path: Path) -> tuple[str, ...]:
    """Return the API keys of a file, one per line; empty lines and those that begin with # are left out.

    Raises:
        ConfigError: it cannot be read, holds none, or one of them is shorter than 16 letters.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"api-keys: {path} cannot be read ({error}), expected a text file with one key per line.") from error
    keys = tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
    _check_keys(path, keys)
    return keys


def _check_keys(path: Path, keys: Sequence[str]) -> None:
    if not keys:
        raise ConfigError(f"api-keys: {path} holds none, expected one per line. Put at least one there.")
    short = [number for number, key in enumerate(keys, start=1) if len(key) < 16 or not key.isascii()]
    if short:
        raise ConfigError(f"api-keys: key {short[0]} of {path} is short or not ASCII, expected at least 16 letters. Make a random one.")
