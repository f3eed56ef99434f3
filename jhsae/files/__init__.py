"""Files and folders: bounded reading, archives, checksums, atomic writes, ownership.

Files from other people:

- **No code runs.** A name in a file becomes a part only where a slot asks for one of its kind, only inside `jhsae`, and
  nothing is imported or called before that is known; ``trust=my_package`` admits another package for one call. Pickles
  are refused; ``jhsae import unpickle=true`` reads a ``.pt`` file with ``weights_only=True``.
- **Bounded.** Sizes, depths and kinds of JSON, YAML, safetensors, npz, zarr and archives are checked before data is
  read.
- **Checksums.** Saved SAEs, teachers, exports and stores carry ``SHA256SUMS`` (``sha256sum -c`` reads it), compared on
  every load. They detect damage; they do not say who wrote the folder. Folders of older versions have none, which
  loading says.
- **Nothing is guessed.** Every tensor of a checkpoint is used, known to be unneeded, or refused by name; quantised
  weights are dequantised (int8 and fp8 with scales) or refused by the name of their method.
- **Trusted**: the config you write, the packages it names, Python and its packages, the tokenizers library's parser (of
  size-limited files).
- **Working directory.** Python itself imports modules of the working directory under ``python -m jhsae``: inside a
  folder that you do not trust write ``jhsae``, or ``python -P -m jhsae``.

Tests with hostile files: ``tests/hostile/``, ``experiments/faults/``.
"""
