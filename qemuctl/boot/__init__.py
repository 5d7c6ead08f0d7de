"""From a definition to a QEMU that answers.

`bring_up` starts QEMU, all or nothing, by a plan of `registry.plan`. `start` has the
two ways to own a VM: ``start`` for one that was created, ``launch`` for a throwaway
one, whose end is in `throwaway`. `from_saved_state` goes on where a guest was saved,
`at_snapshot` where a snapshot was made.

It builds on `vm` and all below. Start with `start`, then `bring_up`.
"""
