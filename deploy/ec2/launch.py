#!/usr/bin/env python3
"""Starts EC2 instances as NHOP hosts, in security groups that let in only who has to.

    python3 launch.py --image ami-0123 --subnet subnet-0123 --type g5.xlarge --count 4 --key my-key
        --package https://example.org/nhop-0.1.0-py3-none-any.whl --sha256 0123... --tag nhop=train

(in one line). Needs boto3 (nhop[ec2]) and credentials as the AWS command line does. The groups are made
once for each VPC and found again by their names. Nothing secret goes to an instance here: its certificate
comes by certificates.sh. Terminate the instances with the AWS command line or console.
"""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import boto3
import click
from botocore.exceptions import BotoCoreError, ClientError

AGENTS, COORDINATOR = "nhop-agent", "nhop-coordinator"
DESCRIPTIONS = {
    AGENTS: "NHOP hosts: agents, and the tasks of trials",
    COORDINATOR: "NHOP: the machine of the coordinator",
}
RULES = (
    # Into the group of the agents: from which group, first and last port.
    (COORDINATOR, 22, 22),  # certificates are copied by ssh
    (COORDINATOR, 7001, 7001),
    (AGENTS, 20000, 29999),  # TensorFlow's ports, which have no authentication
)
USER_DATA = Path(__file__).with_name("user-data.sh")
MAX_USER_DATA = 16_384


def make_groups(ec2: Any, vpc: str) -> dict[str, str]:
    """The ids of both groups of a VPC, by their names; what is missing of groups and rules is made."""
    groups = {name: _group(ec2, vpc, name) for name in DESCRIPTIONS}
    for source, first, last in RULES:
        permission = {
            "IpProtocol": "tcp",
            "FromPort": first,
            "ToPort": last,
            "UserIdGroupPairs": [{"GroupId": groups[source]}],
        }
        try:
            ec2.authorize_security_group_ingress(GroupId=groups[AGENTS], IpPermissions=[permission])
        except ClientError as error:
            if error.response["Error"]["Code"] != "InvalidPermission.Duplicate":
                raise
    return groups


def _group(ec2: Any, vpc: str, name: str) -> str:
    filters = [{"Name": "vpc-id", "Values": [vpc]}, {"Name": "group-name", "Values": [name]}]
    found = ec2.describe_security_groups(Filters=filters)["SecurityGroups"]
    if not found:
        made = ec2.create_security_group(VpcId=vpc, GroupName=name, Description=DESCRIPTIONS[name])
        return str(made["GroupId"])
    return str(found[0]["GroupId"])


def user_data(**variables: str) -> str:
    """The script that an instance runs when it first starts, with these variables before it."""
    shebang, _, rest = USER_DATA.read_text().partition("\n")
    lines = [f"{name}={shlex.quote(value)}" for name, value in variables.items() if value]
    text = "\n".join([shebang, *lines, rest])
    if len(text.encode()) > MAX_USER_DATA:
        raise click.UsageError(f"the user data would have more than {MAX_USER_DATA} bytes")
    return text


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--image", required=True, metavar="AMI", help="Debian 12 or Ubuntu 24.04; with GPUs: with their driver."
)
@click.option("--subnet", required=True, metavar="ID")
@click.option("--type", "kind", required=True, metavar="TYPE", help="Such as c7i.4xlarge, g5.xlarge.")
@click.option("--count", type=click.IntRange(1, 1000), default=1, show_default=True)
@click.option(
    "--key", required=True, metavar="NAME", help="The key pair, with which certificates are copied."
)
@click.option(
    "--tag", default="nhop=train", show_default=True, metavar="TAG=VALUE", help="As for --hosts ec2:"
)
@click.option("--package", required=True, help="What to install: a wheel at an https URL, or nhop==VERSION.")
@click.option("--sha256", default="", help="Of the wheel.")
@click.option("--also", default="", help="More packages, such as 'tensorflow[and-cuda]' for GPUs.")
@click.option("--disk", type=click.IntRange(20, 16_000), default=60, show_default=True, metavar="GB")
@click.option("--dry-run", is_flag=True, help="Print the user data, and start nothing.")
def main(
    image: str,
    subnet: str,
    kind: str,
    count: int,
    key: str,
    tag: str,
    package: str,
    sha256: str,
    also: str,
    disk: int,
    dry_run: bool,
) -> None:
    """Start EC2 instances as NHOP hosts."""
    name, _, value = tag.partition("=")
    if not name or not value:
        raise click.UsageError(f"--tag {tag}: write TAG=VALUE")
    if package.startswith("https:") and not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise click.UsageError("--sha256: a wheel at a URL needs its SHA-256, 64 hexadecimal digits")
    data = user_data(NHOP_PACKAGE=package, NHOP_SHA256=sha256, NHOP_ALSO=also)
    if dry_run:
        click.echo(data, nl=False)
        return
    try:
        started = _launch(image, subnet, kind, count, key, {name: value}, data, disk)
    except (BotoCoreError, ClientError) as error:
        click.echo(f"launch.py: {' '.join(str(error).split())}", err=True)
        sys.exit(1)
    click.echo(f"instances            {' '.join(started)}")
    click.echo(f"next: once they run, ./certificates.sh ec2:{tag}, from a machine in {COORDINATOR}")


def _launch(
    image: str, subnet: str, kind: str, count: int, key: str, tags: dict[str, str], data: str, disk: int
) -> list[str]:
    ec2 = boto3.client("ec2")
    vpc = ec2.describe_subnets(SubnetIds=[subnet])["Subnets"][0]["VpcId"]
    groups = make_groups(ec2, vpc)
    for name, identifier in groups.items():
        click.echo(f"{name:<20} {identifier}")
    root = ec2.describe_images(ImageIds=[image])["Images"][0]["RootDeviceName"]
    named = [{"Key": key, "Value": value} for key, value in ({"Name": "nhop-agent"} | tags).items()]
    answer = ec2.run_instances(
        ImageId=image,
        InstanceType=kind,
        MinCount=count,
        MaxCount=count,
        KeyName=key,
        SubnetId=subnet,
        SecurityGroupIds=[groups[AGENTS]],
        UserData=data,
        # No role, and its metadata by sessions only, which end at the instance itself.
        MetadataOptions={"HttpTokens": "required", "HttpPutResponseHopLimit": 1},
        BlockDeviceMappings=[
            {"DeviceName": root, "Ebs": {"VolumeSize": disk, "VolumeType": "gp3", "Encrypted": True}}
        ],
        TagSpecifications=[{"ResourceType": kind, "Tags": named} for kind in ("instance", "volume")],
    )
    return [str(instance["InstanceId"]) for instance in answer["Instances"]]


if __name__ == "__main__":
    main()
