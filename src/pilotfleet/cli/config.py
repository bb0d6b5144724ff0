"""Commands that show and change config.json (cli.md section 3.2)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from pilotfleet.cli.failures import UsageError
from pilotfleet.cli.settings import DEFAULT_BEACON, DEFAULT_REGISTRY
from pilotfleet.client.socketpath import default_socket
from pilotfleet.errors import InvalidArgument
from pilotfleet.protocol.durations import parse_duration

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
_PEERS: Final = frozenset(["registry", "beacon"])
"""Addresses of somebody else, which therefore name a host and a port."""
_ADDRESSES: Final = _PEERS | {"advertise_endpoint", "endpoint", "listen"}
_URLS: Final = {
    "compat_beacon": ("http", "https", "ws", "wss"),
    "motd_feed_url": ("http", "https"),
    "telemetry_url": ("http", "https"),
    "webhook": ("http", "https"),
}
"""Keys that hold a URL, with the schemes it may have."""
_TEXTS: Final = frozenset(
    [
        "admin_token",
        "email",
        "hostname",
        "identity",
        "networks",
        "owner",
        "proxy_cmd",
        "registry_fingerprint",
        "rekey_whitelist",
        "reply_whitelist",
        "sandbox_dir",
        "socket",
        "syn_whitelist",
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
        kept = check_value(key, value)
        context.settings.update(**{key: kept})
        # A secret is shown to whom has just typed it, as the official program does.
        echo = "" if kept is None else kept if key in _SECRETS else _shown(key, kept)
        context.output.result({"key": key, "value": echo}, f"{key} = {echo}")
        return
    settings = context.settings
    shown = {key: _shown(key, value) for key, value in settings.config.items()}
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
    """Return a configuration value in the form to store; none clears it.

    Raises:
        InvalidArgument: The key is unknown, or the value not allowed for it.
    """
    if not value and key in _CLEARABLE:
        return None
    for keys, check in _CHECKS:
        if key in keys:
            if not value.strip():
                raise InvalidArgument(f"config: {key} must not be empty")
            return check(key, value)
    raise InvalidArgument(f'config: unknown key "{key}"')


def _shown(key: str, value: Any) -> Any:
    """Return a value without what others must not read over a shoulder."""
    if key in _SECRETS and value:
        return "(set)"
    if key == "proxy" and isinstance(value, str):
        return re.sub(r"//[^/@]*@", "//***@", value)
    return value


def _check_choice(key: str, value: str) -> str:
    choices = _CHOICES[key]
    if key == "transport":
        value = value.lower()
    if value in choices:
        return value
    if key == "log_level":
        raise InvalidArgument("config: invalid log_level")
    if key == "transport":
        raise InvalidArgument(
            f"config: invalid transport \"{value[:40]}\": must be 'udp', 'compat' or"
            " 'auto'"
        )
    raise InvalidArgument(f"config: {key} must be {' or '.join(choices)}")


def _check_address(key: str, value: str) -> str:
    found = re.fullmatch(r"(\[[^\]]+\]|[^:\s]*):([0-9]{1,5})", value)
    is_own = key == "listen"
    # To listen, every host and any port will do.
    is_valid = found is not None and (is_own or bool(found[1]))
    if found is None or not is_valid or not int(not is_own) <= int(found[2]) <= 0xFFFF:
        raise InvalidArgument(f"config: {key} must be a host:port address")
    return value


def _check_url(key: str, value: str) -> str:
    scheme, separator, rest = value.partition("://")
    if not separator or scheme.lower() not in _URLS[key] or not rest.strip("/"):
        raise InvalidArgument(f"config: invalid URL for {key}")
    return value


def _check_proxy(key: str, value: str) -> str:
    if value in ("auto", "off"):
        return value
    scheme, separator, rest = value.partition("://")
    if not separator or not rest:
        raise InvalidArgument(
            f'config: invalid proxy "{value[:60]}": use auto, off, or an http:// or'
            " https:// proxy URL"
        )
    if scheme.lower() not in ("http", "https"):
        raise InvalidArgument(
            f'config: invalid proxy "{value[:60]}": the scheme must be http or https'
        )
    return value


def _check_text(key: str, value: str) -> str:
    if key == "registry_fingerprint" and not re.fullmatch("[0-9a-fA-F]{64}", value):
        raise InvalidArgument(f"config: {key} must be a SHA-256 hex digest")
    if key == "hostname" and not _HOSTNAME.fullmatch(value):
        raise InvalidArgument(
            "config: hostname must be 1-63 lowercase letters, digits or internal"
            " hyphens"
        )
    return value


def _check_boolean(key: str, value: str) -> bool:
    if value not in ("true", "false"):
        raise InvalidArgument(f"config: {key} must be true or false")
    return value == "true"


def _check_integer(key: str, value: str) -> int:
    if not re.fullmatch(r"\+?[0-9]{1,18}", value):
        raise InvalidArgument(f"config: {key} must be a non-negative integer")
    return int(value)


def _check_duration(key: str, value: str) -> str:
    # Here, unlike in flags, a number needs its unit: the daemon reads it too.
    try:
        parse_duration(value, f"config {key}", needs_unit=True)
    except InvalidArgument:
        raise InvalidArgument(
            f"config: {key} must be a non-negative duration"
        ) from None
    return value


_HOSTNAME: Final = re.compile("[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_CHECKS: Final[tuple[tuple[Any, Callable[[str, str], Any]], ...]] = (
    (_CHOICES, _check_choice),
    (_ADDRESSES, _check_address),
    (_URLS, _check_url),
    (frozenset(["proxy"]), _check_proxy),
    (_TEXTS, _check_text),
    (_BOOLEANS, _check_boolean),
    (_INTEGERS, _check_integer),
    (_DURATIONS, _check_duration),
)
