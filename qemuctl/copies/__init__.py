"""A VM once more: cloned, exported to a file, imported from one.

All of it is done while the VM is off. `clone` makes a second VM, `archive` writes and
reads the file; `portable_spec` makes a spec complete in itself, `foreign_spec` is the
gate for one that somebody else may have written.

It builds on `registry` and `image`. Start with `clone`.
"""
