import json
import re

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from qemuctl.spec import Model, Spec, dump, example, json_schema, parse_spec
from qemuctl.spec.document import read_document
from qemuctl.units import GIB, MIB


def models(model=Spec):
    """A model and all models inside it."""
    found = {model}
    for field in model.model_fields.values():
        found |= {inner for part in parts(field.annotation) for inner in models(part)}
    return found


def parts(annotation):
    if isinstance(annotation, type) and issubclass(annotation, Model):
        return [annotation]
    arguments = getattr(annotation, "__args__", ())
    return [part for argument in arguments for part in parts(argument)]


# These take the place of others, so both cannot be there.
INSTEAD = r"^#  (user_data|meta_data|network_config): .*\n"


def uncommented():
    """The example with every setting that it comments out and that goes together."""
    return uncommented_all(re.sub(INSTEAD, "", example(), flags=re.MULTILINE))


def uncommented_all(text=None):
    text = (text or example()).replace("  type: none ", "  type: vnc ")
    for empty in ("disks: []", "forward: []", "extra_args: []", "order: null"):
        assert empty in text
        text = text.replace(empty, "order: [disk]" if "order" in empty else "")
    return re.sub(r"^(\s*)#(?! \S)", r"\1", text, flags=re.MULTILINE)


def test_the_example_shows_the_defaults():
    assert parse_spec(example()) == Spec(name="example")


def test_the_example_names_every_field():
    document = read_document(uncommented_all(), "example")
    named = {at[-1] for at in document.lines}
    for model in models():
        if model.__name__ != "Forward":  # written in its notation
            assert set(model.model_fields) <= named, model


def test_the_settings_that_the_example_comments_out_are_good():
    spec = parse_spec(uncommented())
    assert len(spec.disks) == 2
    assert len(spec.nics) == 4
    assert len(spec.nics[0].forward) == 3
    assert set(Spec.model_fields) - spec.model_fields_set == set()


def test_the_example_means_the_same_to_an_older_yaml_reader():
    for text in (example(), uncommented()):
        assert Spec.model_validate(yaml.safe_load(text)) == parse_spec(text)


def test_the_schema_names_every_field():
    schema = json.loads(json.dumps(json_schema()))
    assert schema["required"] == ["name"]
    assert set(schema["properties"]) == set(Spec.model_fields)
    for model in models() - {Spec}:
        part = schema["$defs"].get(f"{model.__name__}Keys") or schema["$defs"].get(
            model.__name__
        )
        assert set(part["properties"]) == set(model.model_fields)
        assert part["additionalProperties"] is False


@pytest.mark.parametrize(
    ("part", "plain"),
    [
        ("Cpu", {"type": "integer", "minimum": 1, "maximum": 4096}),
        ("Nic", {"type": "string", "enum": ["user", "none", "tap", "socket"]}),
        ("Display", {"type": "string", "enum": ["none", "vnc", "spice"]}),
    ],
)
def test_the_schema_allows_a_plain_value_for_a_part(part, plain):
    either = json_schema()["$defs"][part]["anyOf"]
    assert either == [plain, {"$ref": f"#/$defs/{part}Keys"}]


def test_every_reference_in_the_schema_leads_somewhere():
    schema = json_schema()
    references = re.findall(r'"#/\$defs/(\w+)"', json.dumps(schema))
    assert references
    assert set(references) <= set(schema["$defs"])


@pytest.mark.parametrize(
    "text",
    [
        "name: a\n",
        "name: '123'\n",
        "name: a\ncpu: 2\nmemory: 1G\n",
        "name: a\nmemory:\n  size: 1536M\n  max: 2G\n",
        "name: a\nnics: []\n",
        "name: a\nnics:\n- user\n- none\n- model: e1000\n",
        "name: a\nnics:\n- forward:\n  - 8080:80\n  - '2222:22'\n  - :22\n",
        "name: a\ndisks:\n- size: 1T\n  format: raw\n",
        "name: a\nserial: false\ndisplay: vnc\n",
    ],
)
def test_a_dumped_spec_reads_as_a_person_would_write_it(text):
    assert dump(parse_spec(text)) == text


def test_the_fields_of_a_dumped_spec_are_in_the_order_of_the_model():
    keys = list(yaml.safe_load(dump(parse_spec(uncommented()))))
    assert keys == [name for name in Spec.model_fields if name in keys]
    assert len(keys) > 8


TEXTS = st.text(
    st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12
) | st.sampled_from(["null", "~", "on", "1:30", "0x1", "1e3", "- a", "a: b", "#", "\n"])
SIZES = st.integers(1, 4096).map(lambda n: n * MIB)
DISKS = st.fixed_dictionaries(
    {"size": SIZES},
    optional={
        "format": st.sampled_from(["qcow2", "raw"]),
        "bus": st.sampled_from(["virtio", "scsi"]),
        "serial": TEXTS,
    },
)
FORWARDS = st.tuples(st.sampled_from(["", "udp:"]), st.integers(1, 65535)).map(
    lambda pair: f"{pair[0]}:{pair[1]}"
)
NICS = st.just("none") | st.fixed_dictionaries(
    {}, optional={"model": TEXTS, "forward": st.lists(FORWARDS, max_size=2)}
)
SPECS = st.fixed_dictionaries(
    {"name": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,9}", fullmatch=True)},
    optional={
        "image": TEXTS,
        "cdrom": TEXTS,
        "cpu": st.integers(1, 8) | st.just({"count": 2, "max": 4, "model": "max"}),
        "memory": SIZES | SIZES.map(lambda size: {"size": size, "max": size + 4 * GIB}),
        "boot": st.fixed_dictionaries({}, optional={"kernel": TEXTS, "cmdline": TEXTS}),
        "disks": st.lists(DISKS, max_size=2),
        "nics": st.lists(NICS, max_size=2),
        "serial": st.booleans(),
        "display": st.sampled_from(["none", "vnc", {"vga": "std"}]),
        "extra_args": st.lists(TEXTS | st.just(""), max_size=3).map(
            lambda texts: [w for text in texts for w in ("-fw_cfg", f"string={text}")]
        ),
    },
)


@settings(max_examples=100, deadline=None)
@given(SPECS)
def test_a_dumped_spec_reads_back_as_itself(data):
    spec = Spec.model_validate(data)
    assert parse_spec(dump(spec)) == spec
    assert Spec.model_validate(yaml.safe_load(dump(spec))) == spec
