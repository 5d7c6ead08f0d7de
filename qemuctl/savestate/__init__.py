"""A running machine saved to a file, and restored from one.

`save` writes RAM and devices through QEMU's migration and ends QEMU; `restore` brings
a saved machine back from any file, as the VM that it was or as a new one. The file's
form is in `registry.saved_state`, the way back into QEMU in `boot.from_saved_state`;
`foreign_state` tells which files are of this home.

Start with `save`.
"""
