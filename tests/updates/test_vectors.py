import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load, save

from tests.looped import looped
from updates.errors import ModelError
from updates.vectors import (
    ModelLayout,
    TensorSpec,
    decode_model,
    encode_model,
    flatten,
    layout_of,
    unflatten,
)


def model() -> dict[str, NDArray[np.float32]]:
    generator = np.random.default_rng(0)
    return {
        "layer.weight": generator.standard_normal((4, 3)).astype(np.float32),
        "bias": generator.standard_normal(4).astype(np.float32),
        "alpha": np.array(0.5, dtype=np.float32),
        "empty": np.zeros((0, 3), dtype=np.float32),
    }


def safetensors_bytes(header: object, body: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def test_flatten_keeps_model_order_and_unflatten_inverts_it() -> None:
    tensors = model()
    layout = layout_of(tensors)
    assert layout.dim == 17
    vector = flatten(dict(reversed(tensors.items())), layout)
    assert vector.tolist()[:12] == tensors["layer.weight"].reshape(-1).tolist()
    assert vector.tolist()[12:16] == tensors["bias"].tolist()
    back = unflatten(vector, layout)
    assert list(back) == list(tensors)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name], tensor, strict=True)


def test_unflattened_tensors_do_not_share_memory_with_the_vector() -> None:
    layout = layout_of(model())
    vector = flatten(model(), layout)
    before = vector.tobytes()
    for tensor in unflatten(vector, layout).values():
        tensor[...] = 1
    assert vector.tobytes() == before


def test_flatten_takes_fortran_order_and_other_real_types() -> None:
    tensors = {"w": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "n": np.array([7])}
    assert flatten(tensors, layout_of(tensors)).tolist() == [0, 1, 2, 3, 4, 5, 7]


def test_flatten_refuses_what_is_not_the_layout() -> None:
    layout = layout_of({"w": np.zeros((2, 3), dtype=np.float32)})
    with pytest.raises(ModelError, match="'v'"):
        flatten({"w": np.zeros((2, 3)), "v": np.zeros(1)}, layout)
    with pytest.raises(ModelError, match="of shape"):
        flatten({"w": np.zeros((3, 2))}, layout)
    with pytest.raises(ModelError, match="real numbers"):
        flatten({"w": np.zeros((2, 3), dtype=np.complex64)}, layout)


def test_unflatten_refuses_other_dimensions_and_types() -> None:
    layout = layout_of(model())
    with pytest.raises(ModelError, match="dim=17"):
        unflatten(np.zeros(16, dtype=np.float32), layout)
    with pytest.raises(ModelError, match="float64"):
        unflatten(np.zeros(17), layout)  # type: ignore[arg-type]  # the refusal is under test


def test_layout_refuses_repeated_names() -> None:
    with pytest.raises(ModelError, match="unique"):
        ModelLayout(tensors=(TensorSpec(name="w", shape=(1,)), TensorSpec(name="w", shape=(2,))))


def test_model_survives_encoding_in_its_order() -> None:
    metadata = {"task": "digits", "version": "3", "note": "naïve ☂"}
    tensors, found = decode_model(encode_model(model(), metadata))
    assert found == metadata
    assert list(tensors) == list(model())
    for name, tensor in model().items():
        np.testing.assert_array_equal(tensors[name], tensor, strict=True)
        assert tensors[name].flags.writeable


def test_the_safetensors_library_reads_our_files() -> None:
    loaded = load(encode_model(model(), {"a": "b"}))
    assert set(loaded) == set(model())
    for name, tensor in model().items():
        np.testing.assert_array_equal(loaded[name], tensor, strict=True)


def test_we_read_the_librarys_files_in_order_of_names() -> None:
    data = save(dict(model()), {"task": "digits"})
    tensors, metadata = decode_model(memoryview(data))
    assert list(tensors) == sorted(model())
    assert metadata == {"task": "digits"}
    np.testing.assert_array_equal(tensors["bias"], model()["bias"])


def test_equal_models_have_equal_bytes() -> None:
    metadata = {f"key-{i}": str(i) for i in range(10)}
    first = encode_model(model(), metadata)
    assert first == encode_model(model(), dict(reversed(metadata.items())))
    assert first != encode_model(dict(reversed(model().items())), metadata)


def test_encoding_refuses_reserved_names_and_other_types() -> None:
    with pytest.raises(ModelError, match="reserved"):
        encode_model(model(), {"fedagg.order": "[]"})
    with pytest.raises(ModelError, match="reserved"):
        encode_model({"__metadata__": np.zeros(1, dtype=np.float32)})
    with pytest.raises(ModelError, match="must be float32"):
        encode_model({"w": np.zeros(1)})  # type: ignore[dict-item]  # the refusal is under test


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int64, np.bool_])
def test_decoding_refuses_other_types(dtype: type) -> None:
    with pytest.raises(ModelError, match="'w' of type"):
        decode_model(save({"w": np.zeros(2, dtype=dtype)}))


def test_decoding_refuses_types_numpy_does_not_know() -> None:
    header = {"w": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}}
    with pytest.raises(ModelError, match="safetensors"):
        decode_model(safetensors_bytes(header, b"\0\0"))


@looped("order", ['["w", "w"]', '["v"]', "[]", '"w"', "[1]", "{", "[" * 10_000])
def test_decoding_refuses_an_order_that_does_not_list_the_tensors(order: str) -> None:
    header = {
        "__metadata__": {"fedagg.order": order},
        "w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
    }
    with pytest.raises(ModelError, match="must list the tensors"):
        decode_model(safetensors_bytes(header, b"\0" * 4))


@given(st.binary(max_size=200))
def test_garbage_raises_nothing_but_aggregation_errors(data: bytes) -> None:
    with pytest.raises(ModelError):
        decode_model(data)


@given(st.data())
def test_damaged_files_raise_nothing_but_aggregation_errors(data: st.DataObject) -> None:
    encoded = bytearray(encode_model(model(), {"a": "b"}))
    position = data.draw(st.integers(0, len(encoded) - 1))
    encoded[position] ^= data.draw(st.integers(1, 255))
    stop = data.draw(st.integers(0, len(encoded)))
    try:
        decode_model(bytes(encoded[:stop]))
    except ModelError:
        return
    assert stop == len(encoded)
