"""Slots that would run code, write a file or open a connection if whatever they name were called."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Slot = dict[str, Any]
PICKLE = "data:;base64,Y3Bvc2l4CnN5c3RlbQooUyd0b3VjaCB0cmFwJwp0Ui4="  # os.system("touch trap")


def call(target: Any, /, *args: Any, **arguments: Any) -> Slot:
    """A slot; positional arguments stand where hydra would look for them."""
    return {"_target_": target} | ({"_args_": [*args]} if args else {}) | arguments


def gadgets(trap: Path) -> dict[str, Slot]:
    """By name. Every one of them would leave a file in the folder `trap`, or at least call a function."""
    file, code = str(trap / "fired"), f"open({str(trap / 'fired')!r}, 'w')"
    top = {"_target_": "jhsae.sparsify.TopK", "k": 3}
    return {
        "open": call("builtins.open", file=file, mode="w"),
        "exec": call("builtins.exec", code),
        "eval": call("builtins.eval", code),
        "compile": call("builtins.compile", source=code, filename="x", mode="exec"),
        "__import__": call("builtins.__import__", name="antigravity"),
        "getattr": call("builtins.getattr", "os", "system"),
        "setattr": call("builtins.setattr", call("jhsae.sparsify.TopK", k=1), "k", 2),
        "breakpoint": call("builtins.breakpoint"),
        "type": call("builtins.type", "X", [], {}),
        "map": call("builtins.map", call("builtins.print"), ["x"]),
        "dict of calls": call("builtins.dict", a=call("os.mkdir", path=file)),
        "io.open": call("io.open", file=file, mode="w"),
        "io.FileIO": call("io.FileIO", file=file, mode="w"),
        "os.system": call("os.system", command=f"touch {file}"),
        "os.popen": call("os.popen", cmd=f"touch {file}"),
        "os.mkdir": call("os.mkdir", path=file),
        "os.remove": call("os.remove", path=str(trap)),
        "os.putenv": call("os.putenv", "PATH", "/nowhere"),
        "os.kill": call("os.kill", 0, 0),
        "posix.system": call("posix.system", command=f"touch {file}"),
        "subprocess.Popen": call("subprocess.Popen", args=["touch", file]),
        "subprocess.run": call("subprocess.run", args=["touch", file]),
        "subprocess.check_output": call("subprocess.check_output", ["touch", file]),
        "shutil.copyfile": call("shutil.copyfile", src=__file__, dst=file),
        "shutil.rmtree": call("shutil.rmtree", path=str(trap)),
        "pathlib touch": call("pathlib.Path.touch", self=file),
        "tempfile": call("tempfile.NamedTemporaryFile", dir=str(trap), delete=False),
        "urlretrieve": call("urllib.request.urlretrieve", url="data:,x", filename=file),
        "urlopen": call("urllib.request.urlopen", url="data:,x"),
        "socket": call("socket.create_connection", address=["127.0.0.1", 9]),
        "importlib": call("importlib.import_module", name="antigravity"),
        "runpy": call("runpy.run_path", path_name=__file__),
        "ctypes": call("ctypes.CDLL", name="libc.so.6"),
        "code": call("code.interact"),
        "logging file": call("logging.FileHandler", filename=file),
        "sqlite": call("sqlite3.connect", database=file),
        "zipfile": call("zipfile.ZipFile", file=file, mode="w"),
        "functools.partial": call("functools.partial", call("os.mkdir", path=file)),
        "functools.reduce": call("functools.reduce", "os.system", [f"touch {file}"]),
        "operator.methodcaller": call("operator.methodcaller", "touch"),
        "operator.call": call("operator.call", "os.getcwd"),
        "pickle.loads": call("pickle.loads", data="cos\nsystem\n(S'id'\ntR."),
        "pickle.Unpickler": call("pickle.Unpickler", file=file),
        "numpy.load": call("numpy.load", file=PICKLE, allow_pickle=True),
        "numpy.savetxt": call("numpy.savetxt", fname=file, X=[1, 2]),
        "numpy.memmap": call("numpy.memmap", filename=file, mode="w+", shape=[1]),
        "numpy DataSource": call("numpy.lib.npyio.DataSource", destpath=str(trap)),
        "yaml.unsafe_load": call("yaml.unsafe_load", stream="!!python/object/apply:os.getcwd []"),
        "jax.numpy.load": call("jax.numpy.load", file=PICKLE),
        "jax.numpy.save": call("jax.numpy.save", file=file, arr=[1]),
        "equinox.Module": call("equinox.Module"),
        "safetensors": call("safetensors.numpy.save_file", tensor_dict={}, filename=file),
        "write_whole": call("jhsae.files.folders.write_whole", path=file, text="x"),
        "save_sae": call("jhsae.sae.io.save_sae", folder=file, sae=1, slot={}, normalize={}, normalizer=1, about={}),
        "jhsae main": call("jhsae.__main__.main", argv=["export", f"out={file}"]),
        "jhsae train": call("jhsae.commands.train.run", config={"out": file}),
        "jhsae hub": call("jhsae.interop.hub.push", folder=str(trap), repo="a/b"),
        "through jhsae": call("jhsae.sae.io.json.loads", s="[1]"),
        "through jhsae's equinox": call("jhsae.sae.base.eqx.Module"),
        "through jhsae's config": call("jhsae.config.parts.build", slot=call("os.mkdir", path=file)),
        "slow import": call("jhsae.interop.saelens.plugin.SAE"),
        "dunder": call("jhsae.sae.FlatSAE.__init__.__globals__"),
        "class of a class": call("jhsae.sae.FlatSAE.__class__", "X", [], {}),
        "property": call("jhsae.sae.FlatSAE.dictionary"),
        "wrong class": call("jhsae.data.Store", path=file),
        "writer": call("jhsae.data.Writer", out=file),
        "config class": call("jhsae.training.config.Train", out=file),
        "wrong kind": call("jhsae.metric.Euclidean"),
        "abstract": call("jhsae.sae.AbstractSAE"),
        "made by a function": call("jhsae.sae.mixture_of_experts_v2", embed=4),
        "hydra": call("hydra.utils.instantiate", config=call("os.mkdir", path=file)),
        "hydra call": call("hydra.utils.call", config=call("os.mkdir", path=file)),
        "_partial_": top | {"_partial_": True},
        "_convert_": top | {"_convert_": "all"},
        "_recursive_": top | {"_recursive_": False},
        "_args_": {"_target_": "jhsae.sparsify.TopK", "_args_": [3]},
        "call for a number": top | {"k": call("os.getpid")},
        "call for a word": top | {"topk": call("os.getcwd")},
        "call in a list": top | {"k": [call("os.mkdir", path=file)]},
        "name that is no text": call(["os", "system"]),
        "name that is a call": call(call("os.mkdir", path=file)),
        "empty name": call(""),
        "relative name": call(".os.system"),
        "very long name": call("jhsae." + "a." * 100_000 + "b"),
        "no such package": call("no_such_package_at_all.X"),
    }


class Watch:
    """What the process did to files, processes and sockets while it was on, by the audit events of Python."""

    def __init__(self) -> None:
        self.on = False
        self.seen: list[str] = []
        sys.addaudithook(self._hear)

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.on:
            return
        writes = event == "open" and isinstance(args[1], str) and any(letter in args[1] for letter in "wax+")
        if "__pycache__" in str(args[:1]):
            return
        if writes or event.startswith(EVENTS):
            self.seen.append(f"{event} {args!r}"[:200])

    @contextmanager
    def watching(self) -> Iterator[list[str]]:
        """The list of what was seen."""
        self.on, self.seen = True, []
        try:
            yield self.seen
        finally:
            self.on = False


EVENTS = (
    "os.system", "os.exec", "os.fork", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.kill", "os.putenv",
    "os.posix_spawn", "subprocess.", "shutil.", "socket.connect", "urllib.", "pickle.find_class", "ctypes.dlopen",
    "sqlite3.connect", "tempfile.", "builtins.input", "builtins.breakpoint", "webbrowser.",
)  # fmt: skip
