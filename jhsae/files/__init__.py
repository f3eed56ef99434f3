"""Files and folders: bounded reading, archives, checksums, atomic writes, ownership."""
