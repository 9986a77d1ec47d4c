"""A real S3 server (SeaweedFS) on the loopback, for the tests that need one."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conftest import free_port

KEY, SECRET = "test-key", "test-secret"


@dataclass(frozen=True)
class S3Server:
    """Where the server listens; `environment` is what a user would set to reach it."""

    endpoint: str
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            # no profile of the user's own
            "AWS_CONFIG_FILE": str(self.folder / "none"),
            "AWS_SHARED_CREDENTIALS_FILE": str(self.folder / "none"),
        }

    def client(self) -> Any:
        """A boto3 client of the test's own."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
        )


@contextmanager
def running_server(folder: Path) -> Iterator[S3Server]:
    """Start the server with its data below `folder`; it is ended with the block."""
    (folder / "data").mkdir(parents=True)
    config = folder / "s3.json"
    identity = {"name": "tests", "credentials": [{"accessKey": KEY, "secretKey": SECRET}], "actions": ["Admin"]}
    config.write_text(json.dumps({"identities": [identity]}))
    names = ("master", "volume", "filer", "s3")
    ports = {f"{name}.port{kind}": free_port() for name in names for kind in ("", ".grpc")}
    server = S3Server(f"http://127.0.0.1:{ports['s3.port']}", folder)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(_command(folder, config, ports), cwd=folder, stdout=log, stderr=log)
        try:
            _wait_until_ready(server, process, folder / "log")
            yield server
        finally:
            process.kill()  # its data goes with the folder
            process.wait()
            for name in names:  # which it makes there whatever TMPDIR says
                Path(f"/tmp/seaweedfs-{name}-grpc-{ports[f'{name}.port.grpc']}.sock").unlink(missing_ok=True)


def _command(folder: Path, config: Path, ports: dict[str, int]) -> list[str]:
    options: dict[str, object] = {
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "dir": folder / "data",
        "s3.config": config,
        **ports,
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "master.telemetry": "false",
        "master.volumeSizeLimitMB": 64,
        "volume.max": 2000,  # a bucket takes seven at once
    }
    options |= {f"{name}.localSocket": folder / f"{name}.sock" for name in ("s3", "filer")}
    weed = Path(sys.executable).with_name("weed")
    return [str(weed), "server", "-s3", "-master=true", *(f"-{name}={value}" for name, value in options.items())]


def _wait_until_ready(server: S3Server, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            server.client().create_bucket(Bucket="ready")
            server.client().put_object(Bucket="ready", Key="ready", Body=b"ready")
            return
        except Exception:  # refused, not yet joined, no volume yet: whatever it is, it is not ready
            time.sleep(0.3)
    raise RuntimeError(f"the S3 server did not start:\n{log.read_text()[-3000:]}")
