"""The NoCloud seed: a small disk from which cloud-init learns what to do.

https://cloudinit.readthedocs.io/en/latest/reference/datasources/nocloud.html:
a file system with the label ``cidata`` that holds ``meta-data``, ``user-data``,
``vendor-data`` and, where it is wanted, ``network-config``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import yaml

from qemuctl.image.own_files import SIZE_MAX, given_keys, own_content, source_of
from qemuctl.image.user_data import mapping
from qemuctl.image.whole import whole
from qemuctl.spec.cloud import CloudInit

_HEAD = "#cloud-config\n"
_LABEL_MAX = 63

# A copied disk holds the folder of another instance: then this is a clone,
# and what is to be unique in it is made anew, once. cloud-init-per runs it
# when the instance is new, before the network is there.
_CLONED = """
now=$(readlink -f /var/lib/cloud/instance)
for was in /var/lib/cloud/instances/*; do
  [ "$was" = "$now" ] || cloned=yes
done
[ "$cloned" ] || exit 0
rm -f /var/lib/dbus/machine-id /var/lib/dhcp/*.lease* /var/lib/dhclient/*.lease*
rm -f /var/lib/NetworkManager/*.lease /run/systemd/netif/leases/*
: >/etc/machine-id
systemd-machine-id-setup || dbus-uuidgen >/etc/machine-id
[ ! -d /var/lib/dbus ] || ln -s /etc/machine-id /var/lib/dbus/machine-id
"""

# No password is set, so that a login on the serial console would lead nowhere: whoever
# has that console has the whole VM. In /run, for it is not the disk's business.
_CONSOLE = """
[ -d /run/systemd/system ] || exit 0
d=/run/systemd/system/serial-getty@ttyS0.service.d
mkdir -p "$d"
cat >"$d/qemuctl.conf" <<'END'
[Service]
ExecStart=
ExecStart=-/sbin/agetty --autologin root --keep-baud 115200,57600,38400,9600 - $TERM
END
systemctl daemon-reload
"""

_ISO_NAMES = {
    "meta-data": "/METADATA.;1",
    "user-data": "/USERDATA.;1",
    "vendor-data": "/VENDOR.;1",
    "network-config": "/NETWORK.;1",
}


def write_seed(
    path: Path,
    *,
    name: str,
    instance_id: str,
    cloud_init: CloudInit | None,
    default_user: str | None,
    keys: Sequence[str],
    fresh_instance: bool = False,
) -> None:
    """Makes the seed of the VM called ``name``, or replaces it as a whole.

    ``instance_id`` is what cloud-init knows a first boot by; ``keys`` are
    public keys that get in whatever the user-data says, for ``default_user``
    (None: the image's cloud-init knows whom) unless the spec names another.
    ``fresh_instance`` is for a clone: its id also takes the place of the one in
    the user's own meta-data, or the clone would take itself for the original.
    Only its owner may read the file. Raises SpecError, with file and line, for
    files of the user's that cannot be used.
    """
    import pycdlib

    files = seed_files(
        name=name, instance_id=instance_id, cloud_init=cloud_init,
        default_user=default_user, keys=keys, fresh_instance=fresh_instance,
    )  # fmt: skip
    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=1, vol_ident="cidata", joliet=3, rock_ridge="1.09")
    try:
        for file, content in files.items():
            iso.add_fp(
                BytesIO(content), len(content), _ISO_NAMES[file],
                rr_name=file, joliet_path=f"/{file}", file_mode=0o100400,
            )  # fmt: skip
        with whole(path, replace=True) as fresh:
            fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(fd, "w+b") as target:
                iso.write_fp(target)
        path.chmod(0o600)
    finally:
        iso.close()


def seed_files(
    *,
    name: str,
    instance_id: str,
    cloud_init: CloudInit | None,
    default_user: str | None,
    keys: Sequence[str],
    fresh_instance: bool = False,
) -> dict[str, bytes]:
    """The files of a seed by name, as `write_seed` puts them into it."""
    cloud = cloud_init or CloudInit()
    everyone = [*keys, *given_keys(cloud.ssh_keys)]
    everyone = list(dict.fromkeys(everyone))
    files = {
        "meta-data": _own_meta_data(cloud, instance_id if fresh_instance else None)
        or _yaml(_meta_data(name, instance_id, cloud, everyone)),
        "user-data": own_content(cloud, "user_data")
        or _config(_user_data(name, cloud, default_user, everyone)),
        "vendor-data": _config(_vendor_data(cloud, everyone)),
    }
    network = own_content(cloud, "network_config")
    if network is None and cloud.network is not None:
        network = _yaml(cloud.network)
    return files if network is None else files | {"network-config": network}


def hostname(name: str, cloud: CloudInit) -> str:
    """The guest's host name: the VM's, as far as it can be one, or the spec's."""
    if cloud.hostname is not None:
        return cloud.hostname
    labels = re.sub(r"[^A-Za-z0-9.-]", "-", name).split(".")
    kept = [label[:_LABEL_MAX].strip("-") for label in labels]
    return ".".join(filter(None, kept)) or "vm"


def _meta_data(
    name: str, instance_id: str, cloud: CloudInit, keys: Sequence[str]
) -> dict[str, Any]:
    meta: dict[str, Any] = {
        "instance-id": instance_id,
        "local-hostname": hostname(name, cloud),
    }
    # cloud-init gives these to its default user, also under a user's user-data.
    return meta | ({"public-keys": list(keys)} if keys else {})


def _user_data(
    name: str, cloud: CloudInit, default_user: str | None, keys: Sequence[str]
) -> dict[str, Any]:
    config: dict[str, Any] = {
        "hostname": hostname(name, cloud),
        "preserve_hostname": False,
        "ssh_pwauth": False,
    }
    if cloud.user is not None and cloud.user != default_user:
        # The default user by another name: groups, shell and the like are the
        # distribution's, and the keys are for this one.
        config["user"] = {
            "name": cloud.user,
            "sudo": "ALL=(ALL) NOPASSWD:ALL",
            "lock_passwd": True,
        }
    if keys:
        config["ssh_authorized_keys"] = list(keys)
    if cloud.packages:
        config |= {"package_update": True, "packages": list(cloud.packages)}
    if cloud.run:
        config["runcmd"] = [
            line if isinstance(line, str) else list(line) for line in cloud.run
        ]
    return config


def _vendor_data(cloud: CloudInit, keys: Sequence[str]) -> dict[str, Any]:
    """What qemuctl wants itself; what the user-data says comes before it."""
    clone = ["cloud-init-per", "instance", "qemuctl-clone", "sh", "-c", _CLONED]
    # Who brings user-data decides who logs in.
    console = [["sh", "-c", _CONSOLE]] if cloud.user_data is None else []
    config: dict[str, Any] = {"bootcmd": [clone, *console]}
    if cloud.meta_data is not None and keys:
        # The keys' usual place is the meta-data, which is the user's own here.
        config["ssh_authorized_keys"] = list(keys)
    return config


def _config(data: Mapping[str, Any]) -> bytes:
    return _HEAD.encode() + _yaml(data)


def _yaml(data: Mapping[str, Any]) -> bytes:
    # No line folding: keys are easier to find in a line of their own.
    text = yaml.safe_dump(
        dict(data), sort_keys=False, allow_unicode=True, width=SIZE_MAX
    )
    return str(text).encode()


def _own_meta_data(cloud: CloudInit, instance_id: str | None) -> bytes | None:
    """The user's own, with ``instance_id`` in the place of its own, if given."""
    content = own_content(cloud, "meta_data")
    if content is None or instance_id is None:
        return content
    meta = mapping(content, source_of(cloud, "meta_data"), "cloud_init.meta_data")
    return _yaml(meta | {"instance-id": instance_id})
