"""States of a VM that it can go back to, in the qcow2 files of its disks.

`online` is the facet ``vm.snapshots`` of a VM that runs, `offline` the same for one
that is off; `jobs` sees QEMU's work through. `records` has what the disks themselves
do not tell, `tree` shows both together. `topology` compares the devices that a saved
RAM needs, `checks` is what must hold before anything is done.

It builds on `hotplug`, `power` and `connection`. Start with `records`, then `online`.
"""
