"""An AWS server of the tests' own: moto's, on a free loopback port."""

from __future__ import annotations

import logging
import os
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from moto.server import ThreadedMotoServer


class AwsServer:
    """``environment`` is what a client needs to reach it, of an account that nobody else has."""

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.INFO)
        self._stopping = threading.Event()
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        host, port = self._server.get_host_and_port()
        self.endpoint = f"http://{host}:{port}"
        self.environment = {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "an-id",
            "AWS_SECRET_ACCESS_KEY": "a-secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def fall_silent(self) -> None:
        """Takes requests from now on, and does not answer them."""
        listening: Any = self._server._server
        answer = listening.app

        def wait(environment: Any, start_response: Any) -> Any:
            self._stopping.wait(300)
            return answer(environment, start_response)

        listening.app = wait

    def stop(self) -> None:
        """Ends the server; more than once is fine."""
        self._stopping.set()
        listening, self._server._server = self._server._server, None
        if listening is not None:
            listening.shutdown()
            listening.server_close()


class Instances:
    """EC2 instances with addresses of our choice, in a VPC of ``network``; ``tag`` is theirs alone."""

    def __init__(self, network: str, **client: Any) -> None:
        import boto3

        self.tag = f"t-{uuid.uuid4().hex}"  # moto's servers of a process have the same instances
        self.ec2: Any = boto3.client("ec2", **client)
        vpc = self.ec2.create_vpc(CidrBlock=network)["Vpc"]["VpcId"]
        self._subnet = self.ec2.create_subnet(VpcId=vpc, CidrBlock=network)["Subnet"]["SubnetId"]
        self._image = self.ec2.describe_images()["Images"][0]["ImageId"]

    def run(self, address: str = "", count: int = 1, **tags: object) -> list[str]:
        """Starts instances; ``nhop_port`` is the tag ``nhop:port``. Returns their ids."""
        named = {"nhop": self.tag} | {key.replace("_", ":"): str(value) for key, value in tags.items()}
        specification = {
            "ResourceType": "instance",
            "Tags": [{"Key": key, "Value": value} for key, value in named.items()],
        }
        place = {"PrivateIpAddress": address} if address else {}
        started = self.ec2.run_instances(
            ImageId=self._image,
            MinCount=count,
            MaxCount=count,
            SubnetId=self._subnet,
            TagSpecifications=[specification],
            **place,
        )
        return [str(instance["InstanceId"]) for instance in started["Instances"]]


@contextmanager
def aws_server() -> Iterator[AwsServer]:
    """A server that is stopped whatever happens."""
    server = AwsServer()
    try:
        yield server
    finally:
        server.stop()
