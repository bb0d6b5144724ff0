"""Commands that show and change config.json (cli.md section 3.2)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from pilotfleet.cli.durations import parse_duration
from pilotfleet.cli.failures import UsageError
from pilotfleet.cli.settings import DEFAULT_BEACON, DEFAULT_REGISTRY, default_socket
from pilotfleet.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Callable

    from pilotfleet.cli.arguments import Arguments
    from pilotfleet.cli.invocation import Context

_SECRETS: Final = frozenset(["admin_token", "webhook_secret"])
_CLEARABLE: Final = frozenset(["transport", "proxy", "proxy_cmd"])
_CHOICES: Final = {
    "log_format": ("text", "json"),
    "log_level": ("debug", "info", "warn", "error"),
    "registry_trust": ("pinned", "system"),
    "security_profile": ("compatible", "enterprise"),
    "tls_trust": ("pinned", "system"),
    "transport": ("udp", "compat", "auto"),
}
_ADDRESSES: Final = frozenset(["registry", "beacon"])
_TEXTS: Final = frozenset(
    [
        "admin_token",
        "advertise_endpoint",
        "compat_beacon",
        "email",
        "endpoint",
        "hostname",
        "identity",
        "listen",
        "motd_feed_url",
        "networks",
        "owner",
        "proxy",
        "proxy_cmd",
        "registry_fingerprint",
        "rekey_whitelist",
        "reply_whitelist",
        "sandbox_dir",
        "socket",
        "syn_whitelist",
        "telemetry_url",
        "webhook",
        "webhook_secret",
    ]
)
_BOOLEANS: Final = frozenset(
    [
        "beacon_rtt_probe",
        "dataexchange_b64",
        "encrypt",
        "no_addr_watch",
        "no_dataexchange",
        "no_echo",
        "no_eventstream",
        "no_path_watch",
        "no_rx_watchdog",
        "no_skillinject",
        "public",
        "registry_tls",
        "relay_only",
        "sandbox",
        "strict_dataplane_trust",
        "trust_auto_approve",
    ]
)
_INTEGERS: Final = frozenset(
    [
        "log_max_backups",
        "log_max_size",
        "max_conns_per_port",
        "max_conns_total",
        "syn_rate_limit",
    ]
)
_DURATIONS: Final = frozenset(
    ["idle_timeout", "keepalive", "motd_interval", "time_wait"]
)


def config(context: Context, arguments: Arguments) -> None:
    """Show the configuration, or set one value of it."""
    if arguments.has("set"):
        key, separator, value = arguments.text("set").partition("=")
        if not separator or not key:
            raise UsageError("usage: pilotctl config --set key=value")
        key = key.replace("-", "_")
        context.settings.update(**{key: check_value(key, value)})
        context.output.result({"key": key, "value": value}, f"{key} = {value}")
        return
    settings = context.settings
    shown = {
        key: "(set)" if key in _SECRETS and value else value
        for key, value in settings.config.items()
    }
    context.output.result(
        {
            "registry": settings.registry,
            "socket": settings.socket,
            **shown,
            "config_path": settings.config_path,
            "pid_file": settings.pid_path,
            "log_file": settings.log_path,
        }
    )


def init(context: Context, arguments: Arguments) -> None:
    """Write a configuration; without addresses, for a rendezvous on this machine."""
    values: dict[str, Any] = {
        "registry": arguments.text("registry", DEFAULT_REGISTRY),
        "beacon": arguments.text("beacon", DEFAULT_BEACON),
        "socket": arguments.text("socket", default_socket()),
    }
    if arguments.has("hostname"):
        values["hostname"] = arguments.text("hostname")
    for key, value in values.items():
        check_value(key, value)
    context.settings.update(**values)
    data = {"hostname": context.settings.text("hostname"), **values}
    data["config_path"] = context.settings.config_path
    context.output.result(data, f"wrote {context.settings.config_path}")


def check_value(key: str, value: str) -> Any:
    """Return a configuration value in the form to store.

    Raises:
        InvalidArgument: The key is unknown, or the value not allowed for it.
    """
    if not value and key in _CLEARABLE:
        return None
    for keys, check in _CHECKS:
        if key in keys:
            return check(key, value)
    raise InvalidArgument(f'config: unknown key "{key}"')


def _check_choice(key: str, value: str) -> str:
    choices = _CHOICES[key]
    if value not in choices:
        raise InvalidArgument(f"config: {key} must be one of {', '.join(choices)}")
    return value


def _check_address(key: str, value: str) -> str:
    if not re.fullmatch(r"(\[[^\]]+\]|[^:\s]*):[0-9]{1,5}", value):
        raise InvalidArgument(f"config: {key} must be a host:port address")
    return value


def _check_text(key: str, value: str) -> str:
    if key == "registry_fingerprint" and not re.fullmatch("[0-9a-fA-F]{64}", value):
        raise InvalidArgument(f"config: {key} must be 64 hex digits")
    return value


def _check_boolean(key: str, value: str) -> bool:
    if value not in ("true", "false"):
        raise InvalidArgument(f"config: {key} must be true or false")
    return value == "true"


def _check_integer(key: str, value: str) -> int:
    if not (value.isascii() and value.isdigit()) or len(value) > 12:
        raise InvalidArgument(f"config: {key} must be a whole number, 0 or more")
    return int(value)


def _check_duration(key: str, value: str) -> str:
    parse_duration(value, f"config {key}")
    return value


_CHECKS: Final[tuple[tuple[Any, Callable[[str, str], Any]], ...]] = (
    (_CHOICES, _check_choice),
    (_ADDRESSES, _check_address),
    (_TEXTS, _check_text),
    (_BOOLEANS, _check_boolean),
    (_INTEGERS, _check_integer),
    (_DURATIONS, _check_duration),
)
