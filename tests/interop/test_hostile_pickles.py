"""With ``unpickle=True`` a file of torch gives tensors of the size that it has on disk, or one sentence."""

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from jhsae.errors import UserError
from jhsae.interop.unpickle import state_dict


def repacked(path: Path, change: dict[str, bytes] | None = None, compression: int = zipfile.ZIP_STORED) -> Path:
    """The same archive with other members, by their name inside of its folder."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    root = next(iter(members)).split("/")[0]
    members |= {f"{root}/{name}": content for name, content in (change or {}).items()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def saved(path: Path, value: object, **options: bool) -> Path:
    torch.save(value, path, **options)
    return path


def refused(path: Path, message: str = "is not a state dict of tensors and plain values") -> None:
    with pytest.raises(UserError, match=message) as caught:
        state_dict(path, unpickle=True)
    assert "\n" not in str(caught.value)


def test_what_is_plain_is_read(tmp_path: Path):
    weight = torch.arange(6.0).reshape(2, 3)
    held = OrderedDict(
        weight=weight,
        transposed=weight.T,
        half=weight.bfloat16(),
        parameter=torch.nn.Parameter(weight),
        part=weight[1:, 1:],
        k=torch.tensor(3),
        flag=torch.tensor(True),
        name="TopK",
        settings={"k": 3},
    )
    found = state_dict(saved(tmp_path / "ae.pt", held), unpickle=True)
    for key in ("weight", "transposed", "half", "parameter", "part", "k", "flag"):
        tensor = held[key].detach()
        np.testing.assert_array_equal(found[key], (tensor.float() if tensor.is_floating_point() else tensor).numpy())
        assert found.shapes[key] == tuple(held[key].shape)
    assert found["name"] == "TopK" and found["settings"] == {"k": 3} and "none" not in found


@pytest.mark.filterwarnings("ignore::UserWarning")  # of torch, which does not like such tensors either
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torch.zeros(1).expand(10**6, 10**6), "repeats its bytes to fill"),
        (lambda: torch.zeros(3, 3).to_sparse(), "is not a state dict"),
        (lambda: torch.zeros(3, 3).to_sparse_csr(), "is not a state dict"),
        (lambda: torch.zeros(3).to(torch.float8_e4m3fn), "of type float8_e4m3fn, expected one of"),
        (lambda: torch.zeros(3, dtype=torch.complex64), "of type complex64, expected one of"),
        (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "is not a state dict"),
        (lambda: torch.empty(3, device="meta"), "is not a state dict"),
        (lambda: {1, 2}, "is not a state dict"),
        (lambda: torch.float32, "is not a state dict"),
    ],
)
def test_entries_of_other_kinds(tmp_path: Path, make: Callable[[], object], message: str):
    refused(saved(tmp_path / "ae.pt", {"a": make()}), message)


class Bytes:
    """Asks for a byte array of ten billion zeros."""

    def __reduce__(self):
        return bytearray, (10**10,)


class Large:
    """Asks for a tensor of 10^10 numbers."""

    def __reduce__(self):
        return torch.Tensor, (10**10,)


@pytest.mark.parametrize(
    "value", [Bytes(), Large(), [Bytes()], {"b": Large()}], ids=["bytes", "tensor", "list", "dict"]
)
def test_pickles_that_would_fill_the_memory(tmp_path: Path, value: object):
    file = saved(tmp_path / "ae.pt", {"a": torch.zeros(2)})
    refused(repacked(file, {"data.pkl": pickle.dumps({"a": value}, protocol=2)}))
    refused(repacked(file, {"data.pkl": pickle.dumps({"a": value}, protocol=4)}))


@pytest.mark.parametrize(
    "content",
    [b"", b"\x80", b"\x80\x02", b"\x80\x02}.", b"\x80\x02K\x01.", b"(" * 100_000 + b".", b"\x80\x02]" + b"0." * 9],
)
def test_pickles_that_end_elsewhere(tmp_path: Path, content: bytes):
    file = repacked(saved(tmp_path / "ae.pt", {"a": torch.zeros(2)}), {"data.pkl": content})
    if content == b"\x80\x02}.":
        assert len(state_dict(file, unpickle=True)) == 0
    else:
        refused(file, "is not a state dict|holds a int")


def test_archives_that_torch_does_not_write(tmp_path: Path):
    large = saved(tmp_path / "ae.pt", {"a": torch.zeros(2**20)})
    refused(repacked(large, compression=zipfile.ZIP_DEFLATED), "expands to|is packed")
    refused(saved(tmp_path / "old.pt", {"a": torch.zeros(2)}, _use_new_zipfile_serialization=False), "version 1.6")
    long = repacked(
        saved(tmp_path / "long.pt", {"a": torch.zeros(2)}), {"data.pkl": b"\x80\x02" + b"]0" * 2**20 + b"}."}
    )
    refused(long, "no data.pkl of its size")
    text = io.BytesIO()
    with zipfile.ZipFile(text, "w") as archive:
        archive.writestr("archive/data.txt", "")
    (tmp_path / "none.pt").write_bytes(text.getvalue())
    refused(tmp_path / "none.pt", "no data.pkl")
    short = saved(tmp_path / "short.pt", {"a": torch.zeros(100)})
    short.write_bytes(short.read_bytes()[:-50])
    refused(short)


def test_a_storage_that_is_smaller_than_it_says(tmp_path: Path):
    file = saved(tmp_path / "ae.pt", {"a": torch.zeros(100)})
    refused(repacked(file, {"data/0": b"\0" * 8}))
