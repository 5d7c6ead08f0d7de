"""Devices in and out of a running VM.

`bus` lets one command at a time change a VM, keeps a journal of what was begun, plugs
and unplugs. `unplug` hears the guest's answer, `guest_ready` tells whether a guest is
there to give one, and takes back what it does not want. On these are built `disks`,
`nics`, `memory`, `cpus` and `cdrom`, which do not know each other.

It builds on `connection`. Start with `bus`, then read `disks.add`.
"""
