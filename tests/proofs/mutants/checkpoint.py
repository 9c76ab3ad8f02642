"""Bugs in checkpoints, in what ranks load, and in what everything stands on: signals, arguments, trees."""

from __future__ import annotations

from .mutant import planted

SAVING, FILES, SLICES, FITTING, RANKS, SIGNALS, ARGUMENTS, TREES = (
    f"tests/{name}.py"
    for name in (
        "checkpoint/test_checkpoint",
        "checkpoint/test_files",
        "checkpoint/test_slices",
        "training/test_training",
        "distributed/test_distributed",
        "common/test_signals",
        "common/test_validation",
        "common/test_trees",
    )
)

# A folder stands for whichever file in it holds the text.
CHECKPOINT = "fastoptim"

MUTANTS = (
    *planted(
        CHECKPOINT,
        (SAVING, FILES, FITTING),
        ("checksum not compared", " or digest.hexdigest().encode() != header[digits]", ""),
        ("file not synced", "    file.flush()\n    os.fsync(file.fileno())\n", "    file.flush()\n"),
        ("folder not synced", "        files.sync_folder(os.path.dirname(target))\n", ""),
        ("previous checkpoint not kept", "if keep_previous:", "if False:"),
        ("previous checkpoint always kept", "if keep_previous:", "if True:"),
        ("previous made by moving the target away", "os.link(target, spare)", "os.rename(target, spare)"),
        ("no way without hard links", "        os.replace(target, previous)\n", "        pass\n"),
        ("moved away while another writes", "        except FileNotFoundError:\n            continue\n", ""),
        (
            "a spare name gone",
            "        with contextlib.suppress(FileNotFoundError):\n            os.replace(spare",
            "        if True:\n            os.replace(spare",
        ),
        ("temporary file left behind", "            os.unlink(temporary)\n", "            pass\n"),
        ("dead writers' files kept", "remove_abandoned(os.path.join(folder, entry))", "pass"),
        ("live writers' files removed", "            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)\n", ""),
        ("own temporary file not locked", "        fcntl.flock(file, fcntl.LOCK_EX)\n", ""),
        ("removed before it was locked, not noticed", "return os.path.exists(path)", "return True"),
        ("another writer's files taken for its own", "temporary_pattern(re.escape(name))", "temporary_pattern('.*')"),
        (
            "link replaced instead of its target",
            "target = os.path.realpath(os.fspath(path))\n    files.check",
            "target = os.fspath(path)\n    files.check",
        ),
        (
            "link to a picture replaced instead of its target",
            "target = os.path.realpath(os.fspath(path))\n    if os.path.exists",
            "target = os.fspath(path)\n    if os.path.exists",
        ),
        ("scalars come back as arrays", 'array[()] if form == "scalar"', 'array if form == "scalar"'),
        ("Fortran order lost", 'np.asfortranarray(array) if form == "F" else array', "array"),
        (
            "tuples come back as lists",
            'return tuple(_listed(value["$tuple"]))',
            'return _listed(value["$tuple"])',
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
        ("long header read", "if length > longest_header(size - 8 - length):", "if False:"),
        ("long header written", "if len(header) > limit:", "if False:"),
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
        ("hyperparameter may be an array", "isinstance(value, (np.ndarray, dict))", "False"),
        ("dtype of parameters not compared", "(tuple(x.shape), x.dtype) ==", "(tuple(x.shape), _described(p)[1]) =="),
        ("shape of parameters not compared", "(tuple(x.shape), x.dtype) ==", "(_described(p)[0], x.dtype) =="),
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
        ("old slices kept", "if match and match[1] not in keep and stated_kind(path) in kinds:", "if False:"),
        ("slice of another checkpoint taken", 'if content["token"] != tree["token"]:', "if False:"),
        ("slice from another folder", "if os.path.basename(file) != file:", "if False:"),
        ("hole between slices", "if any(missing.values()) or", "if"),
        ("step counts of slices differ", "any(target[key] != x for key, x in numbers.items()) or ", ""),
        (
            "slice put one element late",
            "= x[source.start : source.stop]",
            "= x[max(source.start - 1, 0) : source.stop - (source.start > 0)]",
        ),
        ("slice of another dtype", "if x.dtype.name != dtype and (key", "if False and (key"),
    ),
    *planted(
        CHECKPOINT,
        (FILES, SLICES),
        ("pipes opened until somebody writes", 'getattr(os, "O_NONBLOCK", 0)', "0"),
        ("links followed", "0 if follow else", "0 if True else"),
        ("mode of the last file lost", "mode = _mode_of(target, like)", "mode = None"),
        ("mode of another file not taken", "mode = _mode_of(target, like)", "mode = _mode_of(target)"),
        ("readable while it is written", "            os.fchmod(file.fileno(), mode)\n", "            pass\n"),
        ("a full disk without a name", "error.filename = path", "pass"),
        ("long names found late", "if len(os.fsencode(name)) > limit:", "if False:"),
        ("names counted in characters", "if len(os.fsencode(name)) > limit:", "if len(name) > limit:"),
        (
            "read-only folders found late",
            "    with naming(target), temporary_file(target):\n        pass\n",
            "",
        ),
        ("half of the file is no header", "return max(MAX_HEADER, data)", "return MAX_HEADER"),
        ("a header larger than its arrays", "return max(MAX_HEADER, data)", "return max(MAX_HEADER, 2 * data)"),
        ("other characters than ASCII", "if not header.isascii():", "if False:"),
        ("other characters than ASCII in the tree", "if not text.isascii():", "if False:"),
        ("MAX_HEADER of before", "MAX_HEADER = 1 << 23", "MAX_HEADER = 1 << 24"),
        ("somebody else's files removed", " and stated_kind(path) in kinds", ""),
        ("kept checkpoints removed", "if match and match[1] not in keep and", "if match and"),
        ("a live writer's slice removed", "            remove_abandoned(path)\n", "            os.unlink(path)\n"),
        ("half slices kept", "            remove_abandoned(path)\n", "            pass\n"),
        ("names that only begin alike", "match = whole.fullmatch(entry)", "match = whole.match(entry)"),
        ("any number of states in a slice", "if len(arrays) > _MOST_ARRAYS or any(", "if any("),
        ("states of any shape in a slice", "any(x.ndim != 1 for x in arrays.values())", "False"),
        ("a slice read twice", ' != len(tree["slices"]):', " < 0:"),
    ),
    *planted(
        "fastoptim/distributed/states.py",
        (RANKS,),
        ("ranks load different files", """{"the checkpoint's content (SHA-256)": found[2]}""", "{}"),
        ("ranks load different state dicts", "lambda _: _step_texts(state_dict)", "lambda _: {}"),
        ("slices that all may read", ", like=target)", ")"),
        (
            "loading left halfway by Ctrl-C",
            "with deferred_signals():\n                self._restore(state_dict, own, what)\n                if",
            "if True:\n                self._restore(state_dict, own, what)\n                if",
        ),
        (
            "a state dict left halfway by Ctrl-C",
            "            with deferred_signals():\n                self._restore(state_dict, own, what)\n\n",
            "            self._restore(state_dict, own, what)\n\n",
        ),
    ),
    *planted(
        "fastoptim/distributed/__init__.py",
        (RANKS,),
        ("a group added halfway by Ctrl-C", "with self._locked(), deferred_signals():", "with self._locked():"),
    ),
    *planted(
        "fastoptim/common/signals.py",
        (SIGNALS,),
        ("signals handled in the midst", "set_handler(number, self._collect, self._actions[number])", "pass"),
        ("signals lost", "                self._handlers[number](number, frame)\n", "                pass\n"),
        (
            "signals after one that raises lost",
            "            finally:\n                self._deliver()\n",
            "            except BaseException:\n                raise\n            self._deliver()\n",
        ),
        (
            "one call for each time",
            "self._came.setdefault(number, frame)",
            "self._came[number + 64 * len(self._came)] = frame",
        ),
        ("the system's dispositions undone", "        _sigaction(number, action, None)\n", "        pass\n"),
        ("a dead collector keeps what comes", "if not self._over:", "if True:"),
        (
            "handlers put back once at most",
            "            self._restore()\n            raise\n\n    def _deliver",
            "            raise\n\n    def _deliver",
        ),
        (
            "a collector that stays",
            "        set_handler(number, handler, self._actions[number])\n        handler(",
            "        handler(",
        ),
        (
            "entering that fails leaves a dead collector",
            "            self._over = True  # also before `_restore` says so\n",
            "",
        ),
        (
            "interrupts undo the system's dispositions",
            "self._action = disposition(signal.SIGINT)",
            "self._action = None",
        ),
    ),
    *planted(
        "fastoptim/common/validation.py",
        (ARGUMENTS,),
        ("truth values are numbers", "isinstance(value, (bool, np.bool_)) or is_complex", "is_complex"),
        ("overflow in the compute type", "if overflowing <= size < math.inf:", "if False:"),
        ("border of overflow", "if overflowing <= size < math.inf:", "if overflowing < size < math.inf:"),
        ("infinity on purpose refused", "if overflowing <= size < math.inf:", "if overflowing <= size:"),
        ("border of vanishing", "if 0.0 < size <= vanishing and", "if 0.0 < size < vanishing and"),
        ("rates may not vanish", " and not may_vanish", ""),
        ("no limit is refused", "if not number >= 0.0:  # NaN is not", "if not 0.0 <= number < math.inf:"),
    ),
    *planted(
        "fastoptim/common/threads.py",
        (ARGUMENTS,),
        ("long numbers cut", ' if not digits[:-9].strip("0") else MOST + 1', ""),
        ("OMP_NUM_THREADS above the most", "min(_parsed(first), MOST)", "_parsed(first)"),
    ),
    *planted(
        "fastoptim/common/trees.py",
        (TREES,),
        ("values in the order of the tree", "return itemgetter(*keys)", "return lambda tree: tuple(tree.values())"),
        ("unknown names taken", "elif type(tree) is dict and len(tree) == len(keys):", "elif type(tree) is dict:"),
        (
            "unknown names taken deep inside",
            "elif type(tree) is not dict or len(tree) != len(keys):",
            "elif type(tree) is not dict:",
        ),
        (
            "lists of any length deep inside",
            " or len(tree) != keys:\n                return False",
            ":\n                return False",
        ),
        ("paths not named", "f\"{what} at {path.removesuffix('.')!r}\" if path else what", "what"),
        ("branches not found", " or name.startswith(branch)", ""),
        ("branches that only begin alike", 'branch = f"{pattern}."', "branch = pattern"),
    ),
)

EQUIVALENT: tuple[tuple[str, str], ...] = (
    (
        "arrays of one element are no numbers: without _is_array in validation._number",
        "since 2.4 NumPy itself refuses to make a number of them, and the message is the same",
    ),
)
