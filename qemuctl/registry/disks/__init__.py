"""The disks of a VM as files: which there are, made and checked.

`resolve` fills in what a spec leaves open, so that every disk has an id and a file;
`disk_files` makes them with `image`, and lists them. `backing_trust` tells which
files a disk may be made from without its user saying so, `unknown_drives` which
drives only QEMU arguments of the spec's own know of. It builds on `records`.
"""
