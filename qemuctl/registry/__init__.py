"""The files of VMs: which VMs there are, what each is made of, who uses which file.

A VM is a folder with a spec, its disks (`disks`) and small files beside them
(`records`). Whether a VM is on is told by its lock; nothing here asks QEMU. `vms`
finds and creates VMs, `offline` holds one that is off, `removal` and `rename` end
what it was. `edit` changes a spec in place, `plan` makes of a spec all that a start
needs, and `states` tells which request is admitted in which state.

It builds on `image`, `cmdline` and `spec`. Start with `vms`; for the image and the
disks that a spec leaves open, with `disks.resolve`.
"""
