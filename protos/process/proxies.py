"""The proxies of the environment: HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY.

Calls to this machine itself never use one: a proxy elsewhere can't reach it.
"""

import os
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit
from urllib.request import getproxies_environment

import requests

from protos.channel.access import is_loopback


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy between this process and a server; *url* is without its credentials."""

    variable: str
    url: str

    @classmethod
    def towards(cls, url: str) -> Self | None:
        """Returns the proxy on the way to *url*; None for loopback, by NO_PROXY or without one."""
        target = urlsplit(url)
        if is_loopback(target.hostname or "") or requests.utils.should_bypass_proxies(url, None):
            return None
        proxies = getproxies_environment()
        for kind in (target.scheme, "all"):
            if proxies.get(kind):
                return cls(_variable(kind), _without_credentials(proxies[kind]))
        return None

    def __str__(self) -> str:
        return f"{self.variable}={self.url}"


def _variable(kind: str) -> str:
    """Returns the variable as spelled in this environment; Python prefers lower case."""
    name = f"{kind}_proxy"
    spelled = [key for key in os.environ if key.lower() == name]
    return name if name in spelled else spelled[0]


def _without_credentials(url: str) -> str:
    scheme, colon, rest = url.rpartition("://")
    return f"{scheme}{colon}{rest.rpartition('@')[2].partition('/')[0]}"
