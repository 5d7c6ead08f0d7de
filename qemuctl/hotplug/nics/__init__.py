"""Network cards in and out of a running VM, their cables and forwards.

`nics` is the facet ``vm.nics``. What a change needs is found out first, against the
spec (`in_spec`), then made in QEMU (`add`, `forwards`), then written to the spec.
`listing` shows cards as they are beside what the spec says, `seen_by_guest` asks the
agent, `results` is what comes back. Start with `add`.
"""
