"""Templates, which are guests that were booted and frozen, and forks of them.

`catalog` finds, lists and removes templates, `make` makes one, `from_vm` of a VM that
there is; `key` tells what a template depends on, `eligible` what a guest may be made
of. `fork` starts a fork, `identity` makes it a machine of its own. `fresh_vm` is the
quickest way to a guest that is ready, `pool_client` takes one from a shared pool.

It builds on `boot`. Start with `fork`.
"""
