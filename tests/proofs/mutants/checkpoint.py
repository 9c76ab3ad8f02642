"""Bugs in checkpoints."""

from __future__ import annotations

from .mutant import planted

SAVING, FITTING, BATCHES, RATES, READING, PROBING, DRAWING = (
    f"tests/{name}.py"
    for name in (
        "checkpoint/test_checkpoint",
        "training/test_training",
        "training/test_data",
        "test_schedules",
        "training/test_diagnosis",
        "tuning/test_probe",
        "test_plots",
    )
)

# A folder stands for whichever file in it holds the text.
CHECKPOINT = "fastoptim"

MUTANTS = (
    *planted(
        CHECKPOINT,
        (SAVING, FITTING),
        ("checksum not compared", " or digest.hexdigest().encode() != header[digits]", ""),
        ("file not synced", "    file.flush()\n    os.fsync(file.fileno())\n", "    file.flush()\n"),
        ("folder not synced", "    _sync_folder(os.path.dirname(target))\n", ""),
        ("previous checkpoint not kept", "if keep_previous:", "if False:"),
        ("previous checkpoint always kept", "if keep_previous:", "if True:"),
        ("previous made by moving the target away", "os.link(target, spare)", "os.rename(target, spare)"),
        ("no way without hard links", "        os.replace(target, previous)\n        return", "        return"),
        (
            "temporary file left behind",
            "            os.unlink(temporary)\n        raise",
            "            pass\n        raise",
        ),
        ("dead writers' files kept", "_remove_if_abandoned(os.path.join(folder, entry))", "pass"),
        ("live writers' files removed", "        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)\n", ""),
        ("own temporary file not locked", "        fcntl.flock(file, fcntl.LOCK_EX)\n", ""),
        ("removed before it was locked, not noticed", "return os.path.exists(path)", "return True"),
        ("another writer's files taken for its own", 'rf"\\.{re.escape(name)}\\.', 'rf"\\..*\\.'),
        (
            "link replaced instead of its target",
            "target = os.path.realpath(os.fspath(path))",
            "target = os.fspath(path)",
        ),
        ("scalars come back as arrays", 'array[()] if form == "scalar"', 'array if form == "scalar"'),
        ("Fortran order lost", 'np.asfortranarray(array) if form == "F" else array', "array"),
        (
            "tuples come back as lists",
            'return tuple(_decode(item, arrays) for item in value["$tuple"])',
            'return [_decode(item, arrays) for item in value["$tuple"]]',
        ),
        ("names of arrays collide", "while name in arrays:", "while False:"),
        (
            "byte order not turned",
            'np.ascontiguousarray(array, array.dtype.newbyteorder("<"))',
            "np.ascontiguousarray(array)",
        ),
        ("arrays not aligned in the file", "key=lambda item: -item[1].itemsize", "key=lambda item: item[1].itemsize"),
        ("header not padded", 'b" " * (-len(header) % 8)', 'b""'),
        ("newer version read", "> VERSION:", "> VERSION + 1:"),
        ("long header read", "min(MAX_HEADER, size - 8)", "size - 8"),
        ("long header written", "if len(header) > MAX_HEADER:", "if False:"),
        ("kind not looked at", 'if metadata["kind"] not in kinds:', "if False:"),
        ("names twice taken", "if len(result) != len(pairs):", "if False:"),
        ("unnamed array taken", "    if arrays:\n        raise", "    if False:\n        raise"),
        ("offsets not looked at", "offsets != [begin, end] or end > available", "end > available"),
        ("bytes of no array taken", "if end != available:", "if end > available:"),
        ("truth value of two", "raw.max() > 1", "raw.max() > 2"),
        ("file that is no file", "if not stat.S_ISREG(os.fstat(descriptor).st_mode):", "if False:"),
        (
            "previous not asked where the last is gone",
            "except (FileNotFoundError, CheckpointError) as error:\n        if not",
            "except CheckpointError as error:\n        if not",
        ),
        (
            "previous not asked where the last is damaged",
            "except (FileNotFoundError, CheckpointError) as error:\n        if not",
            "except FileNotFoundError as error:\n        if not",
        ),
        (
            "read-only parameters not noticed in time",
            "            optimizer._backend.check_parameter(name, p)\n",
            "            pass\n",
        ),
        ("step count beyond int64", ' or entry["step"] >= 2**63', ""),
        ("hyper-parameter may be an array", "isinstance(value, (np.ndarray, dict))", "False"),
        ("dtype of parameters not compared", "x.dtype != dtype or x.shape", "x.shape"),
        ("shape of parameters not compared", " or x.shape != tuple(shape)", ""),
        (
            "saved while somebody steps",
            "    with optimizer._locked(reading=True):\n        write(",
            "    if True:\n        write(",
        ),
        ("parameters not written back", "                assign(p, saved[name])\n", "                pass\n"),
        (
            "slices of the checkpoint before it removed",
            "for path in (target, previous_path(target)):",
            "for path in (target,):",
        ),
        ("old slices kept", "if match and match[1] not in keep:", "if False:"),
        ("slice of another checkpoint taken", 'if content["token"] != tree["token"]:', "if False:"),
        ("slice from another folder", "if os.path.basename(file) != file:", "if False:"),
        ("hole between slices", "if any(missing.values()) or", "if"),
        ("step counts of slices differ", 'target["step"] != step or ', ""),
        (
            "slice put one element late",
            "common[0] - wanted[0] : common[1] - wanted[0]] = x[common[0] - start",
            "common[0] - wanted[0] : common[1] - wanted[0]] = x[max(common[0] - start - 1, 0)",
        ),
        ("slice of another dtype", "if x.dtype != dtype:", "if False:"),
    ),
)

EQUIVALENT: tuple[tuple[str, str], ...] = ()
