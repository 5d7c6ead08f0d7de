"""Plain data and typed objects: what annotations say, read and written.

`read` makes an object of a class (`qemuctl.structs.Struct`) from what YAML, JSON or
keyword arguments hold, or tells all that is wrong with it; `write` is the way back. Of
an annotation the types that such data can have are understood, and `marks`, which say
what a type alone does not. `schema` writes them down as a JSON schema.

Commands wait for this at each start, so a class costs nothing until it is read.
"""
