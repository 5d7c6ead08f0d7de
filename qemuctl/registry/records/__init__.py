"""Small files beside the spec of a VM, a module each: what QEMU cannot tell.

`process_record` tells who the process is, `outcome` how the last run ended,
`started_spec` and `plugged_specs` what the process was given, `hotplug_journal` and
`migration_journal` what was begun and is not done, `disk_ledger` which disks were
made.

They are cheap to read, and import nothing else of the registry. Start with
`process_record`.
"""
