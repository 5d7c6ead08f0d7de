"""`Vm`, which joins the rooms to the left, and one facet a file.

QEMU's run state is the truth about a VM and is asked for, never kept. What
is kept is what QEMU cannot know: the spec, who the process is (`record`), and
how it ended (`outcome`). Which request is admitted in which state is data
(`states`). Nothing is imported here, so that a list of VMs need not load
what drives them.
"""
