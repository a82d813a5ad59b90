"""EC2 instances with some tags as hosts: ``--hosts ec2:TAG=VALUE[,TAG=VALUE...]``, through boto3."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from coordinator.errors import HostsError, NhopError, UsageError
from coordinator.hosts import DEFAULT_PORT, NEEDS_TLS, AgentAddress
from coordinator.listed_hosts import Listed, addresses_of

EC2 = "ec2:"
PORT_TAG = "nhop:port"
OPTION_TAGS = {"nhop:slots": "slots", "nhop:gpus": "gpus"}
"""Tags of an instance that stand for the words in a line of a hosts file."""

PAGE = 500
"""Instances to a call; at most 1,000."""
CALL_LIMITS = {"connect_timeout": 5, "read_timeout": 15}
TRIES = 3
LISTING_LIMIT = 60.0
"""Seconds in which the last page must have been asked for."""

REFUSED = {
    "AuthFailure",
    "ExpiredToken",
    "InvalidClientTokenId",
    "OptInRequired",
    "RequestExpired",
    "SignatureDoesNotMatch",
    "UnauthorizedOperation",
}
"""Codes of errors that only the user can mend: who asks, or what it may do."""
BUSY = {"RequestLimitExceeded", "Throttling", "ThrottlingException"}
RIGHTS = "the credentials need the right ec2:DescribeInstances"


@dataclass(frozen=True, slots=True)
class Ec2Hosts:
    """The running instances that have all these tags, by their private addresses."""

    tags: tuple[tuple[str, str], ...]

    @classmethod
    def parse(cls, text: str) -> Ec2Hosts:
        """From ``ec2:TAG=VALUE[,TAG=VALUE...]``; raises UsageError."""
        tags: dict[str, str] = {}
        for part in text.removeprefix(EC2).split(","):
            key, _, value = part.partition("=")
            if not key or not value:
                raise UsageError(
                    f"--hosts {text}: {part!r} is not TAG=VALUE; write ec2:TAG=VALUE[,TAG=VALUE...], as in "
                    f"ec2:nhop=train, or ./{text} for a file of that name"
                )
            if key in tags:
                raise UsageError(f"--hosts {text}: the tag {key} is given twice")
            tags[key] = value
        return cls(tuple(tags.items()))

    def read(self, *, refusal: str = NEEDS_TLS) -> tuple[AgentAddress, ...]:
        """The instances that run now, sorted by their addresses.

        Raises UsageError where boto3, a region, credentials or rights are missing, HostsError where EC2
        does not answer, or has no such instances.
        """
        try:
            import boto3
            from botocore.exceptions import BotoCoreError, ClientError
        except ModuleNotFoundError as error:
            raise UsageError(
                f"--hosts {self}: needs the package {error.name}; install it with pip install 'nhop[ec2]'"
            ) from None
        try:
            found = {i["InstanceId"]: i for i in self._instances(boto3.session.Session())}
        except (BotoCoreError, ClientError) as error:
            raise _explain(self, error) from None
        if not found:
            raise HostsError(
                f"--hosts {self}: no running instance has these tags; look at the tags, the region and the "
                "account"
            )
        hosts = [_listed(self, instance) for instance in sorted(found.values(), key=_order)]
        return addresses_of(f"--hosts {self}", hosts, refusal=refusal)

    def _instances(self, session: Any) -> Iterator[Mapping[str, Any]]:
        from botocore.config import Config

        retries = {"mode": "standard", "total_max_attempts": TRIES}
        client = session.client("ec2", config=Config(retries=retries, **CALL_LIMITS))
        filters = [{"Name": f"tag:{key}", "Values": [value]} for key, value in self.tags]
        pages = client.get_paginator("describe_instances").paginate(
            Filters=[*filters, {"Name": "instance-state-name", "Values": ["running"]}],
            PaginationConfig={"PageSize": PAGE},
        )
        end = time.monotonic() + LISTING_LIMIT
        for page in pages:
            for reservation in page["Reservations"]:
                yield from reservation["Instances"]
            if time.monotonic() > end:
                raise HostsError(
                    f"--hosts {self}: EC2 has not listed all instances after {LISTING_LIMIT:g} s; try again, "
                    "or name more tags"
                )

    def __str__(self) -> str:
        return EC2 + ",".join(f"{key}={value}" for key, value in self.tags)


def _address(instance: Mapping[str, Any]) -> str:
    """The private IPv4 address, or else the IPv6 address; empty where there is none."""
    interfaces = instance.get("NetworkInterfaces", ())
    ipv6 = [entry["Ipv6Address"] for each in interfaces for entry in each.get("Ipv6Addresses", ())]
    candidates = (instance.get("PrivateIpAddress"), instance.get("Ipv6Address"), *ipv6)
    return next((address for address in candidates if address), "")


def _order(instance: Mapping[str, Any]) -> tuple[int, int]:
    address = _address(instance)
    if not address:
        return 0, 0
    parsed = ipaddress.ip_address(address)
    return parsed.version, int(parsed)


def _listed(source: Ec2Hosts, instance: Mapping[str, Any]) -> Listed:
    """An instance as a line of a hosts file."""
    address, name = _address(instance), str(instance["InstanceId"])
    if not address:
        raise HostsError(f"--hosts {source}: {name}: has no private IPv4 and no IPv6 address")
    tags = {tag["Key"]: tag["Value"] for tag in instance.get("Tags", ())}
    host = f"[{address}]" if ":" in address else address
    words = [f"{host}:{tags.get(PORT_TAG, DEFAULT_PORT)}"]
    words += [f"{word}={tags[tag]}" for tag, word in OPTION_TAGS.items() if tag in tags]
    return Listed(name, " ".join(words))


def _explain(source: Ec2Hosts, error: Exception) -> NhopError:
    """What an error of boto3 means, and what to do."""
    import botocore.exceptions as boto

    text = " ".join(str(error).split())
    if isinstance(error, boto.NoRegionError):
        return UsageError(
            f"--hosts {source}: no AWS region is set; set AWS_DEFAULT_REGION, as in eu-central-1"
        )
    if isinstance(error, boto.NoCredentialsError):
        return UsageError(
            f"--hosts {source}: no AWS credentials are found; set AWS_PROFILE, or AWS_ACCESS_KEY_ID and "
            f"AWS_SECRET_ACCESS_KEY, or give this machine a role; {RIGHTS}"
        )
    if isinstance(error, boto.ClientError):
        answer = error.response.get("Error", {})
        code, said = str(answer.get("Code", "")), " ".join(str(answer.get("Message", text)).split())
        if code in REFUSED:
            return UsageError(f"--hosts {source}: EC2 refuses to list instances ({code}: {said}); {RIGHTS}")
        if code in BUSY:
            return HostsError(
                f"--hosts {source}: EC2 has too many requests of this account now ({code}); try again"
            )
        return HostsError(f"--hosts {source}: EC2 does not list instances ({code}: {said})")
    if isinstance(error, boto.HTTPClientError | boto.ConnectionError):
        return HostsError(
            f"--hosts {source}: EC2 cannot be reached: {text}; look at the network and the region"
        )
    return UsageError(f"--hosts {source}: {text}")  # of the user's files, profile, login
