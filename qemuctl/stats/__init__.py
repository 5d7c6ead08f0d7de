"""Numbers of VMs: CPU time, memory, disks, network.

`collector` reads those of one VM, `sample` makes rates of two readings, which
`last_samples` keeps for the next command. `one_vm` is the facet ``vm.stats``,
`all_vms` watches the VMs of a home at a low price.

It builds on `connection` and `hotplug.balloon_stats`. Start with `sample`.
"""
