"""An evaluator of NetworkPolicies over rendered objects.

A pod may talk to a peer if a policy of its own lets it out and a policy of the peer's lets
it in. A pod that no policy selects in a direction is open in that direction; policies add
up. Source: Kubernetes documentation, "Network Policies".
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any

from tests.deploy.kubernetes.rendered import WORKLOADS, Manifest, matches, name_of, template_of


@dataclass(frozen=True)
class Peer:
    """One end of a flow: a pod with a namespace, or a bare address outside of all pods.

    *ports* are the names of its container ports.
    """

    name: str
    namespace: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    ports: Mapping[str, int] = field(default_factory=dict)
    address: str = ""


@dataclass(frozen=True)
class Network:
    """The policies of a rendering."""

    policies: Sequence[Manifest]

    def lets(self, source: Peer, target: Peer, port: int, protocol: str = "TCP") -> bool:
        """Whether *source* reaches *port* of *target*."""
        return self._open(source, target, port, protocol, "Egress", port_of=target) and self._open(
            target, source, port, protocol, "Ingress", port_of=target
        )

    def _open(
        self, end: Peer, other: Peer, port: int, protocol: str, direction: str, *, port_of: Peer
    ) -> bool:
        if not end.namespace:
            # An address outside of the cluster has no policies.
            return True
        selecting = [
            one["spec"]
            for one in self.policies
            if one["metadata"]["namespace"] == end.namespace
            and direction in one["spec"]["policyTypes"]
            and matches(one["spec"]["podSelector"], dict(end.labels))
        ]
        peers = {"Egress": "to", "Ingress": "from"}[direction]
        return not selecting or any(
            _is_port(rule.get("ports"), port, protocol, port_of)
            and _is_peer(rule.get(peers), other, end.namespace)
            for policy in selecting
            for rule in policy.get(direction.lower(), [])
        )


def _is_port(ports: list[Manifest] | None, port: int, protocol: str, target: Peer) -> bool:
    if not ports:
        return True
    for one in ports:
        wanted: Any = one.get("port", port)
        first = target.ports.get(wanted, -1) if isinstance(wanted, str) else wanted
        if one.get("protocol", "TCP") == protocol and first <= port <= one.get("endPort", first):
            return True
    return False


def _is_peer(peers: list[Manifest] | None, other: Peer, namespace: str) -> bool:
    if not peers:
        return True
    return any(
        _in_block(one["ipBlock"], other) if "ipBlock" in one else _is_pod(one, other, namespace)
        for one in peers
    )


def _is_pod(peer: Manifest, other: Peer, namespace: str) -> bool:
    if not other.namespace:
        return False
    if "namespaceSelector" in peer:
        # Kubernetes labels every namespace with its name.
        named = {"kubernetes.io/metadata.name": other.namespace}
        if not matches(peer["namespaceSelector"], named):
            return False
    elif other.namespace != namespace:
        return False
    return matches(peer.get("podSelector", {}), dict(other.labels))


def _in_block(block: Manifest, other: Peer) -> bool:
    """Whether an address is in a block; pods' addresses are not looked at, as most CNIs do."""
    if not other.address:
        return False
    address = ip_address(other.address)
    excluded = any(address in ip_network(one) for one in block.get("except", []))
    return address in ip_network(block["cidr"]) and not excluded


def pods(rendered: Sequence[Manifest]) -> Iterator[Peer]:
    """The pods of a rendering."""
    for one in rendered:
        if one["kind"] in WORKLOADS:
            template = template_of(one)
            ports = {
                port["name"]: port["containerPort"]
                for container in template["spec"]["containers"]
                for port in container.get("ports", [])
            }
            labels = template["metadata"]["labels"]
            yield Peer(name_of(template), one["metadata"]["namespace"], labels, ports)


def network_of(rendered: Sequence[Manifest]) -> Network:
    """The policies of a rendering."""
    return Network([one for one in rendered if one["kind"] == "NetworkPolicy"])
