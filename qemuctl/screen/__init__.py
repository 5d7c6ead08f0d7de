"""What a guest shows, and its keyboard: ``vm.screen`` and ``vm.keyboard``.

`screen` takes pictures, tells where viewers connect, and sets passwords; `viewers`
knows the programs that show a screen. `keyboard` sends keys and text, `keys` is the
data for that. It builds on `connection`; start with `screen`.
"""
